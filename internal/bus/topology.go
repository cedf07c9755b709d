package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/saga"
)

// Streams.
const (
	StreamLog       = "PAWL_ROTATION"
	StreamSealed    = "PAWL_SEALED"
	StreamRequest   = "PAWL_REQUEST"
	StreamAsked     = "PAWL_ASKED"
	StreamEmergency = "PAWL_EMERGENCY"
	StreamAlert     = "PAWL_ALERT"
	StreamAlarm     = "PAWL_ALARM"
	StreamAnswer    = "PAWL_ANSWER"
	StreamTimer     = "PAWL_TIMER"
	StreamNote      = "PAWL_NOTE"
	StreamDead      = "PAWL_DEAD"
	StreamAudit     = "PAWL_AUDIT"
	StreamEvidence  = "PAWL_EVIDENCE"
	StreamLive      = "PAWL_LIVE"
)

// Durable consumers beside those of each service's steps (ConsumerOf).
const (
	ConsumerRequests    = "requests"    // scheduler, on StreamRequest
	ConsumerAsked       = "asked"       // scheduler, on StreamAsked
	ConsumerEmergencies = "emergencies" // scheduler, on StreamEmergency
	ConsumerAlerts      = "alerts"      // scheduler, on StreamAlert
	ConsumerTimekeeper  = "timekeeper"  // scheduler, on StreamLog: every event arms a deadline
	ConsumerDeadlines   = "deadlines"   // scheduler, on StreamTimer
	ConsumerDues        = "dues"        // scheduler, on StreamTimer
)

// ConsumerOf names the consumer of a service's steps, on StreamLog and on
// StreamTimer: urgent flows have one of their own, so that no backlog of others
// delays them. Both hear the same subjects; each leaves to the other what
// Urgent says is the other's.
func ConsumerOf(service string, urgent bool) string {
	if urgent {
		return service + "-urgent"
	}
	return service
}

// MaxEvent is the largest event, request or note, in bytes.
const MaxEvent = 64 << 10

// limits bound the streams, so that no flood and no fault fills the disk that the
// log needs. A stream at its limit refuses new messages: each refusal is a
// FullError, and the scheduler warns from nine tenths on. Exceptions have their
// reason beside them.
//
// To compare: a year of 1,000 credentials rotated every
// 30 days stores about 150 MB in all (`go run pawl.dev/internal/e2e/bench -only growth`).
// A limit also decides how large NATS makes a stream's files: from 32 MiB on, 8 MB.
var limits = map[string]int64{
	// Outsiders write here, and what is not answered is kept: about 100,000 small
	// requests. A flood is refused, and what came before it is answered.
	StreamAsked: 64 << 20,
	// The operator's, whom no flood of the others is to keep out.
	StreamRequest: 64 << 20,
	// Few may write here. A limit of their own, so that no flood of requests
	// keeps an emergency out.
	StreamEmergency: 64 << 20,
	// What outsiders sent and nobody could read.
	StreamDead: 64 << 20,
	// Drops its oldest: an alert is decided upon within seconds, and a flood of one
	// source must not keep the next alert out.
	StreamAlert: 256 << 20,
	// Drops its oldest: an answer is read within minutes. One per request, so it
	// grows as outsiders ask.
	StreamAnswer: 256 << 20,
	// None: NATS lets a stream of schedules only drop its oldest, which would be a
	// wait that never ends. The scheduler alone writes here, one message per
	// credential and kind of timer: 10,000 credentials take some 20 MB.
	StreamTimer: 0,
	// None: one message per service, which replaces the one before.
	StreamLive: 0,
	// One decision per alert, for 90 days.
	StreamAlarm: 1 << 30,
	// A credential keeps two or three envelopes per recipient, of 1 to 2 KB.
	StreamSealed: 4 << 30,
	// Kept forever. These are far above what years take, and bound a service that
	// writes in a loop.
	StreamNote:     16 << 30,
	StreamEvidence: 16 << 30,
	StreamLog:      32 << 30,
	StreamAudit:    64 << 30, // a record for each event, note and sealed access
}

// alerts are the subjects of StreamAlert.
var alerts = []string{AlertSubject("*"), AlertedSubject("*", "*")}

// Settings vary with the installation, never with the table.
type Settings struct {
	Replicas int           // of every stream; 1 or 3
	AckWait  time.Duration // how long after a service's death its message is given to another
}

// DefaultAckWait is how long after a service's death its work is given to
// another replica, or to the same one started again.
const DefaultAckWait = 10 * time.Second

// Streams returns the streams of Pawl.
func Streams(s Settings) []jetstream.StreamConfig {
	// once: at most one message per subject, for ever; nothing removed, nothing
	// replaced. Rolled up or scheduled messages are off, since both could forge.
	once := func(name, subjects, what string) jetstream.StreamConfig {
		return jetstream.StreamConfig{Name: name, Subjects: []string{subjects}, Description: what,
			MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
			DenyDelete: true, DenyPurge: true, AllowDirect: true, MaxMsgSize: MaxEvent,
			// As short as it may be: by another's message id, a service could have the
			// other's event be taken for a repetition.
			Duplicates: 100 * time.Millisecond}
	}
	all := []jetstream.StreamConfig{
		once(StreamLog, "pawl.rotation.*.*.*", "The saga log: the only saga state"),
		once(StreamSealed, "pawl.sealed.*.*.*", "Sealed credentials, one envelope per recipient"),
		once(StreamAudit, "pawl.audit.>", "The audit trail"),
		once(StreamAlarm, "pawl.alarm.*.*", "What was decided about each alert"),
		once(StreamEvidence, "pawl.evidence.*.*.*.*", "What emergencies leave to read, sealed to the incident key; nobody erases it"),
		{Name: StreamRequest, Subjects: []string{RequestSubject("*")}, Description: "Requests not yet answered", Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew},
		// A stream of its own, as a stream takes one message after the other.
		{Name: StreamAsked, Subjects: []string{AskedSubject("*", "*")}, Description: "Requests not yet answered, of users with an account of their own", Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew, MaxMsgSize: 2 * MaxEvent},
		{Name: StreamEmergency, Subjects: []string{"pawl.emergency.*"}, Description: "Emergencies not yet answered", Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew},
		{Name: StreamAlert, Subjects: alerts, Description: "Alerts, as their sources told them", MaxAge: 90 * 24 * time.Hour, MaxMsgs: 100_000, MaxMsgSize: MaxEvent, AllowDirect: true,
			Duplicates: 100 * time.Millisecond}, // see once
		{Name: StreamAnswer, Subjects: []string{"pawl.answer.*"}, Description: "What became of each request", MaxMsgsPerSubject: 1, MaxAge: 30 * 24 * time.Hour, AllowDirect: true},
		{Name: StreamTimer, Subjects: []string{"pawl.timer.>"}, Description: "Deadlines, waits and wake-ups", MaxMsgsPerSubject: 1, AllowMsgSchedules: true, AllowDirect: true},
		{Name: StreamNote, Subjects: []string{"pawl.note.>"}, Description: "What the audit trail must know beside the log", Discard: jetstream.DiscardNew, DenyDelete: true, DenyPurge: true, AllowDirect: true},
		{Name: StreamDead, Subjects: []string{"pawl.dead.*"}, Description: "What could not be decoded", Discard: jetstream.DiscardNew, DenyDelete: true, DenyPurge: true, AllowDirect: true},
		// In files, as the others: it is to show whether the store stores.
		{Name: StreamLive, Subjects: []string{LiveSubject("*")}, Description: "The newest sign of life of each service", MaxMsgsPerSubject: 1, MaxMsgSize: 1 << 10, AllowDirect: true},
	}
	for i := range all {
		all[i].Storage = jetstream.FileStorage
		all[i].MaxBytes = limits[all[i].Name]
		all[i].Replicas = max(1, s.Replicas)
		if all[i].Name == StreamSealed {
			all[i].DenyPurge = false // the db-rotator, and only it, erases
		}
		if all[i].Name == StreamAlarm {
			all[i].MaxAge = 90 * 24 * time.Hour // as long as the alerts
		}
		// A group begins in one batch. (Elsewhere nobody needs that.)
		all[i].AllowAtomicPublish = all[i].Name == StreamLog
	}
	return all
}

// Consumer is a durable consumer and the service that alone may bind it.
type Consumer struct {
	Stream string
	Owner  string
	Config jetstream.ConsumerConfig
}

// Consumers returns the durable consumers, derived from the saga table.
func Consumers(s Settings) []Consumer {
	var all []Consumer
	add := func(stream, owner, durable string, subjects ...string) {
		all = append(all, Consumer{stream, owner, jetstream.ConsumerConfig{
			Durable: durable, FilterSubjects: subjects, AckPolicy: jetstream.AckExplicitPolicy,
			AckWait: s.AckWait, MaxDeliver: -1, MaxAckPending: -1, Replicas: max(1, s.Replicas)}})
	}
	for _, service := range saga.Services {
		for _, urgent := range []bool{false, true} {
			var triggers []string
			for _, e := range saga.Triggers(service, urgent) {
				triggers = append(triggers, LogSubject("*", "*", e))
			}
			if len(triggers) > 0 {
				add(StreamLog, service, ConsumerOf(service, urgent), triggers...)
				add(StreamTimer, service, ConsumerOf(service, urgent), WakeSubject(service, "*"))
			}
		}
	}
	add(StreamRequest, saga.Scheduler, ConsumerRequests, RequestSubject("*"))
	add(StreamAsked, saga.Scheduler, ConsumerAsked, AskedSubject("*", "*"))
	add(StreamEmergency, saga.Scheduler, ConsumerEmergencies, "pawl.emergency.*")
	add(StreamAlert, saga.Scheduler, ConsumerAlerts, alerts...)
	add(StreamLog, saga.Scheduler, ConsumerTimekeeper, "pawl.rotation.*.*.*")
	add(StreamTimer, saga.Scheduler, ConsumerDeadlines, "pawl.timer.deadline.*")
	add(StreamTimer, saga.Scheduler, ConsumerDues, DueSubject("*"))
	add(StreamLog, saga.Auditor, saga.Auditor, "pawl.rotation.*.*.*")
	add(StreamNote, saga.Auditor, saga.Auditor, "pawl.note.>")
	add(StreamDead, saga.Auditor, saga.Auditor, "pawl.dead.*")
	return all
}

// Provision creates what is missing and brings the rest up to date; only the
// one that provisions may, the services merely bind. Idempotent: what is as it
// should be is not written again, since a server that is killed while it writes
// a stream's description cannot read the stream any more.
func Provision(ctx context.Context, js jetstream.JetStream, s Settings) error {
	// The smallest limits first: they keep outsiders' floods away from the disk, so
	// they come first on a server that cannot reserve all of them.
	streams := Streams(s)
	slices.SortStableFunc(streams, func(a, b jetstream.StreamConfig) int { return cmp.Compare(a.MaxBytes, b.MaxBytes) })
	for _, want := range streams {
		if err := provisionStream(ctx, js, want); err != nil {
			return fmt.Errorf("stream %s: %w", want.Name, err)
		}
	}
	for _, c := range Consumers(s) {
		if err := provisionConsumer(ctx, js, c); err != nil {
			return fmt.Errorf("consumer %s of %s: %w", c.Config.Durable, c.Stream, err)
		}
	}
	return nil
}

func provisionStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) error {
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if _, err = js.CreateStream(ctx, want); tooLittleSpace(err) {
			want.MaxBytes = 0
			_, err = js.CreateStream(ctx, want)
		}
		return err
	}
	if err != nil {
		return err
	}
	have := stream.CachedInfo().Config
	want.Metadata = have.Metadata // of a restored store: see RestoreMark
	if sameStream(have, want) {
		return nil
	}
	if _, err = js.UpdateStream(ctx, want); tooLittleSpace(err) {
		if want.MaxBytes = max(0, have.MaxBytes); sameStream(have, want) {
			return nil
		}
		_, err = js.UpdateStream(ctx, want)
	}
	return err
}

// sameStream reports whether a stream is as it should be.
func sameStream(have, want jetstream.StreamConfig) bool {
	return Altered(have) == "" && have.Retention == want.Retention && have.Storage == want.Storage && have.Replicas == want.Replicas &&
		slices.Equal(have.Subjects, want.Subjects) && have.Description == want.Description && max(0, have.MaxBytes) == want.MaxBytes &&
		have.MaxAge == want.MaxAge && max(0, have.MaxMsgs) == want.MaxMsgs && max(0, have.MaxMsgSize) == want.MaxMsgSize && max(0, have.MaxMsgsPerSubject) == want.MaxMsgsPerSubject &&
		have.Discard == want.Discard && have.DiscardNewPerSubject == want.DiscardNewPerSubject &&
		(want.Duplicates == 0 || have.Duplicates == want.Duplicates) && have.DenyDelete == want.DenyDelete && have.DenyPurge == want.DenyPurge &&
		have.AllowDirect == want.AllowDirect && have.AllowMsgSchedules == want.AllowMsgSchedules &&
		have.AllowAtomicPublish == want.AllowAtomicPublish
}

// tooLittleSpace reports whether a server refused a stream's limit, which it counts
// as space that is taken. On such a server the disk is the limit.
func tooLittleSpace(err error) bool {
	refused := new(jetstream.APIError)
	return errors.As(err, &refused) && slices.Contains([]jetstream.ErrorCode{errStorageExceeded, errInsufficientResources, errNoPeers}, refused.ErrorCode)
}

func provisionConsumer(ctx context.Context, js jetstream.JetStream, c Consumer) error {
	consumer, err := js.Consumer(ctx, c.Stream, c.Config.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		_, err = js.CreateConsumer(ctx, c.Stream, c.Config)
		return err
	}
	if err != nil {
		return err
	}
	have := consumer.CachedInfo().Config
	filters := have.FilterSubjects
	if have.FilterSubject != "" {
		filters = []string{have.FilterSubject}
	}
	if slices.Equal(filters, c.Config.FilterSubjects) && have.AckWait == c.Config.AckWait && have.AckPolicy == c.Config.AckPolicy &&
		have.MaxDeliver == c.Config.MaxDeliver && have.MaxAckPending == c.Config.MaxAckPending && max(1, have.Replicas) == max(1, c.Config.Replicas) {
		return nil
	}
	c.Config.DeliverPolicy = have.DeliverPolicy // of a restored store: see ProvisionRestored
	_, err = js.UpdateConsumer(ctx, c.Stream, c.Config)
	return err
}

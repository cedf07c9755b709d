package bus

import (
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
	StreamEmergency = "PAWL_EMERGENCY"
	StreamAlert     = "PAWL_ALERT"
	StreamAlarm     = "PAWL_ALARM"
	StreamAnswer    = "PAWL_ANSWER"
	StreamTimer     = "PAWL_TIMER"
	StreamNote      = "PAWL_NOTE"
	StreamDead      = "PAWL_DEAD"
	StreamAudit     = "PAWL_AUDIT"
	StreamEvidence  = "PAWL_EVIDENCE"
)

// Durable consumers beside those of each service's steps (ConsumerOf).
const (
	ConsumerRequests    = "requests"    // scheduler, on StreamRequest
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
		{Name: StreamRequest, Subjects: []string{"pawl.request.*"}, Description: "Requests not yet answered", Retention: jetstream.WorkQueuePolicy},
		{Name: StreamEmergency, Subjects: []string{"pawl.emergency.*"}, Description: "Emergencies not yet answered", Retention: jetstream.WorkQueuePolicy},
		{Name: StreamAlert, Subjects: []string{"pawl.alert.*"}, Description: "Alerts, as their sources told them", MaxAge: 90 * 24 * time.Hour, MaxMsgs: 100_000, MaxMsgSize: MaxEvent, AllowDirect: true},
		{Name: StreamAnswer, Subjects: []string{"pawl.answer.*"}, Description: "What became of each request", MaxMsgsPerSubject: 1, MaxAge: 30 * 24 * time.Hour, AllowDirect: true},
		{Name: StreamTimer, Subjects: []string{"pawl.timer.>"}, Description: "Deadlines, waits and wake-ups", MaxMsgsPerSubject: 1, AllowMsgSchedules: true, AllowDirect: true},
		{Name: StreamNote, Subjects: []string{"pawl.note.>"}, Description: "What the audit trail must know beside the log", DenyDelete: true, DenyPurge: true, AllowDirect: true},
		{Name: StreamDead, Subjects: []string{"pawl.dead.*"}, Description: "What could not be decoded", DenyDelete: true, DenyPurge: true, AllowDirect: true},
	}
	for i := range all {
		all[i].Storage = jetstream.FileStorage
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
	add(StreamRequest, saga.Scheduler, ConsumerRequests, "pawl.request.*")
	add(StreamEmergency, saga.Scheduler, ConsumerEmergencies, "pawl.emergency.*")
	add(StreamAlert, saga.Scheduler, ConsumerAlerts, "pawl.alert.*")
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
	for _, want := range Streams(s) {
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
		_, err = js.CreateStream(ctx, want)
		return err
	}
	if err != nil {
		return err
	}
	have := stream.CachedInfo().Config
	same := have.Retention == want.Retention && have.Storage == want.Storage && have.Replicas == want.Replicas &&
		slices.Equal(have.Subjects, want.Subjects) && have.Description == want.Description &&
		have.MaxAge == want.MaxAge && max(0, have.MaxMsgs) == want.MaxMsgs && max(0, have.MaxMsgSize) == want.MaxMsgSize && max(0, have.MaxMsgsPerSubject) == want.MaxMsgsPerSubject &&
		have.Discard == want.Discard && have.DiscardNewPerSubject == want.DiscardNewPerSubject &&
		(want.Duplicates == 0 || have.Duplicates == want.Duplicates) && have.DenyDelete == want.DenyDelete && have.DenyPurge == want.DenyPurge &&
		have.AllowDirect == want.AllowDirect && have.AllowMsgSchedules == want.AllowMsgSchedules &&
		have.AllowAtomicPublish == want.AllowAtomicPublish
	if same {
		return nil
	}
	_, err = js.UpdateStream(ctx, want)
	return err
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
	_, err = js.UpdateConsumer(ctx, c.Stream, c.Config)
	return err
}

package agenda

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/protobuf/proto"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/schedule"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/scheduler/internal/admission"
)

// New returns the agenda of the bus; clerk admits what is due.
func New(d service.Dependencies, clerk *admission.Clerk) *Agenda {
	return newAgenda(onBus{d, clerk}, d.Inventory, d.Log, d.Clock.Now)
}

// atOnce is how many timers are handled at a time.
const atOnce = 16

// Run hears timers until ctx ends.
func (a *Agenda) Run(ctx context.Context, d service.Dependencies) error {
	if err := a.observe(d.Metrics); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	slots := make(chan struct{}, atOnce)
	stop, err := service.Consume(ctx, d, bus.StreamTimer, bus.ConsumerDues, func(m service.Message) {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			a.receive(ctx, m)
		}()
	}, jetstream.PullMaxMessages(4*atOnce))
	if err != nil {
		return err
	}
	defer stop()
	<-ctx.Done()
	return nil
}

// longest is how long a timer is worked on without being given to another replica:
// more than a preflight takes.
const longest = time.Minute

func (a *Agenda) receive(ctx context.Context, m service.Message) {
	working, done := context.WithTimeout(ctx, longest)
	defer done()
	go m.Heartbeat(working)
	meta, err := m.Metadata()
	if err != nil {
		a.log.Error("timer without metadata", "error", err)
		return
	}
	lead := m.Subject()[len(bus.DueSubject("")):]
	due := &pawlv1.Due{}
	var again time.Duration
	if err = bus.Decode(m.Headers(), m.Data(), due); err != nil {
		err = a.Look(ctx, lead) // only the scheduler can publish here: another version's
	} else {
		again, err = a.fired(ctx, lead, due, turn{rotation: admission.RotationID(meta.Timestamp, meta.Sequence.Stream), asked: meta.Timestamp, delivered: meta.NumDelivered})
	}
	if ctx.Err() != nil {
		return // another replica, or the next start, hears it
	}
	if err != nil {
		a.log.Warn("due date deferred", "credential", lead, "error", err)
		again = max(again, time.Second)
	}
	if again > 0 {
		err = m.NakWithDelay(again)
	} else {
		err = m.Ack()
	}
	if err != nil {
		a.log.Warn("due date not settled; it will be heard again", "credential", lead, "error", err)
	}
}

// onBus is the world.
type onBus struct {
	d     service.Dependencies
	clerk *admission.Clerk
}

func (w onBus) Past(ctx context.Context, credential string) (schedule.Turned, string, bool, error) {
	return schedule.Past(ctx, w.d.Bus, credential)
}

func (w onBus) Armed(ctx context.Context, credential string) (due *pawlv1.Due, seq uint64, err error) {
	due = &pawlv1.Due{}
	if seq, err = w.last(ctx, bus.ArmSubject("due", credential), due); err != nil || seq > 0 {
		return due, seq, err
	}
	if fired, err := w.last(ctx, bus.DueSubject(credential), due); err != nil || fired == 0 {
		return nil, 0, err
	}
	return due, 0, nil
}

// last reads what a subject of the timers holds; seq is 0 where that is nothing.
func (w onBus) last(ctx context.Context, subject string, into proto.Message) (seq uint64, err error) {
	m, err := w.d.Bus.Last(ctx, bus.StreamTimer, subject, into)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", subject, err)
	}
	if m == nil {
		return 0, nil
	}
	return m.Sequence, nil
}

func (w onBus) Arm(ctx context.Context, credential string, at time.Time, due *pawlv1.Due, seq uint64) error {
	var only []jetstream.PublishOpt
	if seq != overAny {
		only = append(only, jetstream.WithExpectLastSequencePerSubject(seq))
	}
	err := w.d.Bus.Publish(ctx, bus.ArmSubject("due", credential), due, nats.Header{
		// jetstream.WithScheduleAt cuts off the fraction of a second, and so fires early.
		jetstream.ScheduleHeader:       {"@at " + at.UTC().Format(time.RFC3339Nano)},
		jetstream.ScheduleTargetHeader: {bus.DueSubject(credential)},
	}, only...)
	if bus.IsConflict(err) {
		return bus.ErrConflict
	}
	return err
}

// Fire does what the server does when a timer fires: it stores the message on the
// timer's target, which in the same moment takes the timer away. If another replica
// or the server was first, nothing is stored.
func (w onBus) Fire(ctx context.Context, credential string, before time.Time) (at time.Time, err error) {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	arm := bus.ArmSubject("due", credential)
	m, err := w.d.Bus.Last(ctx, bus.StreamTimer, arm, nil)
	if err != nil {
		return at, fmt.Errorf("read %s: %w", arm, err)
	}
	if m == nil {
		return at, nil
	}
	if at, err = time.Parse(time.RFC3339, strings.TrimPrefix(m.Header.Get(jetstream.ScheduleHeader), "@at ")); err != nil {
		return at, fmt.Errorf("%s: schedule %q: %w", arm, m.Header.Get(jetstream.ScheduleHeader), err)
	}
	if at.After(before) {
		return at, nil
	}
	header := nats.Header{jetstream.SchedulerHeader: {arm}, jetstream.ScheduleNextHeader: {"purge"}}
	if kind := m.Header.Get("Content-Type"); kind != "" {
		header.Set("Content-Type", kind)
	}
	_, err = w.d.Bus.PublishMsg(ctx, &nats.Msg{Subject: bus.DueSubject(credential), Header: header, Data: m.Data}, jetstream.WithExpectLastSequenceForSubject(m.Sequence, arm))
	if bus.IsConflict(err) {
		err = nil
	}
	return time.Time{}, err
}

func (w onBus) Turns(ctx context.Context) (*pawlv1.Turns, uint64, error) {
	turns := &pawlv1.Turns{}
	seq, err := w.last(ctx, bus.TurnsSubject, turns)
	return turns, seq, err
}

func (w onBus) SetTurns(ctx context.Context, turns *pawlv1.Turns, seq uint64) error {
	err := w.d.Bus.Publish(ctx, bus.TurnsSubject, turns, nil, jetstream.WithExpectLastSequencePerSubject(seq))
	if bus.IsConflict(err) {
		return bus.ErrConflict
	}
	return err
}

func (w onBus) Ended(ctx context.Context, t *pawlv1.Turn, now time.Time) (bool, error) {
	log, err := w.d.Bus.ReadRotation(ctx, t.GetCredential(), t.GetRotation())
	if err != nil {
		return false, err
	}
	if log.Empty() {
		return w.d.Clock.Since(t.GetBegun().AsTime()) > beginWithin, nil
	}
	for _, name := range log.Group() {
		newest, err := w.d.Bus.ReadNewest(ctx, name)
		if err == nil && newest.Rotation != t.GetRotation() {
			continue // superseded, or followed by another
		}
		if r, err := rotation.Of(newest, err); err != nil || r.Open() {
			return false, err
		}
	}
	return true, nil
}

func (w onBus) Begin(ctx context.Context, t turn) (refusal string, again time.Duration, err error) {
	return w.clerk.Turn(ctx, admission.Turn{Credential: t.credential, Rotation: t.rotation, Follows: t.follows, Asked: t.asked, Delivered: t.delivered, Request: t.request, Reason: t.reason})
}

func (w onBus) Note(ctx context.Context, n *pawlv1.Note) { w.d.Note(ctx, n) }

// observe makes the metrics.
func (a *Agenda) observe(m meters) error {
	if err := m.ObserveCredentials(a.ages); err != nil {
		return err
	}
	meter := m.Meter()
	turns, err := meter.Int64Counter("pawl_schedule_turns", metric.WithDescription("Turns that a schedule has begun, or had refused, by outcome"))
	if err != nil {
		return err
	}
	a.count = func(outcome string) { turns.Add(context.Background(), 1, label("outcome", outcome)) }
	due, err := meter.Float64ObservableGauge("pawl_credential_due", metric.WithUnit("s"), metric.WithDescription("Until the schedule turns the credential; below 0: it is late, and tries"))
	if err != nil {
		return err
	}
	soon, err := meter.Int64ObservableGauge("pawl_credential_due_soon", metric.WithDescription("1 while the credential is due within its `remind`"))
	if err != nil {
		return err
	}
	blocked, err := meter.Int64ObservableGauge("pawl_schedule_blocked", metric.WithDescription("1 while the credential is due and something keeps the schedule from turning it"))
	if err != nil {
		return err
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		a.dues(func(credential string, in time.Duration, isSoon, isBlocked bool) {
			o.ObserveFloat64(due, in.Seconds(), label("credential", credential))
			o.ObserveInt64(soon, one(isSoon), label("credential", credential))
			o.ObserveInt64(blocked, one(isBlocked), label("credential", credential))
		})
		return nil
	}, due, soon, blocked)
	return err
}

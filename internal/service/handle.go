package service

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/fault"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Delays of redelivery. A bare Nak would come back at once and for ever.
const (
	staleAgain   = 50 * time.Millisecond // a follower's answer lagged behind the trigger
	longestRetry = 30 * time.Second
	headroom     = 0.9 // an effect ends this share into the saga's deadline, so that no late effect outlives a time-out
)

// handle reacts to a trigger: an event of the log, or a wake-up. The trigger's
// content does not matter, only which credential it is about: the log decides.
// It settles the message in every case but death.
func (l *loop) handle(ctx context.Context, m Message, credential string) {
	meta, err := m.Metadata()
	if err != nil {
		l.log.Error("message without metadata", "subject", m.Subject(), "error", err)
		return
	}
	if meta.NumDelivered > 1 {
		l.metrics.Redelivered(l.service.Name)
	}
	again, err := l.advance(ctx, m, meta, credential)
	if ctx.Err() != nil {
		return // shutting down: another replica, or the next start, gets it
	}
	if err != nil {
		l.log.WarnContext(ctx, "trigger deferred", "credential", credential, "again", again, "error", err)
	}
	if again > 0 {
		err = m.NakWithDelay(again)
	} else {
		err = m.Ack()
	}
	if err != nil {
		l.log.Warn("message not settled; it will be delivered again", "subject", m.Subject(), "error", err)
	}
}

// advance folds the log, and does the step that is due if it is ours. It
// returns 0 when the trigger has served its purpose.
func (l *loop) advance(ctx context.Context, m Message, meta *jetstream.MsgMetadata, credential string) (again time.Duration, err error) {
	for {
		log, err := l.deps.Bus.ReadNewest(ctx, credential)
		if err != nil {
			return Retry(meta.NumDelivered), err
		}
		if meta.Stream == bus.StreamLog && log.LastSeq() < meta.Sequence.Stream {
			return staleAgain, nil // acknowledging on a stale fold would lose the trigger
		}
		if len(log.Records) == 0 {
			return 0, nil
		}
		state, err := log.Fold()
		if errors.Is(err, saga.ErrUnknownEvent) {
			return Retry(meta.NumDelivered), err // a replica of its version is asked soon, or comes
		}
		if err != nil {
			return longestRetry, err
		}
		step := state.Next()
		if step == nil || step.Owner != l.service.Name {
			return 0, nil
		}
		keep := log.Records[0].Body.GetRequested().GetKeep().AsDuration()
		if wait := -Late(l.deps.Clock, state, step, keep); step.Waits == saga.ForKeep && wait > 0 {
			if wait < 2*time.Second {
				return wait, nil
			}
			return 0, nil // the scheduler's timer wakes us
		}
		again, err := l.performable(ctx, m, meta, log, state, step)
		if errors.Is(err, bus.ErrConflict) {
			l.log.InfoContext(ctx, "the log has moved on", "credential", credential, "rotation", log.Rotation, "step", step.Name)
			continue // somebody else appended: fold again
		}
		return again, err
	}
}

// performable is perform, which something urgent or a newer event may interrupt: then
// the log has moved on, or is about to.
func (l *loop) performable(ctx context.Context, m Message, meta *jetstream.MsgMetadata, log bus.Log, state saga.State, step *saga.Step) (again time.Duration, err error) {
	if state.Flow.Urgent {
		return l.perform(ctx, m, meta, log, state, step)
	}
	within, end := l.working.begin(ctx, log.Credential, log.LastSeq())
	defer end()
	again, err = l.perform(within, m, meta, log, state, step)
	if within.Err() != nil && ctx.Err() == nil {
		l.log.InfoContext(ctx, "interrupted: no longer due", "credential", log.Credential, "rotation", log.Rotation, "step", step.Name)
		return staleAgain, nil
	}
	return again, err
}

// perform does one step and appends its result.
func (l *loop) perform(ctx context.Context, m Message, meta *jetstream.MsgMetadata, log bus.Log, state saga.State, step *saga.Step) (again time.Duration, err error) {
	r := l.rotation(log, state, step)
	ctx, span := l.startSpan(ctx, m, meta, log, state, step)
	defer span.End()
	recorder := &effect.Recorder{Credential: log.Credential, Step: step.Name}
	began := time.Now()
	result, err := l.permitted(effect.With(ctx, recorder), m, log, r)
	took := time.Since(began)

	if ctx.Err() != nil {
		return 0, ctx.Err() // the process ends; nothing is known, nothing is said
	}
	emits, outcome := step.Emits, "done"
	var waiting *saga.NotYet
	switch {
	case err == nil:
	case errors.Is(err, errNotDue):
		return 0, bus.ErrConflict
	case errors.As(err, &waiting):
		span.SetAttributes(attribute.String("pawl.waiting", waiting.Why))
		l.waiting(ctx, r, waiting)
		l.metrics.Step(l.service.Name, state.Flow.Name, step.Name, "waiting", took)
		return waiting.Again, nil
	case step.Retriable(), !saga.IsPermanent(err) && time.Now().Add(Retry(meta.NumDelivered)).Before(effectDeadline(r)):
		span.SetStatus(codes.Error, err.Error())
		l.metrics.Step(l.service.Name, state.Flow.Name, step.Name, "retry", took)
		l.retrying(ctx, r, meta, err)
		return Retry(meta.NumDelivered), err
	default:
		span.SetStatus(codes.Error, err.Error())
		emits, outcome = step.Fails, "failed"
		result = &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: step.Name, Reason: err.Error()}}}
	}
	if result == nil {
		result = &pawlv1.Event{}
	}
	result.StartedAt, result.Attempt, result.Instance = timestamppb.New(began), uint32(meta.NumDelivered), l.instance
	result.Operations = append(result.Operations, recorder.Operations()...)
	result.Warnings = append(result.Warnings, recorder.Warnings()...)

	if l.deps.Sealed != nil {
		if err := l.deps.Sealed.Noted(ctx); err != nil {
			return Retry(meta.NumDelivered), err
		}
	}
	fault.Point(log.Credential, step.Name+".append.before")
	if _, err = l.append(ctx, log, emits, result); err != nil {
		if errors.Is(err, bus.ErrConflict) {
			return 0, err
		}
		return Retry(meta.NumDelivered), err
	}
	fault.Point(log.Credential, step.Name+".append.after")
	l.metrics.Step(l.service.Name, state.Flow.Name, step.Name, outcome, took)
	l.log.InfoContext(ctx, string(emits), "credential", log.Credential, "rotation", log.Rotation, "step", step.Name, "took", took, "summary", result.GetSummary(), "reason", result.GetFailure().GetReason())
	return 0, nil
}

// permitted is run, unless a restore from a backup stands in the way.
func (l *loop) permitted(ctx context.Context, m Message, log bus.Log, r *Rotation) (*pawlv1.Event, error) {
	verdict, err := restored.Of(ctx, l.deps.Bus, log)
	if err != nil { // no reason to fail the step
		l.log.WarnContext(ctx, "step deferred", "credential", log.Credential, "rotation", log.Rotation, "step", r.Step.Name, "error", err)
		return nil, &saga.NotYet{Again: restored.Again}
	}
	if err := restored.Permit(verdict, r.Step); err != nil {
		return nil, err
	}
	return l.run(ctx, m, r)
}

// run calls the handler within the effect's own deadline.
func (l *loop) run(ctx context.Context, m Message, r *Rotation) (*pawlv1.Event, error) {
	if r.Credential == nil {
		return nil, saga.Permanentf("credential %q is no longer in pawl.yaml: put it back until the rotation has ended", l.credentialOf(r))
	}
	until := effectDeadline(r)
	if r.Step.Retriable() {
		until = time.Now().Add(fault.Deadline(r.Step.Deadline))
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	go m.Heartbeat(ctx)
	result, err := l.service.Steps[r.Step.Name](ctx, r)
	if err != nil && ctx.Err() != nil && !saga.IsPermanent(err) {
		err = fmt.Errorf("not done within %v: %w", Limit(r.Step, r.Requested()), err)
	}
	return result, err
}

func effectDeadline(r *Rotation) time.Time {
	return r.Deadline.Add(-time.Duration((1 - headroom) * float64(Limit(r.Step, r.Requested()))))
}

// Limit is how long a step may be due before it is given up, or called stalled.
func Limit(step *saga.Step, begin *pawlv1.Requested) time.Duration {
	limit := fault.Deadline(step.Deadline)
	if step.Waits == saga.ForDrain {
		return max(limit, begin.GetDrainDeadline().AsDuration())
	}
	return limit
}

// Late is for how long a step has been due, in time that really passed; below 0: how
// long it still has to wait.
func Late(c *clock.Clock, state saga.State, step *saga.Step, keep time.Duration) time.Duration {
	from, wait := state.DueAfter(step, keep)
	return c.Since(from) - wait
}

var errNotDue = errors.New("the step is no longer due")

func (l *loop) rotation(log bus.Log, state saga.State, step *saga.Step) *Rotation {
	r := &Rotation{
		ID: log.Rotation, Credential: l.deps.Inventory.Credentials[log.Credential], State: state, Step: step,
		Clock: l.deps.Clock, Events: make(map[saga.Event]*pawlv1.Event, len(log.Records)),
	}
	for _, record := range log.Records {
		r.Events[record.Event] = record.Body
	}
	r.Deadline = time.Now().Add(Limit(step, r.Requested()) - Late(r.Clock, state, step, r.Requested().GetKeep().AsDuration()))
	r.StillDue = func(ctx context.Context) error {
		_, seq, err := l.deps.Bus.Newest(ctx, log.Credential)
		if err == nil && seq != log.LastSeq() {
			err = errNotDue
		}
		return err
	}
	return r
}

// append stores an event as a child of the span in ctx.
func (l *loop) append(ctx context.Context, log bus.Log, e saga.Event, body *pawlv1.Event) (uint64, error) {
	ctx, span := l.tracer.Start(ctx, "send "+string(e), trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		attribute.String("messaging.system", "nats"), attribute.String("messaging.operation.type", "send"),
		attribute.String("messaging.destination.name", bus.LogSubject(log.Credential, log.Rotation, e)),
		attribute.String("messaging.destination.template", bus.LogSubject("{credential}", "{rotation}", e))))
	defer span.End()
	header := telemetry.Inject(ctx)
	log.PassUrgency(header)
	seq, err := l.deps.Bus.Append(ctx, log.Credential, log.Rotation, e, body, header, log.LastSeq())
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	return seq, err
}

// startSpan makes the picture flat: every step hangs under requested, or, once
// the rotation has turned round, under the event that turned it; the message
// that triggered it is a link.
func (l *loop) startSpan(ctx context.Context, m Message, meta *jetstream.MsgMetadata, log bus.Log, state saga.State, step *saga.Step) (context.Context, trace.Span) {
	return l.tracer.Start(AnchorContext(ctx, log, state), step.Name, trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithLinks(trace.Link{SpanContext: telemetry.Extract(m.Headers())}),
		trace.WithAttributes(
			attribute.String("messaging.system", "nats"), attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", m.Subject()), attribute.String("messaging.consumer.group.name", meta.Consumer),
			attribute.Int64("messaging.nats.stream.sequence", int64(meta.Sequence.Stream)), attribute.Int64("messaging.nats.delivery_count", int64(meta.NumDelivered)),
			attribute.String("rotation.credential", log.Credential), attribute.String("rotation.id", log.Rotation), attribute.String("rotation.flow", state.Flow.Name)))
}

// AnchorContext returns ctx with the span under which what happens next in the
// rotation is drawn.
func AnchorContext(ctx context.Context, log bus.Log, state saga.State) context.Context {
	anchor := log.Records[0].Header
	if state.Failed != nil {
		anchor = log.Find(state.Failed.Event).Header
	}
	return trace.ContextWithRemoteSpanContext(ctx, telemetry.Extract(anchor))
}

// waiting notes, once per change, whom a step waits for; a wait without a reason
// is too short to be spoken of.
func (l *loop) waiting(ctx context.Context, r *Rotation, w *saga.NotYet) {
	if w.Why == "" || l.lastWait.same(l.about(r), w.Why+strings.Join(w.Laggards, ",")+past(r.Deadline)) {
		return
	}
	l.deps.Note(ctx, &pawlv1.Note{Kind: "waiting", Credential: l.credentialOf(r), Rotation: r.ID, Step: r.Step.Name, Text: w.Why, Laggards: w.Laggards})
}

// about keys what is said of a step: credentials that turn together share the
// rotation's id.
func (l *loop) about(r *Rotation) string { return l.credentialOf(r) + " " + r.ID + " " + r.Step.Name }

// past changes once the deadline is over, so that who or what is in the way is
// said again after the scheduler's note that the step is stalled.
func past(deadline time.Time) string {
	if time.Now().After(deadline) {
		return " (late)"
	}
	return ""
}

// retrying notes, once per change, what a step fails on that is tried again: it may
// be tried until its deadline, and whoever looks sees why it takes so long.
func (l *loop) retrying(ctx context.Context, r *Rotation, meta *jetstream.MsgMetadata, err error) {
	if meta.NumDelivered < 3 || l.lastWait.same(l.about(r), err.Error()+past(r.Deadline)) {
		return
	}
	l.deps.Note(ctx, &pawlv1.Note{Kind: "retrying", Credential: l.credentialOf(r), Rotation: r.ID, Step: r.Step.Name, Text: err.Error()})
}

func (l *loop) credentialOf(r *Rotation) string {
	if r.Credential == nil {
		return ""
	}
	return r.Credential.Name
}

// Retry is when a message that was delivered so often is to come again:
// exponentially from 100 ms to longestRetry, with jitter. The count is a hint: the
// server forgets it if it is killed soon after the delivery, and when the consumer
// is reset after a step of the clock. Nothing but a delay may depend on it.
func Retry(delivered uint64) time.Duration {
	base := min(longestRetry, 50*time.Millisecond<<min(delivered, 12))
	return base/2 + rand.N(base/2+1)
}

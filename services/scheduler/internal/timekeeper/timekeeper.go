// Package timekeeper keeps the deadlines. For the newest event of each rotation
// it arms one timer on the bus; when that fires and nothing has happened since,
// a step that may fail has timed out, and one that may not is stalled. Timers
// are NATS message schedules, so they outlive every service; and each minute
// the open rotations are looked at anew, so that a lost timer or trigger only
// delays.
package timekeeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	// settle is how long an event must have been the newest before a timer is
	// armed for it: most steps are over sooner, and need none.
	settle = time.Second
	sweep  = time.Minute
)

// Clock arms and hears timers.
type Clock struct {
	d        service.Dependencies
	mu       sync.Mutex
	settling map[string]settling  // by credential: the newest event seen
	stalled  map[string]stall     // by credential: what was said to be stalled
	since    map[string]time.Time // by credential: when the current one was made or adopted
}

type settling struct {
	seq   uint64
	timer *time.Timer
}

type stall struct{ rotation, step string }

// New returns a clock.
func New(d service.Dependencies) *Clock {
	return &Clock{d: d, settling: map[string]settling{}, stalled: map[string]stall{}, since: map[string]time.Time{}}
}

// Run keeps time until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	if err := c.d.Metrics.ObserveCredentials(c.ages); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	for _, of := range []struct {
		stream, durable string
		handle          func(context.Context, jetstream.Msg, *jetstream.MsgMetadata) (time.Duration, error)
	}{{bus.StreamLog, bus.ConsumerTimekeeper, c.event}, {bus.StreamTimer, bus.ConsumerDeadlines, c.deadline}} {
		consumer, err := service.Bind(ctx, c.d.Bus, of.stream, of.durable)
		if err != nil {
			return err
		}
		consuming, err := consumer.Consume(func(m jetstream.Msg) { c.settle(ctx, m, of.handle) }, jetstream.PullMaxMessages(256))
		if err != nil {
			return fmt.Errorf("consumer %s: %w", of.durable, err)
		}
		defer consuming.Stop()
	}
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	for {
		c.sweep(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (c *Clock) settle(ctx context.Context, m jetstream.Msg, handle func(context.Context, jetstream.Msg, *jetstream.MsgMetadata) (time.Duration, error)) {
	meta, err := m.Metadata()
	if err != nil {
		c.d.Log.Error("message without metadata", "error", err)
		return
	}
	again, err := handle(ctx, m, meta)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.d.Log.Warn("timer deferred", "subject", m.Subject(), "error", err)
		again = max(again, time.Second)
	}
	if again > 0 {
		err = m.NakWithDelay(again)
	} else {
		err = m.Ack()
	}
	if err != nil {
		c.d.Log.Warn("timer not settled; it will be delivered again", "subject", m.Subject(), "error", err)
	}
}

// event arms a timer for an event once it has stayed the newest. Where this
// process dies before, the sweep makes up for it.
func (c *Clock) event(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata) (time.Duration, error) {
	credential, _, _, err := bus.ParseLogSubject(m.Subject())
	if err != nil {
		return 0, err
	}
	seq := meta.Sequence.Stream
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.settling[credential]
	if now.seq > seq {
		return 0, nil
	}
	if now.timer != nil {
		now.timer.Stop()
	}
	c.settling[credential] = settling{seq, time.AfterFunc(settle, func() {
		if err := c.arm(ctx, credential, seq); err != nil && ctx.Err() == nil {
			c.d.Log.Warn("timer not armed; the sweep does it within a minute", "credential", credential, "error", err)
		}
	})}
	return 0, nil
}

// arm sets the timer of the step that is due, if trigger is still the newest event.
func (c *Clock) arm(ctx context.Context, credential string, trigger uint64) error {
	log, state, err := c.read(ctx, credential)
	if err != nil {
		return err
	}
	c.note(ctx, credential, log, state)
	step := state.Next()
	if step == nil || log.LastSeq() != trigger {
		return nil
	}
	begin := log.Records[0].Body.GetRequested()
	due := state.Due(step, begin.GetKeep().AsDuration())
	wake := &pawlv1.Wake{Rotation: log.Rotation, Sequence: log.LastSeq()}
	if step.Waits == saga.ForKeep {
		if err := c.schedule(ctx, bus.ArmSubject("wake", credential), bus.WakeSubject(step.Owner, credential), due, wake, log); err != nil {
			return err
		}
	}
	return c.schedule(ctx, bus.ArmSubject("deadline", credential), bus.DeadlineSubject(credential), due.Add(service.Limit(step, begin)), wake, log)
}

func (c *Clock) schedule(ctx context.Context, arm, target string, at time.Time, wake *pawlv1.Wake, log bus.Log) error {
	header := nats.Header{}
	if parent := log.Records[len(log.Records)-1].Header.Get("traceparent"); parent != "" {
		header.Set("traceparent", parent)
	}
	// jetstream.WithScheduleAt cuts off the fraction of a second, and so fires early.
	header.Set(jetstream.ScheduleHeader, "@at "+at.UTC().Format(time.RFC3339Nano))
	header.Set(jetstream.ScheduleTargetHeader, target)
	return c.d.Bus.Publish(ctx, arm, wake, header)
}

// deadline hears a timer.
func (c *Clock) deadline(ctx context.Context, m jetstream.Msg, _ *jetstream.MsgMetadata) (time.Duration, error) {
	wake := &pawlv1.Wake{}
	if err := bus.Decode(m.Headers(), m.Data(), wake); err != nil {
		return 0, nil // only the scheduler can publish here; the sweep makes up for it
	}
	credential := m.Subject()[len("pawl.timer.deadline."):]
	log, state, err := c.read(ctx, credential)
	if err != nil {
		return 0, err
	}
	if log.LastSeq() != wake.GetSequence() {
		return 0, nil // something has happened since
	}
	return 0, c.late(ctx, credential, log, state)
}

// late gives up, or reports as stalled, a step that is past its deadline.
func (c *Clock) late(ctx context.Context, credential string, log bus.Log, state saga.State) error {
	step := state.Next()
	if step == nil {
		return nil
	}
	begin := log.Records[0].Body.GetRequested()
	due := state.Due(step, begin.GetKeep().AsDuration())
	if time.Now().Before(due.Add(service.Limit(step, begin))) {
		return nil
	}
	if step.Retriable() {
		c.report(ctx, credential, log, step, due)
		return nil
	}
	reason := fmt.Sprintf("%s did not end %q within %v", step.Owner, step.Name, service.Limit(step, begin))
	event := &pawlv1.Event{Summary: reason, Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: step.Name, Reason: reason}}}
	header := telemetry.Inject(service.AnchorContext(ctx, log, state))
	_, err := c.d.Bus.Append(ctx, credential, log.Rotation, saga.TimedOut, event, header, log.LastSeq())
	if errors.Is(err, bus.ErrConflict) {
		return nil // the step has ended after all
	}
	return err
}

// report tells people of a stalled step, once.
func (c *Clock) report(ctx context.Context, credential string, log bus.Log, step *saga.Step, due time.Time) {
	c.d.Metrics.Stalled(credential, step.Name, true)
	c.mu.Lock()
	now := stall{log.Rotation, step.Name}
	said := c.stalled[credential] == now
	c.stalled[credential] = now
	c.mu.Unlock()
	if said {
		return
	}
	contacts := ""
	for _, name := range slices.Sorted(maps.Keys(c.d.Inventory.Contacts)) {
		contacts += fmt.Sprintf("; %s: %s", name, c.d.Inventory.Contacts[name])
	}
	c.d.Note(ctx, &pawlv1.Note{Kind: "stalled", Credential: credential, Rotation: log.Rotation, Step: step.Name,
		Text: fmt.Sprintf("%s has been trying %q since %s and goes on; see docs/runbooks/stalled.md; `pawl doctor %s` shows what is in the way, `pawl resume %s` tries at once%s",
			step.Owner, step.Name, due.Format(time.RFC3339), credential, credential, contacts)})
}

// sweep looks at every credential: late steps, lost timers, lost triggers.
func (c *Clock) sweep(ctx context.Context) {
	for credential := range c.d.Inventory.Credentials {
		if err := c.sweepOne(ctx, credential); err != nil && ctx.Err() == nil {
			c.d.Log.Warn("open rotation not looked at; again in a minute", "credential", credential, "error", err)
		}
	}
}

func (c *Clock) sweepOne(ctx context.Context, credential string) error {
	log, state, err := c.read(ctx, credential)
	if err != nil {
		return err
	}
	c.note(ctx, credential, log, state)
	if len(log.Records) == 0 || state.Next() == nil || time.Since(state.Last.At) < sweep/2 {
		return nil
	}
	if err := c.late(ctx, credential, log, state); err != nil {
		return err
	}
	step := state.Next()
	if err := c.arm(ctx, credential, log.LastSeq()); err != nil {
		return err
	}
	if time.Now().Before(state.Due(step, log.Records[0].Body.GetRequested().GetKeep().AsDuration())) {
		return nil
	}
	return c.d.Bus.Publish(ctx, bus.WakeSubject(step.Owner, credential), &pawlv1.Wake{Rotation: log.Rotation, Sequence: log.LastSeq(), Cause: "sweep"}, nil)
}

func (c *Clock) read(ctx context.Context, credential string) (bus.Log, saga.State, error) {
	log, err := c.d.Bus.ReadNewest(ctx, credential)
	if err != nil || len(log.Records) == 0 {
		return log, saga.State{}, err
	}
	state, err := log.Fold()
	return log, state, err
}

// note keeps the gauges: a stall that has ended, the age of the credential.
func (c *Clock) note(ctx context.Context, credential string, log bus.Log, state saga.State) {
	if len(log.Records) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if said, ok := c.stalled[credential]; ok && (state.Next() == nil || said != stall{log.Rotation, state.Next().Name}) {
		c.d.Metrics.Stalled(credential, said.step, false)
		delete(c.stalled, credential)
	}
	if ended, ok := state.Ended(); ok && ended.Event == saga.Completed {
		c.since[credential] = ended.At
	}
}

// ages reports, at scrape time, how old each credential is and how late.
func (c *Clock) ages(report func(credential string, age, overdue time.Duration)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for credential, since := range c.since {
		age := time.Since(since)
		overdue := time.Duration(0)
		if known := c.d.Inventory.Credentials[credential]; known != nil && known.RotateEvery > 0 {
			overdue = age - known.RotateEvery
		}
		report(credential, age, overdue)
	}
}

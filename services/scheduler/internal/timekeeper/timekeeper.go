// Package timekeeper keeps the deadlines. For the newest event of each rotation
// it arms one timer on the bus; when that fires and nothing has happened since,
// a step that may fail has timed out, and one that may not is stalled. Timers
// are NATS message schedules, so they outlive every service; and each minute
// the open rotations are looked at anew, so that a lost timer or trigger only
// delays.
//
// The server arms its schedules by the wall clock, and sleeps until then by the
// monotonic one. After a step of the wall clock they fire late: after an hour, or
// after days. So each scheduler keeps the same waits in memory, in time that really
// passes, and does what is due if the bus has not.
package timekeeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/rotation"
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
	// atOnce is how many credentials a sweep looks at at a time, and how many
	// events: thousands may have come while no scheduler was there.
	atOnce = 8
	// doubt is after how many sweeps what needed nothing is read again all the
	// same: timers may have been lost.
	doubt = 60
)

// Clock arms and hears timers.
type Clock struct {
	d        service.Dependencies
	agenda   Agenda
	mu       sync.Mutex
	settling map[string]settling // by credential: the newest event seen
	stalled  map[string]stall    // by credential: what was said to be stalled
	settled  map[string]standing // by credential: what was seen to need nothing
	slots    chan struct{}
	waits    waits
}

// Agenda is told of credentials that no rotation is under way of.
type Agenda interface {
	// Look sees to it that the credential's next turn is armed. Idempotent.
	Look(ctx context.Context, credential string) error
	// LookAround does it for those whose dates depend on the credential's.
	LookAround(ctx context.Context, credential string) error
	// FireLate makes those due whose timer on the bus should have fired.
	FireLate(ctx context.Context)
	// Stepped is told that the clock of the bus was stepped.
	Stepped()
}

// standing is a log that needs nothing until then, whatever time that is.
type standing struct {
	seq   uint64
	until time.Time // zero: for ever; by the monotonic clock of this process
}

type settling struct {
	seq   uint64
	timer *time.Timer
}

type stall struct{ rotation, step string }

// New returns a clock.
func New(d service.Dependencies, agenda Agenda) *Clock {
	return &Clock{d: d, agenda: agenda, settling: map[string]settling{}, stalled: map[string]stall{}, settled: map[string]standing{}, slots: make(chan struct{}, atOnce)}
}

// Run keeps time until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	for _, of := range []struct {
		stream, durable string
		handle          func(context.Context, jetstream.Msg, *jetstream.MsgMetadata) (time.Duration, error)
	}{{bus.StreamLog, bus.ConsumerTimekeeper, c.event}, {bus.StreamTimer, bus.ConsumerDeadlines, c.deadline}} {
		stop, err := service.Consume(ctx, c.d, of.stream, of.durable, func(m service.Message) { c.receive(ctx, m, of.handle) }, jetstream.PullMaxMessages(256))
		if err != nil {
			return err
		}
		defer stop()
	}
	stepped := make(chan struct{}, 1)
	c.d.Clock.OnStep(ctx, func(clock.Step) {
		select {
		case stepped <- struct{}{}:
		default:
		}
	})
	go c.keepWaits(ctx)
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	c.forget()
	c.sweep(ctx, false)
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-stepped:
			c.agenda.Stepped()
			c.forget()
			c.sweep(ctx, true) // arms every timer by what the clock shows now
			continue
		case <-tick.C:
		}
		if n%doubt == 0 {
			c.forget()
		}
		c.sweep(ctx, false)
	}
}

// forget has the next sweep read everything.
func (c *Clock) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.settled)
}

func (c *Clock) receive(ctx context.Context, m jetstream.Msg, handle func(context.Context, jetstream.Msg, *jetstream.MsgMetadata) (time.Duration, error)) {
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
		again = max(again, service.Retry(meta.NumDelivered))
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
		c.slots <- struct{}{}
		defer func() { <-c.slots }()
		if err := c.arm(ctx, credential, seq); err != nil && ctx.Err() == nil {
			c.d.Log.Warn("timer not armed; the sweep does it within a minute", "credential", credential, "error", err)
		}
	})}
	return 0, nil
}

// arm sets the timer of the step that is due, if trigger is still the newest event.
func (c *Clock) arm(ctx context.Context, credential string, trigger uint64) error {
	newest, err := rotation.Of(c.d.Bus.ReadNewest(ctx, credential))
	if err != nil {
		return err
	}
	c.note(newest)
	if newest.LastSeq() != trigger {
		return nil
	}
	err = c.armStep(ctx, newest)
	if !newest.Open() {
		err = errors.Join(err, c.agenda.Look(ctx, credential), c.agenda.LookAround(ctx, credential))
	}
	return err
}

// armStep sets the timers of the step that is due, if any.
func (c *Clock) armStep(ctx context.Context, r rotation.Rotation) error {
	step, credential := r.Next(), r.Credential
	if step == nil {
		return nil
	}
	late, limit := r.Late(c.d.Clock), r.Limit()
	due := c.d.Clock.Now().Add(-late)
	wake := &pawlv1.Wake{Rotation: r.Rotation, Sequence: r.LastSeq()}
	switch {
	case late < 0:
		c.waits.until(credential, -late)
	case late < limit:
		c.waits.until(credential, limit-late)
	}
	if step.Waits == saga.ForKeep {
		if err := c.schedule(ctx, bus.ArmSubject("wake", credential), bus.WakeSubject(step.Owner, credential), due, wake, r.Log); err != nil {
			return err
		}
	}
	return c.schedule(ctx, bus.ArmSubject("deadline", credential), bus.DeadlineSubject(credential), due.Add(limit), wake, r.Log)
}

func (c *Clock) schedule(ctx context.Context, arm, target string, at time.Time, wake *pawlv1.Wake, log bus.Log) error {
	header := nats.Header{}
	log.PassUrgency(header)
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
	newest, err := rotation.Of(c.d.Bus.ReadNewest(ctx, credential))
	if err != nil || newest.LastSeq() != wake.GetSequence() {
		return 0, err // or something has happened since
	}
	return 0, c.late(ctx, newest)
}

// late gives up, or reports as stalled, a step that is past its deadline.
func (c *Clock) late(ctx context.Context, r rotation.Rotation) error {
	step, late := r.Next(), r.Late(c.d.Clock)
	if step == nil || late < r.Limit() {
		return nil
	}
	if step.Retriable() {
		c.report(ctx, r, c.d.Clock.Now().Add(-late))
		return nil
	}
	verdict, err := restored.Of(ctx, c.d.Bus, r.Log)
	if err != nil || verdict.Standing != restored.Agrees {
		return err // nobody has been permitted to do it since the restore
	}
	reason := fmt.Sprintf("%s did not end %q within %v", step.Owner, step.Name, r.Limit())
	event := &pawlv1.Event{Summary: reason, Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: step.Name, Reason: reason}}}
	header := telemetry.Inject(service.AnchorContext(ctx, r.Log, r.State))
	_, err = c.d.Bus.Append(ctx, r.Credential, r.Rotation, saga.TimedOut, event, header, r.LastSeq())
	if errors.Is(err, bus.ErrConflict) {
		return nil // the step has ended after all
	}
	return err
}

// report tells people of a stalled step, once.
func (c *Clock) report(ctx context.Context, r rotation.Rotation, due time.Time) {
	step, credential := r.Next(), r.Credential
	c.d.Metrics.Stalled(credential, step.Name, true)
	c.mu.Lock()
	now := stall{r.Rotation, step.Name}
	said := c.stalled[credential] == now
	c.stalled[credential] = now
	c.mu.Unlock()
	if said {
		return
	}
	c.d.Note(ctx, &pawlv1.Note{Kind: "stalled", Credential: credential, Rotation: r.Rotation, Step: step.Name,
		Text: fmt.Sprintf("%s has been trying %q since %s and goes on; see docs/runbooks/stalled.md; `pawl doctor %s` shows what is in the way, `pawl resume %s` tries at once%s",
			step.Owner, step.Name, due.Format(time.RFC3339), credential, credential, c.d.Inventory.ContactText())})
}

// sweep looks at every credential: late steps, lost timers, lost triggers. Some at
// once, since it mostly waits for answers.
func (c *Clock) sweep(ctx context.Context, anew bool) {
	var all errgroup.Group
	all.SetLimit(atOnce)
	for credential := range c.d.Inventory.Credentials {
		all.Go(func() error {
			if err := c.look(ctx, credential, anew); err != nil && ctx.Err() == nil {
				c.d.Log.Warn("open rotation not looked at; again in a minute", "credential", credential, "error", err)
			}
			return nil
		})
	}
	_ = all.Wait() // each has told of its own
}

// look does what is due for one credential. anew: also if an event has just come, for
// which a timer is about to be armed.
func (c *Clock) look(ctx context.Context, credential string, anew bool) error {
	seq, err := c.d.Bus.NewestSeq(ctx, credential)
	if err != nil || seq == 0 || c.isSettled(credential, seq) {
		return err
	}
	newest, err := rotation.Of(c.d.Bus.ReadNewest(ctx, credential))
	if err != nil {
		return err
	}
	c.note(newest)
	var looked error
	if !newest.Open() {
		looked = c.agenda.Look(ctx, credential)
	}
	step := newest.Next()
	if step == nil {
		if looked == nil {
			c.settle(credential, standing{newest.LastSeq(), time.Time{}})
		}
		return looked
	}
	mark, err := c.d.Bus.Restored(ctx)
	if err != nil {
		return err
	}
	anew = anew || mark != nil && newest.LastSeq() <= mark.Log // no message tells of what was restored
	if looked != nil || !anew && c.d.Clock.Since(newest.Last.At) < min(sweep/2, newest.Limit()) {
		return looked
	}
	if err := c.late(ctx, newest); err != nil {
		return err
	}
	if err := c.armStep(ctx, newest); err != nil {
		return err
	}
	if late := newest.Late(c.d.Clock); late < 0 {
		c.settle(credential, standing{newest.LastSeq(), time.Now().Add(-late)})
		return nil
	}
	header := nats.Header{}
	newest.PassUrgency(header)
	return c.d.Bus.Publish(ctx, bus.WakeSubject(step.Owner, credential), &pawlv1.Wake{Rotation: newest.Rotation, Sequence: newest.LastSeq(), Cause: "sweep"}, header)
}

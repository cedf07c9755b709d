// Package alarm decides which alerts become emergencies. A decision is stored
// before anything is done about it, once for each episode of an alert, and on
// condition that no other was stored since the one it was made upon: replicas
// decide one after the other, and each hands on to the next what the guards must
// count. A replica that dies between the decision and the emergency leaves the
// alert to another, which finds the decision and begins the emergency under the
// id that was decided.
package alarm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/fault"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/scheduler/internal/admission"
)

// Desk hears alerts.
type Desk struct {
	d       service.Dependencies
	contain func(context.Context, admission.Alarm) (*pawlv1.Answer, error)

	heard  metric.Int64Counter
	braked atomic.Pointer[time.Time] // since when
	budget budget

	mu    sync.Mutex
	noted map[string]bool // what is said once: repeats and ends, by episode
}

// New returns a desk that has contain begin emergencies, which is
// (*admission.Clerk).Contain.
func New(d service.Dependencies, contain func(context.Context, admission.Alarm) (*pawlv1.Answer, error)) (*Desk, error) {
	desk := &Desk{d: d, contain: contain, noted: map[string]bool{}}
	meter := d.Metrics.Meter()
	var err, failed error
	desk.heard, err = meter.Int64Counter("pawl_alerts", metric.WithDescription("Alerts heard, by the guard that held them back; none: it fired"))
	_, failed = meter.Int64ObservableGauge("pawl_alerts_braked", metric.WithDescription("1 while so many credentials were cut off by alerts that no alert does it any more"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			value := int64(0)
			if desk.isBraked() {
				value = 1
			}
			o.Observe(value)
			return nil
		}))
	return desk, errors.Join(err, failed)
}

// Run decides until ctx ends.
func (d *Desk) Run(ctx context.Context) error {
	// One at a time: decisions come one after the other in any case.
	stop, err := service.Consume(ctx, d.d, bus.StreamAlert, bus.ConsumerAlerts, func(m service.Message) { d.handle(ctx, m) })
	if err != nil {
		return err
	}
	defer stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.tellBraked()
			for source, n := range d.budget.summary(time.Now()) {
				d.d.Note(ctx, &pawlv1.Note{Kind: "alerts summed up", Actor: "alert " + source, Text: fmt.Sprintf("%d alerts of %s were held back, beside those that are noted one by one (pawl_alerts_total{guard} counts all)", n, source)})
			}
		}
	}
}

// noteBrake remembers when the brake last held.
func (d *Desk) noteBrake(a *pawlv1.Alarm) {
	if a.GetGuard() == storm && !a.GetRehearsal() {
		at := a.GetAt().AsTime()
		d.braked.Store(&at)
		d.tellBraked()
	}
}

// tellBraked has status and doctor say that no alert cuts anybody off any more.
func (d *Desk) tellBraked() {
	d.d.Conditions.Update(d.isBraked(), condition.Condition{Name: "braked",
		Text: "alerts have cut off as many credentials as they may, and cut off no more by themselves until it is quiet: look at `pawl alerts`, and call emergencies by hand"})
}

func (d *Desk) isBraked() bool {
	at := d.braked.Load()
	return at != nil && d.d.Clock.Since(*at) < d.d.Inventory.Alerts.Storm.Within
}

func (d *Desk) handle(ctx context.Context, m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		d.d.Log.Error("alert without metadata", "error", err)
		return
	}
	err = d.hear(ctx, m, meta)
	if ctx.Err() != nil {
		return // shutting down: another replica, or the next start, gets it
	}
	if err != nil {
		again := min(10*time.Second, time.Duration(meta.NumDelivered)*250*time.Millisecond)
		d.d.Log.Warn("alert deferred", "subject", m.Subject(), "sequence", meta.Sequence.Stream, "again", again, "error", err)
		err = m.NakWithDelay(again)
	} else {
		err = m.Ack()
	}
	if err != nil {
		d.d.Log.Warn("alert not settled; it will be delivered again", "sequence", meta.Sequence.Stream, "error", err)
	}
}

// question is one alert as received.
type question struct {
	*pawlv1.Alert
	source   string
	sequence uint64 // in StreamAlert
	episode  string
	rule     *inventory.AlertRule // nil: none names it
	header   nats.Header
}

// credential is empty where no rule names one.
func (q *question) credential() string {
	if q.rule == nil {
		return ""
	}
	return q.rule.Credential.Name
}

// hear returns an error where the alert must be heard again.
func (d *Desk) hear(ctx context.Context, m jetstream.Msg, meta *jetstream.MsgMetadata) error {
	ctx = trace.ContextWithRemoteSpanContext(ctx, telemetry.Extract(m.Headers())) // the alert's trace goes on in notes
	q := &question{Alert: &pawlv1.Alert{}, sequence: meta.Sequence.Stream, header: m.Headers()}
	q.source, _ = bus.ParseAlert(m.Subject())
	if err := q.read(m, d.d.Inventory); err != nil {
		d.count(ctx, undecodable)
		return d.bury(ctx, meta, m.Subject(), q.source, err)
	}
	q.rule = d.d.Inventory.Alerts.RuleFor(q.source, q.GetLabels())
	if q.GetResolved() { // what was stolen stays stolen
		d.once(ctx, q, resolved, "it is over, says its source: nothing is taken back")
		return nil
	}
	decided, kept, err := d.decide(ctx, q)
	if err != nil {
		return err
	}
	if !kept {
		d.count(ctx, decided.GetGuard())
		d.noteBrake(decided.Alarm)
		return nil
	}
	if decided.GetSequence() != q.sequence {
		d.once(ctx, q, repeat, "decided at "+decided.GetAt().AsTime().Format(time.RFC3339))
		return nil
	}
	return d.act(ctx, q, decided)
}

func (q *question) read(m jetstream.Msg, inv *inventory.Inventory) error {
	if err := bus.Decode(m.Headers(), m.Data(), q.Alert); err != nil {
		return err
	}
	if bus.ReadOut(m.Headers()) {
		return errors.New("not an alert: somebody had NATS read it out of a stream onto this subject")
	}
	if len(q.ProtoReflect().GetUnknown()) > 0 { // stray text can be protobuf, too
		return errors.New("not an Alert: it has protobuf fields that this version does not know")
	}
	if q.GetStartsAt().CheckValid() != nil {
		return errors.New("not a valid Alert: starts_at: must be a time from the year 1 to 9999")
	}
	q.episode = bus.Episode(inv, q.source, q.Alert)
	return nil
}

// bury tells of what cannot be read, if that can be stored: where not, it is in the log
// alone, and keeps no other alert from being heard.
func (d *Desk) bury(ctx context.Context, meta *jetstream.MsgMetadata, subject, source string, fault error) error {
	text := strings.ToValidUTF8(fmt.Sprintf("%s (sequence %d): %v", subject, meta.Sequence.Stream, fault), "\uFFFD")
	err := d.d.Bus.Publish(ctx, bus.DeadSubject(saga.Scheduler), &pawlv1.Note{Kind: "undecodable", Actor: source, Text: text}, telemetry.Inject(ctx))
	if err != nil && meta.NumDelivered > buriedInVain {
		d.d.Log.Error("an alert that cannot be read is not stored", "text", text, "error", err)
		return nil
	}
	return err
}

// buriedInVain is how often it is tried to keep what cannot be read.
const buriedInVain = 5

// decide returns what was decided about the episode: before, or else now; and whether
// that is stored.
func (d *Desk) decide(ctx context.Context, q *question) (_ bus.Decided, kept bool, err error) {
	for {
		found, err := d.d.Bus.FindAlarm(ctx, d.d.Inventory, q.credential(), q.source, q.Alert)
		if err != nil || found.Seq > 0 {
			return found, true, err
		}
		newest, err := d.d.Bus.NewestAlarm(ctx)
		if err != nil {
			return found, false, err
		}
		alarm, err := d.weigh(ctx, q, newest.Alarm)
		if err != nil {
			return found, false, err
		}
		if alarm.GetGuard() != "" && !d.budget.allows(q.source) {
			return bus.Decided{Alarm: alarm}, false, nil
		}
		err = d.d.Bus.AppendAlarm(ctx, q.episode, alarm, telemetry.Inject(ctx), newest.Seq)
		if err == nil {
			return bus.Decided{Alarm: alarm}, true, nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return found, false, err
		}
		select { // another replica has decided meanwhile, this very one perhaps
		case <-ctx.Done():
			return found, false, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// act does what was decided, and tells the trail. Doing it again is harmless.
func (d *Desk) act(ctx context.Context, q *question, decided bus.Decided) error {
	a := decided.Alarm
	d.noteBrake(a)
	note := &pawlv1.Note{Kind: "alert held back", Credential: a.GetCredential(), Rotation: a.GetRotation(), Step: a.GetGuard(), Actor: "alert " + a.GetSource(),
		Text: fmt.Sprintf("%s: %s (%s)", a.GetGuard(), a.GetReason(), a.GetAlert())}
	if callsPeople[a.GetGuard()] {
		note.Text += d.d.Inventory.ContactText()
	}
	if a.GetGuard() == "" {
		refused, err := d.fire(ctx, q, decided)
		if err != nil {
			return err
		}
		note.Kind, note.Text = "alert fired", a.GetAlert()
		if refused != "" {
			note.Kind, note.Rotation, note.Text = "alert fired in vain", "", refused+" ("+a.GetAlert()+")"
		}
	}
	d.count(ctx, a.GetGuard())
	d.d.Log.WarnContext(ctx, note.GetKind(), "credential", note.GetCredential(), "rotation", note.GetRotation(), "text", note.GetText())
	d.d.Note(ctx, note)
	return nil
}

// fire begins the emergency, or returns what is in the way.
func (d *Desk) fire(ctx context.Context, q *question, decided bus.Decided) (refused string, err error) {
	a := decided.Alarm
	if decided.Seq > 0 { // decided before: the replica that did may have died, and a person been faster
		last, err := d.d.Bus.LastOf(ctx, a.GetCredential(), saga.Contained)
		if err != nil {
			return "", err
		}
		if last.At.After(decided.Stored) && last.Rotation != a.GetRotation() {
			return "it was contained meanwhile, by " + last.Rotation, nil
		}
	}
	fault.Point(a.GetCredential(), "alarm.contain.before")
	answer, err := d.contain(ctx, admission.Alarm{Credential: a.GetCredential(), Request: "alert-" + q.episode, Rotation: a.GetRotation(),
		Reason: a.GetAlert(), RequestedBy: "alert " + a.GetSource(), Header: q.header})
	if err != nil {
		return "", err
	}
	if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		return answer.GetReason(), nil
	}
	return "", nil
}

// once counts, and says it the first time: an alert is sent again for as long as
// it lasts.
func (d *Desk) once(ctx context.Context, q *question, guard, text string) {
	d.count(ctx, guard)
	key := guard + " " + q.episode
	d.mu.Lock()
	said := d.noted[key]
	if len(d.noted) > 10_000 {
		clear(d.noted)
	}
	d.noted[key] = true
	d.mu.Unlock()
	if !said {
		d.d.Note(ctx, &pawlv1.Note{Kind: "alert held back", Credential: q.credential(), Step: guard, Actor: "alert " + q.source, Text: fmt.Sprintf("%s: %s (%s)", guard, text, q.line())})
	}
}

func (d *Desk) count(ctx context.Context, guard string) {
	if guard == "" {
		guard = "none"
	}
	d.heard.Add(ctx, 1, metric.WithAttributes(attribute.String("guard", guard)))
}

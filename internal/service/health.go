package service

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Health is what a service answers when it is asked what keeps it from working.
type Health struct {
	Service    string
	Version    string // empty: it did not answer
	Instance   string
	Conditions []Told
}

// Told is a condition as told by a service: its own, or that of the process that it
// runs in.
type Told struct {
	Of string // the service, or "pawl"
	condition.Condition
}

// Process is the name of the conditions of a `pawl up` process itself.
const Process = "pawl"

// topicRunning marks the finding that says which version answers.
const topicRunning = "running"

// answerHealth subscribes to the question. Replicas share it. Of the services of one
// process, the scheduler tells of the process.
func answerHealth(d Dependencies, name string) (stop func(), err error) {
	var beside *condition.Set
	if name == saga.Scheduler {
		beside = d.Process
	}
	return d.Bus.Listen(name, map[string]nats.MsgHandler{bus.HealthSubject(name): func(m *nats.Msg) {
		if err := bus.Respond(m, healthOf(name, d.Conditions, beside)); err != nil {
			d.Log.Warn("health answer not sent", "error", err)
		}
	}})
}

func healthOf(name string, own, beside *condition.Set) *pawlv1.Findings {
	f := &pawlv1.Findings{Checks: []*pawlv1.Check{{Service: name, Target: process(), Finding: Version(), Topic: topicRunning}}}
	for of, set := range map[string]*condition.Set{name: own, Process: beside} {
		for _, c := range set.List() {
			f.Checks = append(f.Checks, &pawlv1.Check{Service: of, Target: strings.TrimSpace(c.Name + " " + c.Object), Finding: c.Text, Refused: c.Failing})
		}
	}
	return f
}

// healthIn reads an answer.
func healthIn(name string, f *pawlv1.Findings) Health {
	h := Health{Service: name}
	for _, c := range f.GetChecks() {
		if c.GetTopic() == topicRunning {
			h.Version, h.Instance = c.GetFinding(), c.GetTarget()
			continue
		}
		what, object, _ := strings.Cut(c.GetTarget(), " ")
		h.Conditions = append(h.Conditions, Told{c.GetService(), condition.Condition{Name: what, Object: object, Failing: c.GetRefused(), Text: c.GetFinding()}})
	}
	return h
}

// AskHealth asks a service what keeps it from working; of several replicas one
// answers. Of a service that does not answer, the only condition says so.
func AskHealth(ctx context.Context, b *bus.Bus, name string) (Health, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*answerWithin)
	defer cancel()
	f := &pawlv1.Findings{}
	err := b.Permitted(ctx, func(ctx context.Context) error {
		for {
			once, done := context.WithTimeout(ctx, answerWithin)
			m, err := b.NATS.RequestWithContext(once, bus.HealthSubject(name), nil)
			done()
			if err == nil {
				return bus.Decode(m.Header, m.Data, f)
			}
			if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
		}
	}, bus.HealthSubject(name))
	if err == nil {
		return healthIn(name, f), nil
	}
	if !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, context.DeadlineExceeded) {
		return Health{}, err
	}
	missing, err := missing(context.WithoutCancel(ctx), b, name)
	return Health{Service: name, Conditions: []Told{{name, missing}}}, err
}

// missing is the condition of a service that does not answer. One that was started
// and has given no sign of life since is of a version that gives none: while
// versions are mixed, that is no failure.
func missing(ctx context.Context, b *bus.Bus, name string) (condition.Condition, error) {
	c := condition.Condition{Name: "service", Object: name, Failing: true}
	started, err := newestAt(ctx, b, bus.StreamNote, bus.StartedSubject(name))
	lived, failed := newestAt(ctx, b, bus.StreamLive, bus.LiveSubject(name))
	switch {
	case errors.Join(err, failed) != nil:
		c.Text = "does not answer"
	case started.IsZero() && lived.IsZero():
		c.Text = "does not answer: it was never started"
	case lived.Before(started):
		c.Failing = false
		c.Text = "does not answer: it is not running, or of a version before this one"
	default:
		c.Text = fmt.Sprintf("does not answer: it is not running, or hangs. Its last sign of life was at %s", lived.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return c, errors.Join(err, failed)
}

// newestAt is when the newest message on a subject was stored, by the clock of the
// bus; zero: never.
func newestAt(ctx context.Context, b *bus.Bus, stream, subject string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	m, err := b.Last(ctx, stream, subject, nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("newest message of %s: %w", subject, err)
	}
	if m == nil {
		return time.Time{}, nil
	}
	return m.Time, nil
}

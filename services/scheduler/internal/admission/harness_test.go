package admission

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// office is a clerk at work on a real server; the other services are played.
type office struct {
	t         *testing.T
	server    *bustest.Server
	scheduler *bus.Bus
	owners    map[string]*bus.Bus
	operator  *bus.Bus
	clerk     *Clerk
	inventory *inventory.Inventory
	spans     *tracetest.InMemoryExporter

	mu     sync.Mutex
	refuse map[string]*pawlv1.Check // by service and credential
	asked  []string                 // service, credential and the rotations to open
	// meanwhile is done while the db-rotator looks, once.
	meanwhile func()
}

// open starts a clerk for credentials of that name, those with a group in it.
func open(t *testing.T, groups map[string]string) *office {
	t.Helper()
	o := &office{t: t, server: bustest.Start(t), owners: map[string]*bus.Bus{}, refuse: map[string]*pawlv1.Check{}, spans: tracetest.NewInMemoryExporter()}
	o.inventory = &inventory.Inventory{Credentials: map[string]*inventory.Credential{}}
	for name, group := range groups {
		o.inventory.Credentials[name] = &inventory.Credential{Name: name, Group: group, Role: name, Strategy: inventory.Alternating, Keep: time.Hour,
			Consumers: []inventory.Consumer{{Name: "api"}, {Name: name + "-own"}}}
	}
	o.scheduler, o.operator = o.server.Connect(t, saga.Scheduler), o.server.Connect(t, bus.Operator)
	for _, name := range service.Checked {
		o.owners[name] = o.server.Connect(t, name)
		o.play(name)
	}
	o.owners[saga.Scheduler] = o.scheduler
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	tracing := trace.NewTracerProvider(trace.WithSyncer(o.spans))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	o.clerk = New(service.Dependencies{Inventory: o.inventory, Bus: o.scheduler, Log: slog.New(slog.DiscardHandler), Metrics: metrics,
		Tracer: tracing.Tracer("test"), Note: func(context.Context, *pawlv1.Note) {}})
	go func() { ended <- o.clerk.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) { // it may have been about to begin
			t.Error(err)
		}
	})
	return o
}

// play answers a service's preflight.
func (o *office) play(name string) {
	b := o.owners[name]
	_, err := b.NATS.Subscribe(bus.CheckSubject(name, "*"), func(m *nats.Msg) {
		credential := strings.Split(m.Subject, ".")[3]
		o.mu.Lock()
		do := o.meanwhile
		if name == saga.DBRotator {
			o.meanwhile = nil
		}
		o.mu.Unlock()
		if do != nil && name == saga.DBRotator {
			do()
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.asked = append(o.asked, strings.TrimSpace(name+" "+credential+" "+string(m.Data)))
		found := &pawlv1.Findings{Checks: []*pawlv1.Check{{Service: name, Target: "all", Finding: "is well"}}}
		if no := o.refuse[name+" "+credential]; no != nil {
			found.Checks = append(found.Checks, no)
		}
		if err := bus.Respond(m, found); err != nil {
			o.t.Error(err)
		}
	})
	if err == nil {
		err = b.NATS.Flush()
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

// refuses makes a service's preflight of a credential refuse.
func (o *office) refuses(name, credential, target, finding string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refuse[name+" "+credential] = &pawlv1.Check{Service: name, Target: target, Finding: finding, Refused: true}
}

// ask publishes a request and awaits its answer.
func (o *office) ask(credential string, request *pawlv1.Request) *pawlv1.Answer {
	o.t.Helper()
	return o.askOn(bus.RequestSubject(credential), request)
}

func (o *office) askOn(subject string, request *pawlv1.Request) *pawlv1.Answer {
	o.t.Helper()
	return o.askAs(o.operator, subject, request)
}

func (o *office) askAs(user *bus.Bus, subject string, request *pawlv1.Request) *pawlv1.Answer {
	o.t.Helper()
	id := strings.ToLower(rand.Text())
	answers, err := o.operator.NATS.SubscribeSync(bus.AnswerSubject(id))
	if err != nil {
		o.t.Fatal(err)
	}
	header := nats.Header{jetstream.MsgIDHeader: {id}}
	if err := user.Publish(o.t.Context(), subject, request, header); err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(o.t.Context(), 20*time.Second)
	defer cancel()
	m, err := answers.NextMsgWithContext(ctx)
	if err != nil {
		o.t.Fatal(err)
	}
	answer := &pawlv1.Answer{}
	if err := bus.Decode(m.Header, m.Data, answer); err != nil {
		o.t.Fatal(err)
	}
	return answer
}

func (o *office) rotate(credential string, with ...string) *pawlv1.Answer {
	o.t.Helper()
	return o.ask(credential, &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, With: with})
}

func (o *office) rejected(a *pawlv1.Answer, want ...string) {
	o.t.Helper()
	if a.GetOutcome() != pawlv1.Outcome_OUTCOME_REJECTED {
		o.t.Errorf("not rejected: %v", a)
	}
	for _, text := range want {
		if !strings.Contains(a.GetReason(), text) {
			o.t.Errorf("no %q in %q", text, a.GetReason())
		}
	}
}

func (o *office) accepted(a *pawlv1.Answer) {
	o.t.Helper()
	if a.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED || a.GetRotation() == "" {
		o.t.Fatalf("not accepted: %v", a)
	}
}

func (o *office) newest(credential string) bus.Log {
	o.t.Helper()
	log, err := o.scheduler.ReadNewest(o.t.Context(), credential)
	if err != nil {
		o.t.Fatal(err)
	}
	return log
}

// ends appends the rest of the newest rotation's forward steps.
func (o *office) ends(credentials ...string) {
	o.t.Helper()
	for _, credential := range credentials {
		for o.step(credential) {
		}
	}
}

// step appends one; false where the rotation has ended.
func (o *office) step(credential string) bool {
	o.t.Helper()
	log := o.newest(credential)
	state, err := log.Fold()
	if err != nil {
		o.t.Fatal(err)
	}
	if !state.Open() {
		return false
	}
	step, body := state.Next(), &pawlv1.Event{}
	if step.Emits == saga.Staged || step.Emits == saga.Adopted {
		body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: credential}}
	}
	if _, err := o.owners[step.Owner].Append(o.t.Context(), credential, log.Rotation, step.Emits, body, nil, log.LastSeq()); err != nil {
		o.t.Fatal(err)
	}
	return true
}

func (o *office) adopts(credentials ...string) {
	o.t.Helper()
	for _, c := range credentials {
		o.accepted(o.ask(c, &pawlv1.Request{Action: pawlv1.Action_ACTION_ADOPT}))
		o.ends(c)
	}
}

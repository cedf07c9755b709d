package agenda

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/calendar"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/schedule"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/scheduler/internal/admission"
	"pawl.dev/services/scheduler/internal/timekeeper"
)

var many = flag.Int("many", 500, "credentials of the storm, three in ten of them overdue")

// later is a bus on which all that was adopted was so a while ago, and on which
// what comes within an hour comes as much sooner.
type later struct {
	onBus
	by     time.Duration
	sooner int
}

func (w later) Past(ctx context.Context, name string) (schedule.Turned, string, bool, error) {
	t, newest, ok, err := w.onBus.Past(ctx, name)
	if !t.Adopted {
		t.Since, t.Tried = t.Since.Add(w.by), t.Tried.Add(w.by)
	}
	return t, newest, ok, err
}

func (w later) Arm(ctx context.Context, name string, at time.Time, due *pawlv1.Due, seq uint64) error {
	at = at.Add(-w.by)
	if wait := time.Until(at); wait > 0 && wait < time.Hour {
		at = at.Add(wait/time.Duration(w.sooner) - wait)
	}
	return w.onBus.Arm(ctx, name, at, due, seq)
}

// plant is a scheduler in replicas on a real server; the other services are played.
type plant struct {
	t        *testing.T
	server   *bustest.Server
	inv      *inventory.Inventory
	buses    map[string]*bus.Bus
	operator *bus.Bus
	by       time.Duration
	sooner   int
	wait     time.Duration // of those that find no room

	mu     sync.Mutex
	open   map[string]string // by credential: its cluster
	turned map[string]int
	notes  map[string]int
	refuse map[string]bool
	heard  chan string // each credential that has turned
}

func newPlant(t *testing.T, inv *inventory.Inventory, by time.Duration) *plant {
	p := &plant{t: t, server: bustest.Start(t), inv: inv, by: by, sooner: 1, wait: 400 * time.Millisecond, buses: map[string]*bus.Bus{}, open: map[string]string{}, turned: map[string]int{},
		notes: map[string]int{}, refuse: map[string]bool{}, heard: make(chan string, 10*len(inv.Credentials)+10)}
	p.operator = p.server.Connect(t, bus.Operator)
	for _, name := range saga.Services {
		p.buses[name] = p.server.Connect(t, name)
	}
	for _, name := range service.Checked {
		if _, err := p.buses[name].NATS.Subscribe(bus.CheckSubject(name, "*"), func(m *nats.Msg) {
			p.mu.Lock()
			defer p.mu.Unlock()
			no := p.refuse[strings.Split(m.Subject, ".")[3]]
			if err := bus.Respond(m, &pawlv1.Findings{Checks: []*pawlv1.Check{{Service: name, Target: "node", Finding: "is down", Refused: no}}}); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if err := p.buses[name].NATS.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// adopt writes the log of an adoption.
func (p *plant) adopt(name string) {
	p.t.Helper()
	seq, body := uint64(0), &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ADOPT, Flow: saga.Adopt, Generation: 1, Role: name}}}
	for _, step := range []struct {
		owner string
		event saga.Event
	}{{saga.Scheduler, saga.Requested}, {saga.DBRotator, saga.Adopted}, {saga.Scheduler, saga.Completed}} {
		var err error
		if seq, err = p.buses[step.owner].Append(p.t.Context(), name, "adoption", step.event, body, nil, seq); err != nil {
			p.t.Error(err)
			return
		}
		body = &pawlv1.Event{Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: name}}}
	}
}

// work plays the rotations from now on, and keeps count.
func (p *plant) work() {
	p.t.Helper()
	// What is stored, in its order: a plain subscription would also hear what was refused.
	go func() {
		for m := range p.operator.Tail(p.t.Context(), bus.StreamLog, "pawl.rotation.>", bus.Start{Time: time.Now()}) {
			p.saw(m.Subject)
		}
	}()
}

// saw keeps count of one event.
func (p *plant) saw(subject string) {
	name, rotation, event, err := bus.ParseLogSubject(subject)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch event {
	case saga.Requested:
		p.open[name] = p.inv.Credentials[name].Cluster.Name
		p.bounds()
		go p.play(name, rotation)
	case saga.Completed:
		delete(p.open, name)
		p.turned[name]++
		p.heard <- name
	}
}

func (p *plant) bounds() {
	in := map[string]int{}
	for _, cluster := range p.open {
		in[cluster]++
	}
	for cluster, n := range in {
		if n > p.inv.Schedule.PerCluster {
			p.t.Errorf("%d turn at once in %s", n, cluster)
		}
	}
	if len(p.open) > p.inv.Schedule.InAll {
		p.t.Errorf("%d turn at once", len(p.open))
	}
}

// play appends what the services would.
func (p *plant) play(name, rotation string) {
	for p.t.Context().Err() == nil {
		log, err := p.buses[saga.DBRotator].ReadNewest(p.t.Context(), name)
		if err != nil || log.Rotation != rotation {
			return
		}
		state, err := log.Fold()
		if err != nil || !state.Open() {
			return
		}
		step, body := state.Next(), &pawlv1.Event{}
		if step.Emits == saga.Staged {
			body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: name}}
		}
		if _, err := p.buses[step.Owner].Append(p.t.Context(), name, rotation, step.Emits, body, nil, log.LastSeq()); err != nil && !errors.Is(err, bus.ErrConflict) && p.t.Context().Err() == nil {
			p.t.Errorf("%s of %s: %v", step.Emits, name, err)
			return
		}
	}
}

// replica starts one; stop ends it without a word.
func (p *plant) replica() (stop func()) {
	p.t.Helper()
	d := depsOf(p)
	a := newAgenda(later{onBus{d, admission.New(d)}, p.by, p.sooner}, p.inv, d.Log, func() time.Time { return time.Now().Add(p.by) })
	a.wait, a.fullFor = p.wait, 20*time.Millisecond
	ctx, cancel := context.WithCancel(p.t.Context())
	var both sync.WaitGroup
	both.Go(func() { p.fail(a.Run(ctx, d)) })
	both.Go(func() { p.fail(timekeeper.New(d, a).Run(ctx)) })
	stop = func() { cancel(); both.Wait() }
	p.t.Cleanup(stop)
	return stop
}

// depsOf is what a replica has.
func depsOf(p *plant) service.Dependencies {
	p.t.Helper()
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		p.t.Fatal(err)
	}
	return service.Dependencies{Inventory: p.inv, Bus: p.server.Connect(p.t, saga.Scheduler), Log: slog.New(slog.DiscardHandler), Metrics: metrics,
		Tracer: noop.NewTracerProvider().Tracer("test"), Note: func(_ context.Context, n *pawlv1.Note) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.notes[n.GetKind()+" "+n.GetCredential()]++
		}}
}

func (p *plant) fail(err error) {
	if err != nil {
		p.t.Error(err)
	}
}

// await waits until so many have turned.
func (p *plant) await(n int) {
	p.t.Helper()
	for range n {
		select {
		case <-p.heard:
		case <-time.After(2 * time.Minute):
			p.t.Fatal("nothing turns any more")
		}
	}
}

// Three in ten are overdue when two replicas start, one of which dies and is
// started anew meanwhile. What may not turn now, because its window is shut or it
// is not due, does not; the rest turns once, within the budget, and is armed again.
func TestThousandsOverdueAtStartUpAreNoStorm(t *testing.T) {
	inv := &inventory.Inventory{Credentials: map[string]*inventory.Credential{}, Schedule: inventory.Schedule{PerCluster: 2, InAll: 5}}
	shut := time.Now().UTC().AddDate(0, 0, 3).Weekday().String()[:3]
	window, err := calendar.ParseWindow(shut + " 02:00-05:00 UTC")
	if err != nil {
		t.Fatal(err)
	}
	var due []string
	for i := range *many {
		c := &inventory.Credential{Name: fmt.Sprintf("c-%05d", i), Role: "r", Strategy: inventory.InPlace, RotateEvery: 365 * day, Cluster: &inventory.Cluster{Name: fmt.Sprintf("k-%d", i%4)}}
		switch i % 10 {
		case 0, 1:
			c.RotateEvery = 50 * time.Minute // and not again while this lasts
			due = append(due, c.Name)
		case 2:
			c.RotateEvery, c.Windows = 50*time.Minute, []calendar.Window{window}
		}
		inv.Credentials[c.Name] = c
	}
	p := newPlant(t, inv, time.Hour)
	p.sooner = 30
	p.wait = max(p.wait, time.Duration(len(due))*4*time.Millisecond) // more would hear timers, and do nothing else
	var adopting errgroup.Group
	adopting.SetLimit(16)
	for name := range inv.Credentials {
		adopting.Go(func() error { p.adopt(name); return nil })
	}
	_ = adopting.Wait() // it fails the test itself
	p.work()
	stop := p.replica()
	p.replica()
	p.await(len(due) / 3)
	stop()
	p.await(len(due) / 3)
	p.replica()
	p.await(len(due) - 2*(len(due)/3))
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, n := range p.turned {
		if !slices.Contains(due, name) || n != 1 {
			t.Errorf("%s turned %d times", name, n)
		}
	}
	told := map[int]int{}
	for _, name := range due {
		told[p.notes["overdue "+name]]++
		if p.turned[name] != 1 || p.notes["overdue "+name] == 0 {
			t.Errorf("%s turned %d times, told %d times", name, p.turned[name], p.notes["overdue "+name])
		}
	}
	if n := len(due) - told[1]; n > len(due)/20+1 { // one that was stopped may tell what another tells again
		t.Errorf("%d of %d were told of more than once: %v", n, len(due), told)
	}
}

package e2e

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/cmd/pawl/natsconf"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestBusOfThreeServersLosesAnyOfThem rotates credentials over and over while a
// server of the bus is killed, cut off from the others, or killed as the leader of
// the log, one after the other by seed, and replicas of the services beside it.
func TestBusOfThreeServersLosesAnyOfThem(t *testing.T) {
	periods, period, least := 1, 30*time.Second, 6
	if *full {
		periods, period, least = 5, time.Minute, 200 // whichever takes longer
	}
	crowd := &crowd{by: map[string]kind{}}
	w := newWorldOnServers(t, 3, 2, stepDeadline, func(apps *site.Apps) []site.Credential { return crowd.of(6, apps) })
	ends := w.rotateThrough(crowd, func(ended func() int) {
		for ; !t.Failed() && (periods > 0 || ended() < least); periods-- {
			w.disturb(period)
		}
	})
	t.Logf("%d processes died; rotations ended: %v", w.fleet.Died(), ends)
	if ends[saga.Completed] < len(crowd.names) {
		t.Errorf("not even the last one of each has completed: %v", ends)
	}
}

// TestClientLeavesAServerThatIsCutOff: such a server keeps its clients, and would
// never answer them.
func TestClientLeavesAServerThatIsCutOff(t *testing.T) {
	w := newWorldOnServers(t, 3, 0, stepDeadline, func(*site.Apps) []site.Credential { return nil })
	b, err := w.site.Connect(saga.Scheduler)
	if err != nil {
		t.Fatal(err)
	}
	defer b.NATS.Close()
	here := w.site.Servers[slices.IndexFunc(w.site.Servers, func(n natsconf.Node) bool { return n.Name == b.NATS.ConnectedServerName() })]
	heal := w.site.Isolate(here)
	defer w.caughtUp(here)
	defer heal()
	moved := b.NATS.StatusChanged(nats.CONNECTED)
	go b.Roam(t.Context(), slog.New(slog.DiscardHandler))
	select {
	case <-moved:
	case <-time.After(time.Minute):
		t.Fatal("it stays")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for { // the others may still elect a leader
		_, err := b.Append(ctx, "c", "r1", saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: adopt, Flow: saga.Adopt, Generation: 1, Role: "c"}}}, nil, 0)
		if err == nil || errors.Is(err, bus.ErrConflict) { // an answer may get lost
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// newWorldOnServers is newWorldWith on a bus of so many servers.
func newWorldOnServers(t *testing.T, servers, replicas int, deadline time.Duration, layOut func(*site.Apps) []site.Credential) *world {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{Settings: loudestLogging()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return newWorldWith(t, replicas, deadline, layOut, func(dir, otlp string, credentials []site.Credential) (*site.Site, error) {
		return site.NewOnServers(t.Context(), dir, servers, []site.Node{{Name: "primary", Server: server}}, otlp, credentials)
	})
}

// disturb troubles one server of the bus at a time, until the others have let it
// catch up, and meanwhile kills services.
func (w *world) disturb(period time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), period)
	defer cancel()
	services := slices.DeleteFunc(w.fleet.Names(), func(name string) bool {
		return slices.ContainsFunc(w.site.Servers, func(n natsconf.Node) bool { return n.Name == name })
	})
	var both sync.WaitGroup
	defer both.Wait()
	random := rand.New(rand.NewPCG(w.random.Uint64(), 1)) // each has its own
	both.Go(func() {
		for pause(ctx, 500*time.Millisecond+time.Duration(random.Int64N(int64(time.Second)))) {
			_ = w.fleet.Signal(services[random.IntN(len(services))], syscall.SIGKILL) // it may be dead already
		}
	})
	troubles := []func(){
		func() { w.killServer(w.site.Servers[w.random.IntN(3)]) },
		func() { w.isolateServer(w.site.Servers[w.random.IntN(3)]) },
		w.killLeader,
	}
	for i := 0; ctx.Err() == nil || i < len(troubles); i++ {
		if i%len(troubles) == 0 {
			w.random.Shuffle(len(troubles), func(i, j int) { troubles[i], troubles[j] = troubles[j], troubles[i] })
		}
		troubles[i%len(troubles)]()
	}
}

func (w *world) killServer(n natsconf.Node) {
	w.t.Logf("kill %s", n.Name)
	_ = w.fleet.Signal(n.Name, syscall.SIGKILL) // it may be dead already
	w.caughtUp(n)
}

func (w *world) killLeader() {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	n, err := w.site.Leader(ctx, bus.StreamLog)
	for err != nil && pause(ctx, 200*time.Millisecond) { // an election, or a service's death, in the way
		n, err = w.site.Leader(ctx, bus.StreamLog)
	}
	if err != nil {
		w.t.Error(err)
		return
	}
	w.killServer(n)
}

// isolateServer cuts one off for longer than the others need to elect another
// leader, with the clients that it has.
func (w *world) isolateServer(n natsconf.Node) {
	w.t.Logf("cut %s off", n.Name)
	heal := w.site.Isolate(n)
	pause(w.t.Context(), 12*time.Second)
	heal()
	w.caughtUp(n)
}

func (w *world) caughtUp(n natsconf.Node) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := w.site.Healthy(ctx, n); err != nil {
		w.t.Error(err)
	}
}

// pause returns false where ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

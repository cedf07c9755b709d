package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestKillsDuringAnEmergencyOfSeveralLoseNoCredential contains many credentials by one
// order. Whoever comes by some of its points is killed, by seed, and so are PostgreSQL
// and NATS. Every credential must be contained and come back, on a login of its own;
// none may let in whoever holds what was stolen.
func TestKillsDuringAnEmergencyOfSeveralLoseNoCredential(t *testing.T) {
	several, kills := 10, 24
	if *full {
		several, kills = 50, 150
	}
	by := map[string]kind{}
	var names []string
	w := newWorldOn(t, 2, twoNodes(t), func(apps *site.Apps) (all []site.Credential) {
		for i, k := range emergencyKinds() {
			all = append(all, k.credential("first-"+k.name, apps))
			for n := i; n < several; n += 2 {
				name := fmt.Sprintf("several-%02d", n)
				by[name], names = k, append(names, name)
				all = append(all, k.credential(name, apps))
			}
		}
		return all
	})
	passed := w.pointsOfEmergencies()
	stolen := w.steal(names, by)
	var orders []drill
	for i := range kills {
		name := names[i%len(names)]
		p := passed[by[name].name][w.random.IntN(len(passed[by[name].name]))]
		orders = append(orders, drill{name, by[name], []string{strings.ReplaceAll(p, "first-"+by[name].name, name)}, "KILL"})
	}
	for range 2 { // the scheduler, between two of them
		orders = append(orders, drill{names[w.random.IntN(len(names))], emergencyKinds()[0], []string{"several.begun"}, "KILL"})
	}
	for _, o := range orders {
		if err := w.fleet.Order(o.credential, o.points[0], o.what); err != nil {
			t.Fatal(err)
		}
	}
	var servers sync.WaitGroup
	servers.Go(w.killServers)
	answer, err := w.client.Contain(t.Context(), names...)
	if err != nil || answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		t.Fatalf("%v, %v", answer, err)
	}
	var all errgroup.Group
	for _, name := range names {
		all.Go(func() error { return w.overcame(name, by[name], answer.GetRotation(), stolen[name]) })
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	servers.Wait()
	hit := 0
	for _, o := range orders {
		w.withdraw(o)
		if w.fleet.Hit(o.credential, o.points[0]) {
			hit++
		}
	}
	t.Logf("%d of %d orders to kill were carried out, %d processes died", hit, len(orders), w.fleet.Died())
	if hit < len(orders)/2 {
		t.Errorf("only %d of %d orders to kill were carried out", hit, len(orders))
	}
}

func emergencyKinds() (all []kind) {
	for _, k := range kinds {
		if k.action == contain {
			all = append(all, k)
		}
	}
	return all
}

// pointsOfEmergencies are those that an emergency of each kind passes, undisturbed.
func (w *world) pointsOfEmergencies() map[string][]string {
	w.t.Helper()
	passed := map[string][]string{}
	for _, k := range emergencyKinds() {
		first := drill{credential: "first-" + k.name, kind: k, what: "KILL"}
		if err := w.run(w.t.Context(), first); err != nil {
			w.t.Fatal(err)
		}
		log, err := w.client.ReadNewest(w.t.Context(), first.credential)
		if err != nil {
			w.t.Fatal(err)
		}
		if passed[k.name] = points(log, k); len(passed[k.name]) < 6 {
			w.t.Fatalf("%s has only %d crash points", k.name, len(passed[k.name]))
		}
	}
	return passed
}

// theft is what somebody holds: the login, and a session.
type theft struct {
	login   inventory.Login
	session *pgx.Conn
}

// steal adopts all, starts their applications, and logs in with what is published.
func (w *world) steal(names []string, by map[string]kind) map[string]theft {
	w.t.Helper()
	stolen := map[string]theft{}
	var mu sync.Mutex
	var all errgroup.Group
	all.SetLimit(6)
	for _, name := range names {
		all.Go(func() error {
			ctx := w.t.Context()
			if err := errors.Join(w.apps.Start(ctx, name), by[name].prepare(ctx, w, name)); err != nil {
				return err
			}
			login, err := w.site.Published(name)
			if err != nil {
				return err
			}
			session, err := w.site.LoginPublished(ctx, name, "thief")
			mu.Lock()
			defer mu.Unlock()
			stolen[name] = theft{login, session}
			w.seen.add(login.Password.Reveal())
			return err
		})
	}
	if err := all.Wait(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		for name, of := range stolen {
			_ = of.session.Close(context.Background()) // it is dead
			w.apps.Stop(context.Background(), name)
		}
	})
	return stolen
}

// killServers kills NATS, a node of the cluster, and some services, while the
// emergency is under way.
func (w *world) killServers() {
	names := slices.DeleteFunc(w.fleet.Names(), func(name string) bool { return name == "natsd" })
	worker := w.site.Node("worker").Server
	for range 3 {
		time.Sleep(200*time.Millisecond + time.Duration(w.random.Int64N(int64(2*time.Second))))
		_ = w.fleet.Signal(names[w.random.IntN(len(names))], syscall.SIGKILL) // it may be dead already
	}
	_ = w.fleet.Signal("natsd", syscall.SIGKILL) // likewise
	if err := errors.Join(worker.Kill(), worker.Restart(context.WithoutCancel(w.t.Context()))); err != nil {
		w.t.Errorf("kill PostgreSQL and start it again: %v", err)
	}
}

// overcame waits until the credential's emergency is over, and checks that nothing is
// lost, and nothing given back.
func (w *world) overcame(name string, k kind, rotation string, stolen theft) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 8*time.Minute)
	defer cancel()
	log, err := w.client.Await(ctx, name, rotation, saga.Erased)
	if err != nil {
		return err
	}
	faults := []error{w.check(ctx, name, log, k.strategy), w.dead(ctx, stolen.login)}
	if log.Find(saga.Contained) == nil || log.Find(saga.Completed) == nil {
		faults = append(faults, fmt.Errorf("it went %v: %s", site.Events(log), failureOf(log)))
	}
	if stolen.session.Ping(ctx) == nil {
		faults = append(faults, errors.New("the stolen session is alive"))
	}
	if newest, err := w.client.ReadNewest(ctx, name); err != nil || newest.Rotation != rotation {
		faults = append(faults, fmt.Errorf("its newest rotation is %s, not the emergency %s: %v", newest.Rotation, rotation, err))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

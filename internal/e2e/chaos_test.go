package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestServersAndServicesAreKilledAtRandom rotates credentials over and over
// while NATS, PostgreSQL and the services are killed with SIGKILL, one after
// the other, by seed.
func TestServersAndServicesAreKilledAtRandom(t *testing.T) {
	kills := 16
	if *full {
		kills = 300
	}
	crowd := &crowd{by: map[string]kind{}}
	w := newWorld(t, 2, func(apps *site.Apps, _ *pgserver.Server) []site.Credential { return crowd.of(6, apps) })
	ends := w.rotateThrough(crowd, func(func() int) { w.killAtRandom(kills) })
	t.Logf("%d kills; rotations ended: %v", kills, ends)
}

// crowd are credentials that rotate at the same time.
type crowd struct {
	names []string
	by    map[string]kind
}

// of makes n credentials; every third is in-place.
func (c *crowd) of(n int, apps *site.Apps) (all []site.Credential) {
	for i := range n {
		k := kinds[0]
		if i%3 == 2 {
			k = kinds[2]
		}
		name := fmt.Sprintf("chaos-%d", i)
		c.by[name], c.names = k, append(c.names, name)
		all = append(all, k.credential(name, apps))
	}
	return all
}

// rotateThrough rotates all of them over and over until disturb returns, which may
// ask how many have ended, and once more; then nothing may be left undone. It
// returns how many ended how.
func (w *world) rotateThrough(c *crowd, disturb func(ended func() int)) map[saga.Event]int {
	t := w.t
	t.Helper()
	for _, name := range c.names {
		if err := w.apps.Start(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if _, err := w.client.Do(t.Context(), name, adopt); err != nil {
			t.Fatal(err)
		}
	}
	over, done := context.WithCancel(t.Context())
	var everybody sync.WaitGroup
	ends := map[saga.Event]int{}
	var mu sync.Mutex
	everybody.Go(func() {
		defer done()
		disturb(func() int {
			mu.Lock()
			defer mu.Unlock()
			return ends[saga.Completed] + ends[saga.RolledBack]
		})
	})
	for _, name := range c.names {
		everybody.Go(func() {
			for calm := false; !calm; { // the last one begins after the last kill
				calm = over.Err() != nil
				end, err := w.onceInChaos(t.Context(), name, c.by[name])
				mu.Lock()
				ends[end]++
				mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	everybody.Wait()
	for _, name := range c.names {
		log, err := w.client.ReadNewest(t.Context(), name)
		if err == nil {
			log, err = w.client.Await(t.Context(), name, log.Rotation, saga.Erased)
		}
		if err == nil {
			err = w.check(t.Context(), name, log, c.by[name].strategy)
		}
		if err != nil {
			t.Errorf("%s at the end: %v", name, err)
		}
	}
	return ends
}

// onceInChaos rotates once, under the eyes of the oracle.
func (w *world) onceInChaos(ctx context.Context, name string, k kind) (saga.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	oracle := w.site.Watch(ctx, name, 25*time.Millisecond, drainWindow/2)
	defer oracle.Stop()
	var rotation string
	for rotation == "" { // refused while a server is down: asked again, as a person would
		answer, err := w.client.Ask(ctx, name, rotate)
		if ctx.Err() != nil {
			return "", fmt.Errorf("never accepted: %v, %w", answer, errors.Join(err, ctx.Err()))
		}
		if err == nil && answer.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED {
			rotation = answer.GetRotation()
		}
	}
	log, err := w.client.Await(ctx, name, rotation, saga.Completed, saga.RolledBack)
	if err != nil {
		return "", err
	}
	oracle.Stop()
	for _, password := range oracle.Seen {
		w.seen.add(password.Reveal())
	}
	if k.strategy == "alternating" && len(oracle.Refusals) > 0 {
		err = fmt.Errorf("%d refused: %v", len(oracle.Refusals), oracle.Refusals[0])
	}
	state, foldErr := log.Fold()
	ended, _ := state.Ended()
	return ended.Event, errors.Join(err, foldErr, legal(log))
}

// killAtRandom kills so often, with pauses in between.
func (w *world) killAtRandom(times int) {
	names := w.fleet.Names()
	for range times {
		pause := time.NewTimer(200*time.Millisecond + time.Duration(w.random.Int64N(int64(time.Second))))
		<-pause.C
		switch w.random.IntN(6) {
		case 0:
			if err := w.site.Postgres.Kill(); err != nil {
				w.t.Errorf("kill PostgreSQL: %v", err)
			}
			if err := w.site.Postgres.Restart(context.Background()); err != nil {
				w.t.Errorf("start PostgreSQL again: %v", err)
			}
		case 1:
			_ = w.fleet.Signal("natsd", syscall.SIGKILL) // it may be dead already
		default:
			_ = w.fleet.Signal(names[w.random.IntN(len(names))], syscall.SIGKILL) // likewise
		}
	}
}

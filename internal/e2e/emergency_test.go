package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// emergencies holds an ordinary rotation up at points of its way, by stopping
// whoever is there, and asks for an emergency meanwhile; then the sleeper wakes.
func emergencies(w *world, d *deck) {
	var drills []drill
	for _, k := range kinds {
		if k.action != rotate || k.own || k.fails || k.cancels || k.cluster {
			continue
		}
		points := slices.DeleteFunc(slices.Clone(d.points[k.name]), func(p string) bool {
			return strings.HasSuffix(p, ".after") || strings.HasPrefix(p, "erase.") || strings.Contains(p, ".look for sessions(")
		})
		for _, i := range w.random.Perm(len(points))[:sample(len(points), 3)] {
			drills = append(drills, d.deal(k, "STOP", points[i]))
		}
	}
	slots := make(chan struct{}, 4)
	var all sync.WaitGroup
	for _, one := range drills {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			if err := w.superseded(w.t.Context(), one); err != nil {
				w.t.Errorf("emergency during %s:\n%v", one, err)
			}
		})
	}
	all.Wait()
}

func (w *world) superseded(ctx context.Context, d drill) error {
	ctx, cancel := context.WithTimeout(ctx, 150*time.Second)
	defer cancel()
	if err := w.apps.Start(ctx, d.credential); err != nil {
		return err
	}
	defer w.apps.Stop(context.WithoutCancel(ctx), d.credential)
	if err := d.kind.prepare(ctx, w, d.credential); err != nil {
		return err
	}
	old, err := w.site.Published(d.credential)
	if err != nil {
		return err
	}
	if err := w.fleet.Order(d.credential, d.points[0], d.what); err != nil {
		return err
	}
	defer w.withdraw(d)
	ordinary, err := w.ask(ctx, d.credential, rotate)
	if err != nil {
		return err
	}
	if err := w.stoppedOrOver(ctx, d, ordinary.GetRotation()); err != nil {
		return err
	}
	answer, err := w.ask(ctx, d.credential, contain)
	if err != nil {
		return err
	}
	log, err := w.await(ctx, d, answer.GetRotation(), saga.Completed)
	if err != nil {
		return err
	}
	return errors.Join(w.check(ctx, d.credential, log, d.kind.strategy), w.dead(ctx, old))
}

// stoppedOrOver waits until somebody was stopped, or nobody will be.
func (w *world) stoppedOrOver(ctx context.Context, d drill, rotation string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		log, err := w.client.ReadRotation(ctx, d.credential, rotation)
		if err == nil {
			if state, folded := log.Fold(); folded == nil && !state.Open() || w.fleet.Hit(d.credential, d.points[0]) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nobody came by %v: %w", d.points, ctx.Err())
		case <-tick.C:
		}
	}
}

// dead asserts that what was stolen lets nobody in, on the first node.
func (w *world) dead(ctx context.Context, stolen inventory.Login) error {
	conn, err := site.LoginAt(ctx, w.site.Nodes[0].Direct(), stolen, "thief")
	if err == nil {
		return errors.Join(fmt.Errorf("%s still logs in with what was stolen", stolen.User), conn.Close(ctx))
	}
	return nil
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// cut is one COMMIT of the db-rotator whose answer is cut off.
type cut struct {
	kind kind
	step string
	// armed once this event is stored; between it and the step no other role is altered
	after saga.Event
}

func cuts() []cut {
	by := map[string]kind{}
	for _, k := range kinds {
		by[k.name] = k
	}
	return []cut{
		{by["alternating"], "stage", saga.Requested},
		{by["alternating"], "retire", saga.Published},
		{by["alternating"], "erase", saga.Retired},
		{by["alternating-back"], "unstage", saga.Restarted},
		{by["in-place"], "stage", saga.Requested},
		{by["in-place"], "retire", saga.Published},
		{by["in-place-back"], "unstage", saga.Restarted},
		{by["undo-alternating"], "reinstate", saga.Requested},
		{by["undo-alternating"], "unstage", saga.Reinstated},
		{by["undo-in-place"], "unstage", saga.Requested},
	}
}

// TestUnknownOutcomeOfCommit cuts the connection at the COMMIT of each step
// that changes a role: once before it lands, once after.
func TestUnknownOutcomeOfCommit(t *testing.T) {
	cutters := map[string]*pgserver.Cutter{}
	sides := map[string]pgserver.Cut{"lost": pgserver.BeforeCommit, "landed": pgserver.AfterCommit}
	name := func(c cut, side string) string { return fmt.Sprintf("%s-%s-%s", c.kind.name, c.step, side) }
	w := newWorld(t, 1, func(apps *site.Apps, server *pgserver.Server) (all []site.Credential) {
		for _, c := range cuts() {
			for side := range sides {
				cutter, err := pgserver.NewCutter(fmt.Sprintf("%s:%d", server.Host, server.Port))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = cutter.Close() }) // the server behind it is gone already
				credential := c.kind.credential(name(c, side), apps)
				credential.Port = cutter.Port
				cutters[credential.Name] = cutter
				all = append(all, credential)
			}
		}
		return all
	})
	for _, c := range cuts() {
		for side, where := range sides {
			if err := w.cutOnce(t.Context(), c, name(c, side), cutters[name(c, side)], where); err != nil {
				t.Errorf("%s of %s, COMMIT %s:\n%v", c.step, c.kind.name, side, err)
			}
		}
	}
}

func (w *world) cutOnce(ctx context.Context, c cut, credential string, cutter *pgserver.Cutter, where pgserver.Cut) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := w.apps.Start(ctx, credential); err != nil {
		return err
	}
	defer w.apps.Stop(context.WithoutCancel(ctx), credential)
	if err := c.kind.prepare(ctx, w, credential); err != nil {
		return fmt.Errorf("before the cut: %w", err)
	}
	oracle := w.site.Watch(ctx, credential, 25*time.Millisecond, drainWindow/2)
	var happened <-chan struct{}
	if c.after == saga.Requested {
		happened = cutter.Arm(where, "") // preflight commits nothing
	}
	answer, err := w.ask(ctx, credential, c.kind.action)
	if err != nil {
		return err
	}
	if happened == nil {
		if _, err := w.client.Await(ctx, credential, answer.GetRotation(), c.after); err != nil {
			return err
		}
		happened = cutter.Arm(where, "")
	}
	log, err := w.client.Await(ctx, credential, answer.GetRotation(), c.kind.last())
	oracle.Stop()
	if err != nil {
		return err
	}
	var faults []error
	select {
	case <-happened:
	default:
		faults = append(faults, errors.New("no COMMIT was cut"))
	}
	if log.Find(c.kind.end) == nil {
		faults = append(faults, fmt.Errorf("ended otherwise than %s: %v %s", c.kind.end, site.Events(log), failureOf(log)))
	}
	if c.kind.strategy == "alternating" && len(oracle.Refusals) > 0 {
		faults = append(faults, fmt.Errorf("refused: %v", oracle.Refusals))
	}
	return errors.Join(append(faults, w.check(ctx, credential, log, c.kind.strategy))...)
}

// last is the event after which nothing more happens.
func (k kind) last() saga.Event {
	switch {
	case k.keep == "" && k.action != pawlv1.Action_ACTION_ADOPT:
		return saga.Erased
	default:
		return k.end
	}
}

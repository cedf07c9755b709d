package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"pawl.dev/cmd/pawl/backup"
	"pawl.dev/cmd/pawl/restore"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/trail"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestRestoreOfBackupFromAnyStepEndsInconsistent makes backups while every flow is
// at work, lets the flows end and others follow, restores one of the backups, and
// looks what becomes of each credential: its rotation ends, or is held and said to
// be; what is published logs in, and what was stolen does not.
func TestRestoreOfBackupFromAnyStepEndsInconsistent(t *testing.T) {
	random := newRandom(t)
	all := subjects()
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	n, others := 1, 11
	if *full {
		n, others = len(all), 7
	}
	seen := map[string]int{}
	var rounds []*restoreRound
	for round, s := range all[:n] {
		r := &restoreRound{round: round, subject: s, pasts: []past{s.past}, seen: seen, stolen: map[string]inventory.Login{}, after: map[string]inventory.Login{}}
		beside := slices.DeleteFunc(pasts(), func(p past) bool { return p.String() == s.String() })
		for _, i := range random.Perm(len(beside))[:others] {
			r.pasts = append(r.pasts, beside[i])
		}
		rounds = append(rounds, r)
	}
	w := newWorld(t, 1, func(apps *site.Apps, _ *pgserver.Server) (all []site.Credential) {
		for _, r := range rounds {
			for _, p := range r.pasts {
				c := p.credential(r.name(p), apps)
				if p.kept != "" {
					c.Keep = p.kept
				}
				all = append(all, c)
			}
		}
		return all
	})
	for _, r := range rounds {
		r.world = w
		r.run()
		if t.Failed() {
			break
		}
	}
	for _, at := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%3d × restored %s", seen[at], at)
	}
}

// restoreRound is one backup, restored.
type restoreRound struct {
	*world
	round   int
	subject subject
	pasts   []past
	seen    map[string]int // restored states
	mu      sync.Mutex
	stolen  map[string]inventory.Login // by credential: what an emergency has contained
	after   map[string]inventory.Login // what was published in the end
}

func (r *restoreRound) name(p past) string { return fmt.Sprintf("r%d-%s", r.round, p) }

// each does work for every credential of the round, some at once.
func (r *restoreRound) each(ctx context.Context, what string, work func(context.Context, past) error) {
	r.t.Helper()
	began := time.Now()
	defer func() { r.t.Logf("%s: %v", what, time.Since(began).Round(time.Millisecond)) }()
	slots := make(chan struct{}, 16)
	var all sync.WaitGroup
	for _, p := range r.pasts {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := work(ctx, p); err != nil {
				r.t.Errorf("%s: %s: %v", r.name(p), what, err)
			}
		})
	}
	all.Wait()
}

func (r *restoreRound) run() {
	ctx, cancel := context.WithTimeout(r.t.Context(), 8*time.Minute)
	defer cancel()
	r.each(ctx, "prepare", func(ctx context.Context, p past) error {
		if err := r.apps.Start(ctx, r.name(p)); err != nil {
			return err
		}
		return p.prepare(ctx, r.world, r.name(p))
	})
	defer r.each(context.WithoutCancel(ctx), "stop", func(ctx context.Context, p past) error { r.apps.Stop(ctx, r.name(p)); return nil })
	if err := r.fleet.Order(r.name(r.subject.past), r.subject.point, "STOP"); err != nil {
		r.t.Fatal(err)
	}
	chosen := r.backUpDuring(ctx, func() { r.each(ctx, "flow", r.live) })
	if r.t.Failed() {
		return
	}
	r.replace(ctx, chosen)
	if r.t.Failed() {
		return
	}
	r.each(ctx, "after the restore", r.settles)
	if r.t.Failed() {
		return
	}
	r.verifyTrail(ctx)
	r.each(ctx, "way out", r.recovers)
	r.verifyTrail(ctx)
}

// backUpDuring makes one backup after the other while work goes on. It returns the
// one that was made while the subject stood at its point, or, if nobody came by
// there, any.
func (r *restoreRound) backUpDuring(ctx context.Context, work func()) (chosen string) {
	r.t.Helper()
	over := make(chan struct{})
	var backing sync.WaitGroup
	var files []string
	backing.Go(func() {
		for ended := false; !ended; {
			_, _, err := r.fleet.Stopped(r.name(r.subject.past), r.subject.point)
			stands := err == nil && chosen == ""
			select {
			case <-over:
				ended = true
			default:
			}
			file := filepath.Join(r.site.Dir, fmt.Sprintf("round-%d-%03d.backup", r.round, len(files)))
			w, err := backup.Write(ctx, backup.Options{Inventory: r.site.Inventory, Out: file})
			if err != nil {
				r.t.Errorf("backup under load: %v", err)
				r.fleet.Continue()
				return
			}
			if files = append(files, file); stands {
				chosen = file
				r.fleet.Continue()
			}
			if ended {
				r.t.Logf("the last of %d backups: %d messages, %d bytes, in %v", len(files), w.Messages, w.Bytes, w.Took)
			}
		}
	})
	work()
	close(over)
	backing.Wait()
	r.fleet.Withdraw(r.name(r.subject.past), r.subject.point)
	what := fmt.Sprintf("round %d: %d backups, restored is that of %s at %s", r.round, len(files), r.subject.past, r.subject.point)
	if chosen == "" && len(files) > 0 {
		chosen = files[r.random.IntN(len(files))]
		what = fmt.Sprintf("round %d: nobody came by %s of %s", r.round, r.subject.point, r.subject.past)
	}
	r.t.Log(what)
	return chosen
}

// live is the credential's past, and remembers where it has ended.
func (r *restoreRound) live(ctx context.Context, p past) error {
	for _, action := range []pawlv1.Action{p.action, p.then} {
		if action == pawlv1.Action_ACTION_UNSPECIFIED {
			continue
		}
		if action == contain || action == lock {
			stolen, err := r.site.Published(r.name(p))
			if err != nil {
				return err
			}
			r.mu.Lock()
			r.stolen[r.name(p)] = stolen
			r.mu.Unlock()
		}
		if p.fails && action == contain {
			if err := r.mend(ctx, p); err != nil {
				return err
			}
		}
		if err := r.ends(ctx, p, action); err != nil {
			return err
		}
	}
	login, err := r.site.Published(r.name(p))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.after[r.name(p)] = login
	return err
}

// ends asks, and waits for the very end.
func (r *restoreRound) ends(ctx context.Context, p past, action pawlv1.Action) error {
	answer, err := r.ask(ctx, r.name(p), action)
	if err != nil {
		return err
	}
	last := []saga.Event{saga.Erased}
	if r.site.Inventory.Credentials[r.name(p)].Keep > 0 || action == adopt || action == lock {
		last = []saga.Event{saga.Completed, saga.RolledBack}
	}
	_, err = r.client.Await(ctx, r.name(p), answer.GetRotation(), last...)
	return err
}

// mend has the failing probe pass again.
func (r *restoreRound) mend(ctx context.Context, p past) error {
	conn, err := r.site.Superuser(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, fmt.Sprintf("COMMENT ON ROLE %s IS NULL", site.Role(r.name(p))))
	return err
}

// replace loses the store, and restores the backup in its place.
func (r *restoreRound) replace(ctx context.Context, file string) {
	r.t.Helper()
	r.client.NATS.Close()
	r.fleet.Stop()
	if err := os.RemoveAll(filepath.Join(r.site.Inventory.DataDir, "nats")); err != nil {
		r.t.Fatal(err)
	}
	if _, err := restore.Run(ctx, restore.Options{Inventory: r.site.Inventory, File: file, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}); err != nil {
		r.t.Fatal(err)
	}
	r.runFleet(1, stepDeadline)
}

// settles waits until the restored rotation has ended or is held, and looks at what
// that has left.
func (r *restoreRound) settles(ctx context.Context, p past) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	first, err := r.client.ReadNewest(ctx, r.name(p))
	if err != nil {
		return err
	}
	v, log, err := r.quiet(ctx, r.name(p))
	if err != nil {
		return err
	}
	r.mu.Lock()
	was := "nothing"
	if mark, err := r.client.Restored(ctx); err == nil && mark != nil && len(first.Records) > 0 {
		records := slices.DeleteFunc(slices.Clone(first.Records), func(e bus.Record) bool { return e.Seq > mark.Log })
		if len(records) > 0 {
			was = records[0].Body.GetRequested().GetFlow() + " at " + string(records[len(records)-1].Event)
		}
	}
	r.seen[fmt.Sprintf("%s: %s", was, v.Standing)]++
	r.mu.Unlock()
	now, err := r.site.Published(r.name(p))
	if err != nil {
		return err
	}
	about := fmt.Sprintf("restored %s, its past was %s, now %s (%s) at %v", was, p, v.Standing, v.Why, site.Events(log))
	var faults []error
	if v.Standing == restored.Held && (now.User != r.after[r.name(p)].User || !now.Password.Equal(r.after[r.name(p)].Password)) {
		faults = append(faults, errors.New("it is held, and another login is published than before the restore"))
	}
	if conn, err := r.site.LoginPublished(ctx, r.name(p), "check"); err == nil {
		faults = append(faults, conn.Close(ctx))
	} else if !p.isLocked() {
		faults = append(faults, fmt.Errorf("what is published does not log in: %w", err))
	}
	faults = append(faults, r.staysOut(ctx, p))
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%s: %w", about, err)
	}
	return nil
}

// quiet waits until nothing more happens to the credential by itself.
func (r *restoreRound) quiet(ctx context.Context, name string) (restored.Verdict, bus.Log, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		log, err := r.client.ReadNewest(ctx, name)
		var v restored.Verdict
		if err == nil {
			v, err = restored.Of(ctx, r.client.Bus, log)
		}
		if err == nil && v.Standing == restored.Held || len(log.Records) == 0 && err == nil {
			return v, log, nil
		}
		if err == nil && v.Standing != restored.Unknown {
			if state, err := log.Fold(); err == nil && !state.Open() {
				return v, log, nil
			}
		}
		select {
		case <-ctx.Done():
			return v, log, fmt.Errorf("not quiet: %s (%s) at %v: %w", v.Standing, v.Why, site.Events(log), errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

// staysOut proves that what was stolen cannot log in.
func (r *restoreRound) staysOut(ctx context.Context, p past) error {
	login, ok := r.stolen[r.name(p)]
	if !ok {
		return nil
	}
	conn, err := site.LoginAt(ctx, r.site.Nodes[0].Direct(), login, "thief")
	if err != nil {
		return nil
	}
	return errors.Join(errors.New("what was stolen logs in"), conn.Close(ctx))
}

// recovers takes the way that the runbook names, and rotates.
func (r *restoreRound) recovers(ctx context.Context, p past) error {
	if p.fails {
		if err := r.mend(ctx, p); err != nil {
			return err
		}
	}
	v, log, err := r.quiet(ctx, r.name(p))
	if err != nil {
		return err
	}
	way := []pawlv1.Action{}
	isLock := len(log.Records) > 0 && saga.Kind(log.Records[0].Body.GetRequested().GetFlow()) == saga.Lock
	switch {
	case v.Standing == restored.Held && p.isLocked():
		way = append(way, contain) // nobody can log in
	case v.Standing == restored.Held:
		way = append(way, adopt)
	case isLock:
		way = append(way, unlock)
	default:
		if state, err := log.Fold(); err != nil || bus.CurrentOf(log, state).Rotation == "" {
			way = append(way, adopt) // not adopted when the backup was made
		}
	}
	for _, action := range append(way, rotate) {
		if err := r.apps.Start(ctx, r.name(p)); action == rotate && err != nil { // an emergency may have ended its session
			return err
		}
		answer, err := r.ask(ctx, r.name(p), action)
		if err != nil {
			return err
		}
		log, err := r.client.Await(ctx, r.name(p), answer.GetRotation(), saga.Completed, saga.RolledBack)
		if err != nil {
			return err
		}
		if log.Find(saga.Completed) == nil {
			return fmt.Errorf("%s after %s (%s): %v %s", action, v.Standing, v.Why, site.Events(log), failureOf(log))
		}
	}
	conn, err := r.site.LoginPublished(ctx, r.name(p), "check")
	if err != nil {
		return fmt.Errorf("what is published in the end does not log in: %w", err)
	}
	return errors.Join(conn.Close(ctx), r.staysOut(ctx, p))
}

// verifyTrail proves the audit trail, once the auditor has caught up.
func (r *restoreRound) verifyTrail(ctx context.Context) {
	r.t.Helper()
	keys, err := trail.LoadKeys(trail.PublicFile(r.site.Inventory.KeysDir))
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		result, err := trail.VerifyLive(ctx, r.client.Bus, keys)
		if err == nil && result.Unrecorded == 0 {
			return
		}
		if fault := new(trail.Fault); errors.As(err, &fault) {
			r.t.Error(err)
			return
		}
		select {
		case <-ctx.Done():
			r.t.Errorf("audit trail: %d messages are not recorded: %v", result.Unrecorded, err)
			return
		case <-tick.C:
		}
	}
}

package rotator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
)

// heldCondition names a credential of a restored store that nothing is done with.
const heldCondition = "restored"

// restAfter is how long it is not asked again whether the store was restored, if
// there is nothing to compare: `pawl restore` may be run beside this process.
const restAfter = 10 * time.Second

// compareRestored compares each restored credential with the databases until all
// agree, and again after another restore, until ctx ends. What was held is compared
// again and again: a person may have mended it.
func (r *Reconciler) compareRestored(ctx context.Context) {
	var of, held time.Time // which restore; when those that were held were compared last
	var left []*inventory.Credential
	for {
		wait := time.Second
		switch mark, err := r.d.Bus.Restored(ctx); {
		case err != nil && ctx.Err() == nil:
			r.d.Log.Warn("restored credentials not compared; again soon", "error", err)
		case mark == nil:
			wait = restAfter
		default:
			if !mark.At.Equal(of) {
				of, left = mark.At, slices.Collect(maps.Values(r.d.Inventory.Credentials))
			}
			again := time.Since(held) >= r.every
			if again {
				held = time.Now()
			}
			if left = r.passRestored(ctx, left, again); len(left) == 0 {
				wait = restAfter
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// passRestored looks at each credential once, some at a time, and returns those that
// do not agree yet. One that agrees does so from then on.
func (r *Reconciler) passRestored(ctx context.Context, all []*inventory.Credential, again bool) (left []*inventory.Credential) {
	var mu sync.Mutex
	var looking errgroup.Group
	looking.SetLimit(8)
	for _, c := range all {
		looking.Go(func() error {
			agrees, err := r.compareOne(ctx, c, again)
			if err != nil && ctx.Err() == nil {
				r.d.Conditions.Raise(condition.Condition{Name: heldCondition, Object: c.Name,
					Text: fmt.Sprintf("restored from a backup, and not compared with every node yet: %v; nothing is done with it before", err)})
				r.d.Log.Warn("restored credential not compared; again soon", "credential", c.Name, "error", err)
			}
			if !agrees {
				mu.Lock()
				defer mu.Unlock()
				left = append(left, c)
			}
			return nil
		})
	}
	_ = looking.Wait() // each has told of its own
	return left
}

func (r *Reconciler) compareOne(ctx context.Context, c *inventory.Credential, again bool) (agrees bool, err error) {
	log, err := r.log(ctx, c.Name)
	if err != nil || len(log.Records) == 0 {
		return err == nil, err
	}
	said, err := restored.Of(ctx, r.d.Bus, log)
	switch {
	case err != nil:
		return false, err
	case said.Standing == restored.Agrees:
		r.d.Conditions.Clear(heldCondition, c.Name)
		// An adoption that fails leaves what it began from, which may be held.
		begin := log.Records[0].Body.GetRequested()
		return !saga.FlowLike(begin.GetFlow()).Adopts || log.Find(saga.Completed) != nil, nil
	case said.Standing != restored.Unknown && !again:
		r.d.Conditions.Update(said.Standing == restored.Held, condition.Condition{Name: heldCondition, Object: c.Name, Text: said.Why})
		return false, nil
	}
	now, err := r.rotator.compareWithLog(ctx, c, log)
	if err != nil {
		return false, err
	}
	if now != said {
		if err := restored.Tell(ctx, r.d.Bus, log, now); err != nil {
			return false, err
		}
		r.d.Log.Info("restored credential compared", "credential", c.Name, "rotation", log.Rotation, "standing", string(now.Standing), "why", now.Why)
	}
	r.d.Conditions.Update(now.Standing == restored.Held, condition.Condition{Name: heldCondition, Object: c.Name, Text: now.Why})
	return now.Standing == restored.Agrees, nil
}

// compareWithLog says what a restored log is worth: whether the fence and the
// logins of every node are where it says, or at most where its next step leads.
// It returns an error if a node cannot be asked.
func (o *Rotator) compareWithLog(ctx context.Context, c *inventory.Credential, log bus.Log) (restored.Verdict, error) {
	state, err := log.Fold()
	if err != nil {
		return restored.Verdict{}, err
	}
	held, err := o.heldBy(ctx, c, state.Flow.Urgent)
	if err != nil {
		return restored.Verdict{}, err
	}
	undone := false
	for _, name := range slices.Sorted(maps.Keys(held)) {
		standing, why := o.judgeFence(log, state, held[name].Fences[c.Role])
		switch standing {
		case restored.Held:
			return heldBecause(c, name+": "+why), nil
		case restored.Undone:
			undone = true
		}
	}
	why, err := o.judgeLogins(ctx, c, log, state, held, undone)
	switch {
	case err != nil:
		return restored.Verdict{}, err
	case why != "":
		return heldBecause(c, why), nil
	case undone:
		return restored.Verdict{Standing: restored.Undone, Why: fmt.Sprintf("rotation %s was rolled back after the backup: the databases show it", log.Rotation)}, nil
	}
	return restored.Verdict{Standing: restored.Agrees, Why: "the databases are where the restored log is"}, nil
}

func heldBecause(c *inventory.Credential, why string) restored.Verdict {
	return restored.Verdict{Standing: restored.Held, Why: fmt.Sprintf("%s. The backup is older, so nothing is done with %s. Fix: `pawl adopt %[2]s` takes over what is published now; if the application cannot log in, `pawl emergency %[2]s` issues a new password", why, c.Name)}
}

// heldBy reads what every node holds. Of an emergency, which goes on without the
// nodes that it cannot reach, one is enough.
func (o *Rotator) heldBy(ctx context.Context, c *inventory.Credential, urgent bool) (map[string]postgres.Holdings, error) {
	var mu sync.Mutex
	all := map[string]postgres.Holdings{}
	err := o.onEach(effect.With(ctx, &effect.Recorder{Credential: c.Name}), c, "compare after restore", func(ctx context.Context, s *primary) error {
		h, err := s.Holdings(ctx, []string{c.Role, c.Sibling()}, []string{c.Role})
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all[s.Name] = h
		return nil
	})
	if urgent && len(all) > 0 {
		err = nil
	}
	return all, err
}

// judgeFence compares one node's fence, which every step that changes a login
// passes, with the log.
func (o *Rotator) judgeFence(log bus.Log, state saga.State, f postgres.Fence) (restored.Standing, string) {
	newest := log.Fence()
	found := newest > log.Records[0].Body.GetRequested().GetGeneration() // so it is another rotation's
	switch {
	case f.Generation > newest:
		return restored.Held, fmt.Sprintf("the database is ahead of the log: %q is at generation %d (rotation %s), the log at %d", f.Role, f.Generation, f.Rotation, newest)
	case f.Generation < newest || found || state.Flow.Adopts:
		return restored.Agrees, ""
	case f.Rotation != log.Rotation:
		return restored.Held, fmt.Sprintf("generation %d of %q is rotation %s in the database, and %s in the log", f.Generation, f.Role, f.Rotation, log.Rotation)
	case f.Phase <= furthest(state) && !(state.Failed != nil && f.Phase == phaseRetire):
		return restored.Agrees, ""
	case f.Phase == phaseUndo && state.Open() && state.Failed == nil && !state.Next().Retriable():
		return restored.Undone, ""
	}
	return restored.Held, fmt.Sprintf("rotation %s went on after the backup (phase %d at %q), and the restored log would repeat steps", log.Rotation, f.Phase, f.Role)
}

// phaseOf is the phase in which each step of the db-rotator passes the fence.
var phaseOf = map[string]int{
	"stage": phaseBegin, "reinstate": phaseBegin, "contain": phaseBegin,
	"issue": phaseRetire, "release": phaseRetire, "retire": phaseRetire, "unstage": phaseUndo,
}

// furthest is the phase that a node's fence may have reached so that the rotation
// can go on by its rows: while it may still fail, not past the point of no return;
// after that, that of the next step that passes the fence.
func furthest(state saga.State) int {
	next := state.Next()
	switch _, ended := state.Ended(); {
	case next == nil || ended:
		return phaseErase
	case !next.Retriable():
		return phaseBegin
	}
	rows := state.Flow.Forward
	if state.Failed != nil {
		rows = state.Flow.Undo
	}
	from := slices.IndexFunc(rows, func(s saga.Step) bool { return s.Name == next.Name })
	for _, row := range rows[from:] {
		if phase, passes := phaseOf[row.Name]; passes {
			return phase
		}
	}
	return phaseErase
}

// judgeLogins says why what the nodes hold cannot be what the log speaks of; empty
// if it can. An ended rotation has an expectation for each login; while one is
// open, one of the logins that it knows must be able to log in.
func (o *Rotator) judgeLogins(ctx context.Context, c *inventory.Credential, log bus.Log, state saga.State, held map[string]postgres.Holdings, undone bool) (why string, err error) {
	if state.Open() {
		return o.judgeOpen(ctx, c, log, state, held, undone)
	}
	e, err := o.expect(ctx, c, log)
	switch {
	case errors.Is(err, sealed.ErrNotFound) || errors.Is(err, sealed.ErrWrongKey):
		return err.Error(), nil
	case err != nil || e == nil:
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(held)) {
		if held[name].Fences[c.Role].Phase == phaseErase {
			e.kept = nil // erased after the backup, as this log is about to
		}
		if v := e.judge(o, held[name]); v.wrong != "" && !v.lost {
			return name + ": " + v.wrong, nil
		}
	}
	return "", nil
}

func (o *Rotator) judgeOpen(ctx context.Context, c *inventory.Credential, log bus.Log, state saga.State, held map[string]postgres.Holdings, undone bool) (why string, err error) {
	begin := log.Records[0].Body.GetRequested()
	made, basis := log.Rotation, []string{begin.GetBasis(), begin.GetRestores()}
	var known []*sealed.Credential
	for _, rotation := range append(basis, made) {
		if rotation == "" {
			continue
		}
		envelope, err := o.envelopes.Open(ctx, c.Name, rotation)
		switch missing := errors.Is(err, sealed.ErrNotFound) || errors.Is(err, sealed.ErrWrongKey); {
		case missing && o.isNeeded(rotation == made, log, state, held, c, undone):
			return err.Error(), nil
		case missing:
		case err != nil:
			return "", err
		default:
			known = append(known, envelope)
		}
	}
	if state.Flow.Urgent || state.Flow.Adopts {
		return "", nil // nobody has to be able to log in; an adoption compares by itself
	}
	for _, name := range slices.Sorted(maps.Keys(held)) {
		if !slices.ContainsFunc(known, func(e *sealed.Credential) bool {
			role := held[name].Roles[e.User]
			return role.CanLogin && carries(role, e)
		}) {
			return fmt.Sprintf("%s: none of the passwords that the log knows can log in as %s", name, strings.Join(c.Logins(), " or ")), nil
		}
	}
	return "", nil
}

// isNeeded reports whether the rotation cannot go on without what is sealed under
// one that it made, or that it began from. Its own is sealed before the first
// change: if a node has that, and the backup not, the password is lost.
func (o *Rotator) isNeeded(own bool, log bus.Log, state saga.State, held map[string]postgres.Holdings, c *inventory.Credential, undone bool) bool {
	switch flow := state.Flow; {
	case !own:
		return !flow.Urgent && !flow.Adopts
	case flow.Locks || flow.Restores || undone:
		return false
	case log.Find(saga.Staged) != nil || log.Find(saga.Adopted) != nil:
		return true
	}
	issued := phaseBegin
	if state.Flow.Urgent {
		issued = phaseRetire
	}
	for _, h := range held {
		if f := h.Fences[c.Role]; f.Rotation == log.Rotation && f.Phase >= issued && f.Phase != phaseUndo {
			return true
		}
	}
	return false
}

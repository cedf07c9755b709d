package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
)

// freeEvery is how often a transaction that waits for a lock is looked at.
const freeEvery = 50 * time.Millisecond

// refuse takes LOGIN from both logins, and their passwords, too, where strip says so:
// each by itself, so that a lock on one keeps nobody from refusing the other. Who is
// inside, and what holds a lock, is ended meanwhile.
func (k *containment) refuse(ctx context.Context, s *primary, strip bool) error {
	for left := []string{k.c.Role, k.c.Sibling()}; ; {
		var again []string
		var failed error
		for _, login := range left {
			if err := k.refuseOne(ctx, s, login, strip); err != nil {
				again, failed = append(again, login), saga.Join([]error{failed, err})
			}
		}
		waits := errors.Is(failed, postgres.ErrLocked)
		if failed == nil || ctx.Err() != nil || !waits && !errors.Is(failed, postgres.ErrUnknownOutcome) {
			return k.explain(s.Node, failed)
		}
		if waits {
			if err := k.pass(ctx, s.Admin); err != nil {
				return k.explain(s.Node, err)
			}
		}
		left = again
	}
}

// lookBack sees, before this attempt passes the fence of a node, whether an earlier one
// has. A fence that may not be read was not passed by one either; one that does not answer
// holds nothing up, and may have been.
func (k *containment) lookBack(ctx context.Context, a *postgres.Admin) error {
	k.mu.Lock()
	looked := k.looked[a.Node]
	k.mu.Unlock()
	if looked {
		return nil
	}
	read := a.Stored
	if k.isSeveral(a) {
		read = k.o.jointlyOn(a, k.c.Cluster).fences.ask
	}
	stored, err := read(ctx, k.c.Role)
	refused := errors.As(err, new(*postgres.Refused)) && !postgres.IsCrowded(err)
	if err != nil && ctx.Err() == nil && !refused {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looked[a.Node] = true
	k.again = k.again || err != nil && !refused || err == nil && stored.Rotation == k.fence.Rotation
	return nil
}

// refuseOne tries once. That a login is refused does not depend on the fence: what is
// late, and came in before the fence was passed, is undone when the password is taken.
// If not even the fence can be read, patience is the limit of what can be late. If Pawl
// has no right to pass the fence or to do so unlogged, neither has anybody who is late,
// and nothing that is done here needs to be kept from the server's log.
func (k *containment) refuseOne(ctx context.Context, s *primary, login string, strip bool) error {
	work := func(ctx context.Context, tx *postgres.Tx) error { return k.refuseLogin(ctx, tx, login, strip) }
	err := k.freeing(ctx, s.Admin, func(f postgres.Fence) error { return behindFence(ctx, s, f, k.stillDue, work) })
	locked := errors.Is(err, postgres.ErrLocked) && !strip
	if !locked && !postgres.IsRefused(err, postgres.NotPermitted) || ctx.Err() != nil {
		return err
	}
	return k.freeing(ctx, s.Admin, func(f postgres.Fence) error {
		return notLate(ctx, f, k.stillDue, func(f postgres.Fence) error { return s.Beside(ctx, f, work) })
	})
}

// freeing runs a transaction, and looks meanwhile at what keeps it waiting.
func (k *containment) freeing(ctx context.Context, a *postgres.Admin, transact func(postgres.Fence) error) error {
	f := k.fence
	f.Waits = new(atomic.Uint32)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(freeEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				k.free(ctx, a, f.Waits.Load())
			}
		}
	}()
	err := transact(f)
	close(done)
	<-stopped
	return err
}

// free ends who is inside, and what keeps the session pid waiting, where that is
// Pawl's to end. The rest is remembered by its name.
func (k *containment) free(ctx context.Context, a *postgres.Admin, pid uint32) {
	if _, err := k.end(ctx, a); err != nil || pid == 0 {
		return // the next look, or who waits for it, says what is wrong
	}
	blockers, err := a.Blockers(ctx, pid, k.logins(), postgres.Accounts(k.c.Cluster))
	if err != nil {
		return
	}
	var held []string
	theirs, own := postgres.Eviction{Except: postgres.Accounts(k.c.Cluster)}, postgres.Eviction{}
	for _, b := range blockers {
		switch {
		case b.Own:
			own.Sessions = append(own.Sessions, b.SessionID)
			continue
		case b.PID == 0 && b.Theirs:
			if err := k.rollback(ctx, a, b.Prepared); err == nil {
				continue
			} else if ctx.Err() == nil {
				held = append(held, fmt.Sprintf("%v (%v)", b, err))
				continue
			}
		case b.Theirs:
			theirs.Sessions = append(theirs.Sessions, b.SessionID)
		}
		held = append(held, b.String())
	}
	for _, e := range []postgres.Eviction{theirs, own} {
		if len(e.Sessions) > 0 {
			_, _ = k.endThese(ctx, a, e)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(held) > 0 { // else it may be that nothing waits at this moment
		k.held[a.Node] = strings.Join(held, "; ")
	}
}

// explain adds to an error of a node what still held its locks.
func (k *containment) explain(node string, err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if held := k.held[node]; err != nil && held != "" {
		return fmt.Errorf("%w: %s", err, held)
	}
	return err
}

func (k *containment) refuseLogin(ctx context.Context, tx *postgres.Tx, login string, strip bool) error {
	role, unread, err := tx.RoleIfReadable(ctx, login)
	if err != nil || !role.Exists {
		return err
	}
	if err := stranger(ctx, tx, k.c, login); saga.IsPermanent(err) {
		effect.Warn(ctx, "%v; left as it is", err)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.exists, k.had = true, true
		return nil
	} else if err != nil {
		return err
	}
	k.meets(login, role, unread)
	switch {
	case strip && (unread != nil || !role.Verifier.IsZero() || k.clings(tx.Node())):
		if unread != nil {
			effect.Warn(ctx, "password of %q is taken without having been read: %v", login, unread)
		}
		return tx.SetVerifier(ctx, login, false, secret.String{})
	case role.CanLogin:
		return tx.SetLogin(ctx, login, false)
	}
	return nil
}

// meets remembers a login as it was, before it is refused.
func (k *containment) meets(login string, role postgres.Role, unread error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.Contains(k.found.Logins, login) {
		k.found.Logins = append(k.found.Logins, login)
	}
	k.exists = k.exists || login != k.basis
	if unread == nil && role.Verifier.IsZero() {
		return
	}
	k.had = k.had || login != k.basis
	if k.o.envelopes != nil && unread == nil {
		k.found.Carried = append(k.found.Carried, k.o.envelopes.Fingerprint(login, role.Verifier))
	}
}

// clings reports whether a session on the node does not end. If it has begun to change a
// login, it fails on a row that is written after that.
func (k *containment) clings(node string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.told[node] != nil && len(k.told[node].still) > 0
}

// behindFence works behind the rotation's fence, or the database's own: see notLate.
func behindFence(ctx context.Context, s *primary, f postgres.Fence, stillDue func(context.Context) error, work func(context.Context, *postgres.Tx) error) error {
	return notLate(ctx, f, stillDue, func(f postgres.Fence) error { return s.Fenced(ctx, f, work) })
}

// notLate has transact go by the rotation's fence; where the database is ahead of the
// log, by the database's own, if the log still wants it: refusing a stolen login is
// never wrong.
func notLate(ctx context.Context, f postgres.Fence, stillDue func(context.Context) error, transact func(postgres.Fence) error) error {
	err := transact(f)
	refused := new(postgres.FencedOff)
	if !errors.As(err, &refused) {
		return err
	}
	if err := stillDue(ctx); err != nil {
		return err
	}
	if refused.Ahead() || f.Rotation == "" {
		f.Generation, f.Phase = refused.Stored.Generation, max(f.Phase, refused.Stored.Phase)
		if f.Rotation == "" { // else the guard tells by it when this rotation's login has returned
			f.Rotation = refused.Stored.Rotation
		}
		return transact(f)
	}
	return err
}

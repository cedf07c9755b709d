package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Retire refuses the old login once it has been unused for the drain window. In
// place there is none: it only closes the way back.
func (o *Rotator) Retire(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	envelope, err := o.envelopes.Open(ctx, r.Credential.Name, r.ID)
	if err != nil {
		return nil, err
	}
	if alternating(r) {
		return o.refuse(ctx, r, phaseRetire, r.Requested().GetBasisUser(), envelope)
	}
	err = o.change(ctx, r, "close way back", phaseRetire, func(ctx context.Context, _ *primary, tx *postgres.Tx) error {
		role, err := tx.RoleState(ctx, envelope.User)
		if err != nil {
			return err
		}
		return working(role, envelope)
	})
	return &pawlv1.Event{Summary: fmt.Sprintf("%q carries the new password on %s", envelope.User, everywhere(r.Credential))}, err
}

// refuse lets the drained login log in no more; its password stays, for a way
// back. It never takes the last working login away.
func (o *Rotator) refuse(ctx context.Context, r *service.Rotation, phase int, login string, stays *sealed.Credential) (*pawlv1.Event, error) {
	if login == stays.User {
		return nil, saga.Permanentf("%q is the login that stays", login)
	}
	if err := o.drained(ctx, r, login, drain(r)); err != nil {
		return nil, err
	}
	err := o.change(ctx, r, "refuse login", phase, func(ctx context.Context, s *primary, tx *postgres.Tx) error {
		roles, err := tx.RoleStates(ctx, login, stays.User)
		if err != nil || !roles[login].CanLogin {
			return err
		}
		if err := working(roles[stays.User], stays); err != nil {
			return err
		}
		sessions, err := tx.Sessions(ctx, []string{login})
		if err != nil {
			return err
		}
		if len(sessions) > 0 {
			return inUse(login, names(s.Node, sessions), poll(drain(r)))
		}
		return tx.SetLogin(ctx, login, false)
	})
	return &pawlv1.Event{Summary: fmt.Sprintf("%q is refused on %s", login, everywhere(r.Credential))}, err
}

// everywhere counts the nodes.
func everywhere(c *inventory.Credential) string {
	if len(c.Nodes) == 1 {
		return c.Nodes[0].Name
	}
	return fmt.Sprintf("all %d nodes", len(c.Nodes))
}

// working returns an error unless the role can log in with the sealed password.
func working(role postgres.Role, envelope *sealed.Credential) error {
	switch {
	case !carries(role, envelope):
		return drifted(envelope.User, "give it back its password (pawl doctor tells more)")
	case !role.CanLogin:
		return fmt.Errorf("role %q, which is to stay, may not log in: give it LOGIN", envelope.User)
	}
	return nil
}

// drained returns *saga.NotYet until the login has been unused for the window on
// every node.
func (o *Rotator) drained(ctx context.Context, r *service.Rotation, login string, window time.Duration) error {
	every := poll(window)
	var mu sync.Mutex
	var waits []error
	wait := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		waits = append(waits, err)
	}
	err := o.onEach(ctx, r.Credential, "look for sessions", func(ctx context.Context, s *primary) error {
		role, err := s.RoleState(ctx, login)
		if err != nil || !role.CanLogin { // refused before a crash
			return settle(err)
		}
		inReplicas, err := s.sessionsInReplicas(ctx, login)
		if err != nil {
			return err
		}
		unused, sessions, err := s.Unused(ctx, fence(r, phaseRetire), login, len(inReplicas) > 0, max(3*every, time.Second))
		laggards := append(names(s.Node, sessions), inReplicas...)
		switch {
		case err != nil:
			return settle(err)
		case len(laggards) > 0:
			wait(inUse(login, laggards, every))
		case unused < window:
			wait(&saga.NotYet{Again: min(every, window-unused), Why: fmt.Sprintf("%q must be unused for %v on %s", login, window, s.Node)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return saga.Join(waits)
}

func drain(r *service.Rotation) time.Duration { return r.Requested().GetDrain().AsDuration() }

// poll is how often a drain is looked at.
func poll(window time.Duration) time.Duration {
	return min(max(window/8, 100*time.Millisecond), 15*time.Second)
}

func inUse(login string, laggards []string, again time.Duration) error {
	return &saga.NotYet{Again: again, Why: fmt.Sprintf("%q is still in use", login), Laggards: laggards}
}

// Reinstate lets the predecessor log in again, with the password it had.
func (o *Rotator) Reinstate(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	envelope, err := o.envelopes.Open(ctx, r.Credential.Name, r.Requested().GetRestores())
	if err != nil {
		return nil, err
	}
	err = o.change(ctx, r, "allow login", phaseBegin, func(ctx context.Context, _ *primary, tx *postgres.Tx) error {
		role, err := tx.RoleState(ctx, envelope.User)
		if err != nil {
			return err
		}
		if err := unfit(role); err != nil {
			return err
		}
		if !carries(role, envelope) {
			return drifted(envelope.User, "the predecessor cannot be restored; rotate forward")
		}
		if role.CanLogin {
			return nil
		}
		return tx.SetLogin(ctx, envelope.User, true)
	})
	if err == nil { // it is about to be published
		_, err = o.awaitReplicas(ctx, r.Credential, nil)
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("%q may log in again", envelope.User)}, err
}

// Erase strips the idle login of its password and deletes every envelope but
// the current credential's.
func (o *Rotator) Erase(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	c := r.Credential
	current, user := r.ID, r.Staged().GetUser()
	if _, completed := r.State.Has(saga.Completed); !completed {
		if current, user = r.Requested().GetRestores(), r.Requested().GetRestoresUser(); current == "" {
			current, user = r.Requested().GetBasis(), r.Requested().GetBasisUser()
		}
	}
	envelopes, closed, left, err := o.known(ctx, c.Name)
	if err != nil {
		return nil, err
	}
	if r.State.Flow.Logins != saga.One {
		if err := o.strip(ctx, r, other(c, user), envelopes); err != nil {
			return nil, err
		}
	}
	if err := r.StillDue(ctx); err != nil {
		return nil, err
	}
	// A later rotation's is not ours to delete. Ids sort by time.
	old := slices.DeleteFunc(append(closed, left...), func(rotation string) bool { return rotation == current || rotation > r.ID })
	for _, e := range envelopes {
		if e.Rotation != current && e.Generation <= r.Requested().GetGeneration() {
			old = append(old, e.Rotation)
		}
	}
	for _, rotation := range old {
		err := effect.Do(ctx, "erase envelopes", c.Name, func(ctx context.Context) error { return o.envelopes.Erase(ctx, c.Name, rotation) })
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// strip takes the idle login's password, if Pawl knows it.
func (o *Rotator) strip(ctx context.Context, r *service.Rotation, idle string, envelopes []*sealed.Credential) error {
	err := o.change(ctx, r, "strip password", phaseErase, func(ctx context.Context, s *primary, tx *postgres.Tx) error {
		role, err := tx.RoleState(ctx, idle)
		if err != nil || !role.Exists || (!role.CanLogin && role.Verifier.IsZero()) {
			return err
		}
		if err := errors.Join(unfit(role), stranger(ctx, tx, r.Credential, idle)); saga.IsPermanent(err) {
			effect.Warn(ctx, "%v; left as it is", err)
			return nil
		} else if err != nil {
			return err
		}
		if !role.Verifier.IsZero() && !isKnown(s.Name, role, envelopes) {
			return drifted(idle, "find out who did; ALTER ROLE … NOLOGIN PASSWORD NULL when it may go")
		}
		return tx.SetVerifier(ctx, idle, false, secret.String{})
	})
	if refused := new(postgres.FencedOff); errors.As(err, &refused) && refused.Ahead() {
		effect.Warn(ctx, "a later rotation already uses %q", idle)
		return nil
	}
	return err
}

// known opens every envelope of the credential. Those of closed were sealed to
// a key that is lost; of left there are only other recipients', which a process
// sealed that woke up when the rotation had been erased.
func (o *Rotator) known(ctx context.Context, credential string) (known []*sealed.Credential, closed, left []string, err error) {
	rotations, err := o.envelopes.Rotations(ctx, credential)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, rotation := range rotations {
		envelope, err := o.envelopes.Open(ctx, credential, rotation)
		if errors.Is(err, sealed.ErrNotFound) {
			left = append(left, rotation) // or it was erased since
			continue
		}
		if errors.Is(err, sealed.ErrWrongKey) {
			closed = append(closed, rotation)
			continue
		}
		if err != nil {
			return nil, nil, nil, err
		}
		known = append(known, envelope)
	}
	return known, closed, left, nil
}

func isKnown(node string, role postgres.Role, envelopes []*sealed.Credential) bool {
	for _, e := range envelopes {
		if role.Name == e.User && (carries(role, e) || role.Verifier.Equal(e.Before[node].Verifier)) {
			return true
		}
	}
	return false
}

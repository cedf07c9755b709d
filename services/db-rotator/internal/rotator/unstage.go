package rotator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Unstage takes a login back: this rotation's, where it failed; the completed
// one's that is rolled back, in a rollback. Where nothing was done, it still
// passes the fence, so that a late Stage is refused.
func (o *Rotator) Unstage(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	c, requested := r.Credential, r.Requested()
	switch flow := r.State.Flow; {
	case flow.Restores && flow.Logins == saga.Two:
		restored, err := o.envelopes.Open(ctx, c.Name, requested.GetRestores())
		if err != nil {
			return nil, err
		}
		return o.refuse(ctx, r, phaseUndo, requested.GetBasisUser(), restored)
	case flow.Restores:
		envelope, err := o.envelopes.Open(ctx, c.Name, requested.GetBasis())
		if err != nil {
			return nil, err
		}
		return o.putBack(ctx, r, envelope)
	}
	envelope, err := o.envelopes.Open(ctx, c.Name, r.ID)
	if errors.Is(err, sealed.ErrNotFound) { // sealed before the first ALTER: so there was none
		err := o.change(ctx, r, "fence off", phaseUndo, func(context.Context, *primary, *postgres.Tx) error { return nil })
		return &pawlv1.Event{Summary: "nothing had been staged"}, unlessAhead(ctx, err)
	}
	if err != nil {
		return nil, err
	}
	if err := o.lateReaders(ctx, r, envelope.User); err != nil {
		return nil, err
	}
	return o.putBack(ctx, r, envelope)
}

// grace is for those who read a sink just before it was restored, and log in
// with what they have read.
const grace = 5 * time.Second

// lateReaders waits for them, or for the drain window where that is shorter,
// once the new login may have been published beside one that still works.
func (o *Rotator) lateReaders(ctx context.Context, r *service.Rotation, login string) error {
	if _, staged := r.State.Has(saga.Staged); !staged || !alternating(r) {
		return nil
	}
	err := o.drained(ctx, r, login, min(drain(r), grace))
	if errors.As(err, new(*postgres.FencedOff)) { // the node has lost the stage, or is ahead: putBack tells which
		return nil
	}
	return err
}

// putBack makes the login what it was before the envelope's rotation, exactly.
func (o *Rotator) putBack(ctx context.Context, r *service.Rotation, envelope *sealed.Credential) (*pawlv1.Event, error) {
	err := o.change(ctx, r, "put back", phaseUndo, func(ctx context.Context, s *primary, tx *postgres.Tx) error {
		before, known := envelope.Before[s.Name]
		if !known {
			effect.Warn(ctx, "node %s came into pawl.yaml later: it is left as it is", s.Name)
			return nil
		}
		role, err := tx.RoleState(ctx, envelope.User)
		switch {
		case err != nil || !role.Exists:
			return err
		case role.Verifier.Equal(before.Verifier) && role.CanLogin == before.CanLogin:
			return nil
		case role.Verifier.Equal(before.Verifier):
			return tx.SetLogin(ctx, role.Name, before.CanLogin)
		case !carries(role, envelope) && alternating(r):
			// The idle login is not as we left it, but nothing of ours is on it.
			effect.Warn(ctx, "login %q carries neither the new password nor the one before: left as it is", role.Name)
			return nil
		case !carries(role, envelope):
			return drifted(role.Name, "find out who did; put back its password or run pawl adopt afterwards")
		}
		if !before.CanLogin { // whoever came to use it must have gone back first
			sessions, err := tx.Sessions(ctx, []string{role.Name})
			if err != nil {
				return err
			}
			if len(sessions) > 0 {
				return inUse(role.Name, names(s.Node, sessions), poll(drain(r)))
			}
		}
		return tx.SetVerifier(ctx, role.Name, before.CanLogin, before.Verifier)
	})
	if refused := new(postgres.FencedOff); errors.As(err, &refused) && refused.Ahead() {
		err = o.alreadyBack(ctx, r, envelope, err)
	}
	if err == nil && !alternating(r) {
		o.giveReplicasTime(ctx, r)
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("%q is as it was", envelope.User)}, err
}

// alreadyBack forgives a fence that is ahead where there is nothing to undo.
func (o *Rotator) alreadyBack(ctx context.Context, r *service.Rotation, envelope *sealed.Credential, ahead error) error {
	err := o.onEach(ctx, r.Credential, "read role", func(ctx context.Context, s *primary) error {
		role, err := s.RoleState(ctx, envelope.User)
		if err == nil && carries(role, envelope) {
			err = ahead
		}
		return err
	})
	if err == nil {
		effect.Warn(ctx, "%v", ahead)
	}
	return err
}

// undoWait is how long a way back waits for replicas.
const undoWait = 10 * time.Second

// giveReplicasTime waits for the replicas before consumers go back to the old
// password, but not for ever: on the primaries it already is the right one.
func (o *Rotator) giveReplicasTime(ctx context.Context, r *service.Rotation) {
	ctx, cancel := context.WithTimeout(ctx, undoWait)
	defer cancel()
	if _, err := o.awaitReplicas(ctx, r.Credential, nil); err != nil {
		effect.Warn(ctx, "not waited for any longer: %v", err)
	}
}

func unlessAhead(ctx context.Context, err error) error {
	if refused := new(postgres.FencedOff); errors.As(err, &refused) && refused.Ahead() {
		effect.Warn(ctx, "%v", refused)
		return nil
	}
	return err
}

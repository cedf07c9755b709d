package rotator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Stage gives the target login a new password and lets it log in: the idle
// login under alternating, the only one in place. The password is made and
// sealed once, before the first ALTER.
func (o *Rotator) Stage(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	c := r.Credential
	basis := r.Requested().GetBasisUser()
	if err := own(c, basis); err != nil {
		return nil, err
	}
	target := basis
	if alternating(r) {
		target = other(c, basis)
	}
	envelope, err := o.decide(ctx, r, target)
	if err != nil {
		return nil, err
	}
	err = o.change(ctx, r, "alter role", phaseBegin, func(ctx context.Context, tx *postgres.Tx) error {
		return stage(ctx, tx, c, envelope, alternating(r))
	})
	if err != nil {
		return nil, err
	}
	staged := &pawlv1.Staged{
		User: target, Fingerprint: o.envelopes.Fingerprint(target, envelope.Password), CommittedAt: map[string]*timestamppb.Timestamp{},
	}
	err = o.onEach(ctx, c, "read back", func(ctx context.Context, admin *postgres.Admin) error {
		role, err := admin.RoleState(ctx, target)
		if err == nil && (!role.CanLogin || !role.Verifier.Equal(envelope.Verifier)) {
			err = fmt.Errorf("%s: role %q does not carry what was committed", admin.Node, target)
		}
		staged.CommittedAt[admin.Node] = timestamppb.New(role.At)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("%q carries the new password", target), Detail: &pawlv1.Event_Staged{Staged: staged}}, nil
}

func alternating(r *service.Rotation) bool { return r.State.Flow.Name == saga.Alternating }

// decide returns this rotation's sealed credential, making it at first.
func (o *Rotator) decide(ctx context.Context, r *service.Rotation, target string) (*sealed.Credential, error) {
	c := r.Credential
	envelope, err := o.envelopes.Open(ctx, c.Name, r.ID)
	if errors.Is(err, sealed.ErrNotFound) {
		if envelope, err = o.make(ctx, r, target); err == nil {
			envelope, err = o.sealOnce(ctx, envelope)
		}
	}
	if err != nil {
		return nil, err
	}
	if envelope.User != target {
		return nil, saga.Permanentf("the sealed credential is of %q, the rotation of %q", envelope.User, target)
	}
	return envelope, o.sealFor(ctx, envelope)
}

func (o *Rotator) make(ctx context.Context, r *service.Rotation, target string) (*sealed.Credential, error) {
	c := r.Credential
	before, err := o.before(ctx, r, target)
	if err != nil {
		return nil, err
	}
	password, err := secret.Generate(c.PasswordLength)
	if err != nil {
		return nil, saga.Permanent(err)
	}
	verifier, err := postgres.Verifier(password)
	if err != nil {
		return nil, err
	}
	return &sealed.Credential{
		Credential: c.Name, Rotation: r.ID, Generation: r.Requested().GetGeneration(),
		User: target, Password: password, Verifier: verifier,
		Before: sealed.Login{Exists: before.Exists, CanLogin: before.CanLogin, Verifier: before.Verifier},
	}, nil
}

// before reads the target as it is, and refuses what must not be overwritten.
func (o *Rotator) before(ctx context.Context, r *service.Rotation, target string) (role postgres.Role, err error) {
	c := r.Credential
	admin, err := o.admin(c, c.Primary())
	if err != nil {
		return role, err
	}
	err = effect.Do(ctx, "read role", admin.Node, func(ctx context.Context) error {
		role, err = admin.RoleState(ctx, target)
		return settle(err)
	})
	if err != nil || alternating(r) {
		return role, err
	}
	if err := unfit(role); err != nil {
		return role, err
	}
	if !role.CanLogin {
		return role, saga.Permanentf("role %q may not log in: give it LOGIN first", target)
	}
	basis, err := o.envelopes.Open(ctx, c.Name, r.Requested().GetBasis())
	if errors.Is(err, sealed.ErrNotFound) {
		return role, saga.Permanentf("%v: run pawl adopt", err)
	}
	if err == nil && !carries(role, basis) {
		return role, saga.Permanent(drifted(target, "run pawl adopt"))
	}
	return role, err
}

// stage is the transaction: it does nothing where its work is done.
func stage(ctx context.Context, tx *postgres.Tx, c *inventory.Credential, envelope *sealed.Credential, alternating bool) error {
	role, err := tx.RoleState(ctx, envelope.User)
	if err != nil {
		return err
	}
	switch ours := role.Verifier.Equal(envelope.Verifier); {
	case ours && role.CanLogin:
		return nil
	case ours, !alternating && !role.CanLogin:
		return saga.Permanentf("somebody has just refused role %q its logins: find out who", role.Name)
	case alternating && role.Verifier.IsZero() && !role.CanLogin:
		// As it was, or stripped since by the erase of the rotation before.
		err = prepareIdle(ctx, tx, c, role)
	case !role.Verifier.Equal(envelope.Before.Verifier):
		return saga.Permanent(drifted(role.Name, "find out who did, then rotate again"))
	case alternating:
		err = prepareIdle(ctx, tx, c, role)
	default:
		err = unfit(role)
	}
	if err != nil {
		return err
	}
	return tx.SetVerifier(ctx, role.Name, true, envelope.Verifier)
}

// prepareIdle makes sure that the idle login is there, acts as the configured
// role, and is idle.
func prepareIdle(ctx context.Context, tx *postgres.Tx, c *inventory.Credential, idle postgres.Role) error {
	owner, err := tx.RoleState(ctx, c.Role)
	if err != nil {
		return err
	}
	if err := unfit(owner); err != nil {
		return err
	}
	if !idle.Exists {
		return tx.CreateSibling(ctx, owner, idle.Name)
	}
	if err := unfit(idle); err != nil {
		return err
	}
	if err := stranger(ctx, tx, c, idle.Name); err != nil {
		return err
	}
	sessions, err := tx.Sessions(ctx, []string{idle.Name})
	if err == nil && len(sessions) > 0 {
		err = fmt.Errorf("login %q should be idle and is in use by %s", idle.Name, strings.Join(names(sessions), ", "))
	}
	return err
}

// stranger is the error for a role that has the sibling's name and is not ours.
func stranger(ctx context.Context, of interface {
	IsMember(ctx context.Context, role, owner string) (bool, error)
}, c *inventory.Credential, role string) error {
	if role == c.Role {
		return nil
	}
	member, err := of.IsMember(ctx, role, c.Role)
	if err == nil && !member {
		err = saga.Permanentf("role %q exists and is no member of %q: drop it, or grant it that role and SET role", role, c.Role)
	}
	return err
}

func names(sessions []postgres.Session) []string {
	list := make([]string, len(sessions))
	for i, s := range sessions {
		list[i] = s.String()
	}
	return list
}

package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

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
	err = o.change(ctx, r, "alter role", phaseBegin, func(ctx context.Context, s *primary, tx *postgres.Tx) error {
		return stage(ctx, s.Name, tx, c, envelope, alternating(r))
	})
	if err != nil {
		return nil, err
	}
	staged := &pawlv1.Staged{
		User: target, Fingerprint: o.envelopes.Fingerprint(target, envelope.Password), CommittedAt: map[string]*timestamppb.Timestamp{},
	}
	var mu sync.Mutex
	err = o.onEach(ctx, c, "read back", func(ctx context.Context, s *primary) error {
		role, err := s.RoleState(ctx, target)
		if err == nil && (!role.CanLogin || !role.Verifier.Equal(envelope.Verifier)) {
			err = fmt.Errorf("%s: role %q does not carry what was committed", s.Node, target)
		}
		mu.Lock()
		defer mu.Unlock()
		staged.CommittedAt[s.Node] = timestamppb.New(role.At)
		return err
	})
	if err != nil {
		return nil, err
	}
	replayed, err := o.awaitReplicas(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	for replica, at := range replayed {
		staged.CommittedAt[replica] = timestamppb.New(at)
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("%q carries the new password on %s", target, everywhere(c)), Detail: &pawlv1.Event_Staged{Staged: staged}}, nil
}

func alternating(r *service.Rotation) bool { return r.State.Flow.Logins == saga.Two }

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
	basis, err := o.envelopes.Open(ctx, r.Credential.Name, r.Requested().GetBasis())
	if errors.Is(err, sealed.ErrNotFound) {
		return nil, saga.Permanentf("%v: run pawl adopt", err)
	}
	if err != nil {
		return nil, err
	}
	before, err := o.before(ctx, r, target, basis)
	if err != nil {
		return nil, err
	}
	settings, err := o.recorded(ctx, r.Credential, basis)
	if err != nil {
		return nil, err
	}
	made, err := generate(r, target)
	if err != nil {
		return nil, err
	}
	made.Settings = settings
	made.Before, made.Earlier, made.Compromised = before, o.earlier(basis, target, before), basis.Compromised
	return made, nil
}

// generate makes the rotation's password and its verifier.
func generate(r *service.Rotation, user string) (*sealed.Credential, error) {
	password, err := secret.GenerateFrom(r.Credential.PasswordAlphabet, r.Credential.PasswordLength)
	if err != nil {
		return nil, saga.Permanent(err)
	}
	verifier, err := postgres.Verifier(password)
	if err != nil {
		return nil, err
	}
	return &sealed.Credential{
		Credential: r.Credential.Name, Rotation: r.ID, Generation: r.Requested().GetGeneration(),
		User: user, Password: password, Verifier: verifier,
	}, nil
}

// before reads the target on every node, and refuses what must not be
// overwritten.
func (o *Rotator) before(ctx context.Context, r *service.Rotation, target string, basis *sealed.Credential) (map[string]sealed.Login, error) {
	before := map[string]sealed.Login{}
	var mu sync.Mutex
	err := o.onEach(ctx, r.Credential, "read role", func(ctx context.Context, s *primary) error {
		role, err := s.RoleState(ctx, target)
		if err != nil {
			return settle(err)
		}
		mu.Lock()
		before[s.Name] = sealed.Login{Exists: role.Exists, CanLogin: role.CanLogin, Verifier: role.Verifier}
		mu.Unlock()
		if alternating(r) {
			return nil // the transaction looks
		}
		return replaceable(s.Node, role, basis)
	})
	return before, err
}

// replaceable says why an in-place login's password must not be replaced.
func replaceable(node string, role postgres.Role, basis *sealed.Credential) error {
	if err := unfit(role); err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	switch {
	case !role.CanLogin:
		return saga.Permanentf("%s: role %q may not log in: give it LOGIN first", node, role.Name)
	case !carries(role, basis):
		return saga.Permanent(fmt.Errorf("%s: %w", node, drifted(role.Name, "run pawl adopt")))
	}
	return nil
}

// earlier adds to what the basis knows of the past the basis itself and what
// its rotation overwrites: what a late standby or a backup may bring back.
func (o *Rotator) earlier(basis *sealed.Credential, target string, before map[string]sealed.Login) []string {
	known := []string{o.envelopes.Fingerprint(basis.User, basis.Password), o.envelopes.Fingerprint(basis.User, basis.Verifier)}
	for user, logins := range map[string]map[string]sealed.Login{target: before, basis.User: basis.Before} {
		for _, login := range logins {
			if !login.Verifier.IsZero() {
				known = append(known, o.envelopes.Fingerprint(user, login.Verifier))
			}
		}
	}
	return bounded(append(known, basis.Earlier...))
}

// bounded is the list without repetitions, and no longer than is kept.
func bounded(all []string) []string {
	var out []string
	for _, one := range all {
		if !slices.Contains(out, one) && len(out) < sealed.MaxEarlier {
			out = append(out, one)
		}
	}
	return out
}

// stage is the transaction: it does nothing where its work is done.
func stage(ctx context.Context, node string, tx *postgres.Tx, c *inventory.Credential, envelope *sealed.Credential, alternating bool) error {
	before, known := envelope.Before[node]
	if !known {
		return saga.Permanentf("node %s came into pawl.yaml after this rotation began: rotate again", node)
	}
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
		err = prepareIdle(ctx, node, tx, c, role, settingsAt(envelope, node))
	case !role.Verifier.Equal(before.Verifier):
		return saga.Permanent(drifted(role.Name, "find out who did, then rotate again"))
	case alternating:
		err = prepareIdle(ctx, node, tx, c, role, settingsAt(envelope, node))
	default:
		err = unfit(role)
	}
	if err == nil {
		err = unchangedSettings(ctx, tx, node, c, envelope)
	}
	if err != nil {
		return err
	}
	return tx.SetVerifier(ctx, role.Name, true, envelope.Verifier)
}

// prepareIdle makes sure that the idle login is there, acts as the configured
// role, and is idle. If it is not there, it is created with those settings.
func prepareIdle(ctx context.Context, node string, tx *postgres.Tx, c *inventory.Credential, idle postgres.Role, settings []postgres.Setting) error {
	owner, err := tx.RoleState(ctx, c.Role)
	if err != nil {
		return err
	}
	if err := unfit(owner); err != nil {
		return err
	}
	if !idle.Exists {
		return tx.CreateSibling(ctx, owner, idle.Name, settings)
	}
	if err := unfit(idle); err != nil {
		return err
	}
	if err := stranger(ctx, tx, c, idle.Name); err != nil {
		return err
	}
	sessions, err := tx.Sessions(ctx, []string{idle.Name})
	if err == nil && len(sessions) > 0 {
		err = fmt.Errorf("login %q should be idle and is in use by %s", idle.Name, strings.Join(names(node, sessions), ", "))
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

func names(node string, sessions []postgres.Session) []string {
	list := make([]string, len(sessions))
	for i, s := range sessions {
		list[i] = s.String() + " on " + node
	}
	return list
}

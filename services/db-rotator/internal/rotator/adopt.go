package rotator

import (
	"context"
	"fmt"
	"sync"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Adopt takes over the login that the first sink publishes, if every node holds
// its password. It changes no role.
func (o *Rotator) Adopt(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	c := r.Credential
	login, err := o.published(ctx, c)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var counter uint64
	before, settings := map[string]sealed.Login{}, map[string][]sealed.Setting{}
	err = o.onEach(ctx, c, "compare password", func(ctx context.Context, s *primary) error {
		if err := s.EnsureFence(ctx); err != nil {
			return settle(err)
		}
		stored, err := s.Stored(ctx, c.Role)
		if err != nil {
			return settle(err)
		}
		role, err := adoptable(ctx, s.Admin, c, login)
		if err != nil {
			return err
		}
		given, err := settingsOf(ctx, s.Admin, c, login.User)
		mu.Lock()
		defer mu.Unlock()
		counter = max(counter, stored.Generation)
		before[s.Name] = sealed.Login{Exists: role.Exists, CanLogin: role.CanLogin, Verifier: role.Verifier}
		settings[s.Name] = given
		return err
	})
	if err != nil {
		return nil, err
	}
	envelope, err := o.sealOnce(ctx, &sealed.Credential{
		Credential: c.Name, Rotation: r.ID, Generation: r.Requested().GetGeneration(),
		User: login.User, Password: login.Password, Verifier: before[c.Primary().Name].Verifier, Before: before, Settings: settings,
	})
	if err != nil {
		return nil, err
	}
	if envelope.User != login.User || !envelope.Password.Equal(login.Password) {
		return nil, saga.Permanentf("%s changed while it was being adopted: run pawl adopt again", source(c))
	}
	if err := o.sealFor(ctx, envelope); err != nil {
		return nil, err
	}
	return &pawlv1.Event{
		Summary: fmt.Sprintf("%q is as published on %s%s", login.User, everywhere(c), withSettings(envelope)),
		Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{
			User: login.User, Fingerprint: o.envelopes.Fingerprint(login.User, login.Password), Fence: counter,
		}},
	}, nil
}

// source names the sink that an adoption reads: the first that says which login
// to use.
func source(c *inventory.Credential) string { return published.Path(published.Group(c.Publish)[0][0]) }

// published reads the login from its source. A sink without a user means the
// configured role.
func (o *Rotator) published(ctx context.Context, c *inventory.Credential) (login inventory.Login, err error) {
	groups := published.Group(c.Publish)
	if len(groups) == 0 {
		return login, saga.Permanentf("nobody can read what a Docker secret holds: beside it, publish %s to a file that holds the present login, such as file: {path: secrets/%s.json, format: json}, for the adoption; it may be deleted afterwards", c.Name, c.Name)
	}
	entries := groups[0]
	err = effect.Do(ctx, "read sink", published.Path(entries[0]), func(context.Context) error {
		login, err = published.Read(entries...)
		return saga.Permanent(err)
	})
	if err != nil {
		return login, err
	}
	if login.User == "" {
		login.User = c.Role
	}
	if login.Password.IsZero() {
		return login, saga.Permanentf("%s holds no password of %q", published.Path(entries[0]), login.User)
	}
	return login, own(c, login.User)
}

// adoptable returns the login's role if it may be taken over on this node.
func adoptable(ctx context.Context, admin *postgres.Admin, c *inventory.Credential, login inventory.Login) (postgres.Role, error) {
	var role postgres.Role
	for _, name := range []string{c.Role, login.User} {
		var err error
		if role, err = admin.RoleState(ctx, name); err != nil {
			return role, settle(err)
		}
		if err := unfit(role); err != nil {
			return role, fmt.Errorf("%s: %w", admin.Node, err)
		}
	}
	switch {
	case !role.CanLogin:
		return role, saga.Permanentf("%s: role %q may not log in", admin.Node, role.Name)
	case role.Verifier.IsZero():
		return role, saga.Permanentf("%s: role %q has no password", admin.Node, role.Name)
	case !postgres.Matches(role.Name, login.Password, role.Verifier):
		return role, saga.Permanentf("%s: the password in %s is not the one that role %q has here: write that one into it, or give the role the one that it holds", admin.Node, source(c), role.Name)
	}
	return role, nil
}

// Forget undoes Adopt.
func (o *Rotator) Forget(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	if err := r.StillDue(ctx); err != nil {
		return nil, err
	}
	return nil, effect.Do(ctx, "erase envelopes", r.Credential.Name, func(ctx context.Context) error {
		return o.envelopes.Erase(ctx, r.Credential.Name, r.ID)
	})
}

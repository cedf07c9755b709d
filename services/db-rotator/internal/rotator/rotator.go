// Package rotator is the db-rotator's steps. Each may be done again at any
// moment, by another process, after any crash: it asks the database what is
// already true, changes it behind the fence, and reuses what was sealed.
package rotator

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Envelopes is the sealed store, of which *sealed.Store is the real one.
type Envelopes interface {
	Open(ctx context.Context, credential, rotation string) (*sealed.Credential, error)
	Seal(ctx context.Context, recipient string, c *sealed.Credential) (stored bool, err error)
	Rotations(ctx context.Context, credential string) ([]string, error)
	Erase(ctx context.Context, credential, rotation string) error
	Logins(ctx context.Context, credential string) ([]inventory.Login, error)
	Fingerprint(user string, password secret.String) string
}

// The phases of a rotation at the fence, in the order in which its steps may
// come. A step of an earlier phase is refused once a later one has been there.
const (
	phaseBegin  = 1 // stage, reinstate
	phaseRetire = 2
	phaseUndo   = 3
	phaseErase  = 4
)

// Rotator holds Pawl's own sessions on the nodes.
type Rotator struct {
	envelopes Envelopes
	keeper    evidence.Keeper // of evidence; nil: none is kept
	note      func(ctx context.Context, n *pawlv1.Note)

	clock *clock.Clock // nil: the machine's

	mu     sync.Mutex
	admins map[string]*postgres.Admin // by cluster and node
	behind map[string]func()          // what runs in the background, by what it is: ends it
	// passages are the fences of emergencies that are not released yet, by node and role.
	passages map[string]passage
	// sights are since when replicas carry the password of such an emergency, by node and role.
	sights   map[string]sight
	fixed    map[string]*fixed // settings of such an emergency that Pawl may not undo, by the same
	sentries sentries
	lanes    lanes
	crowd    crowd
	joint    map[*postgres.Admin]*jointly
	newest   func(ctx context.Context, credential string) (bus.Log, error)
}

// New returns a rotator that is not connected yet. newest reads a credential's
// log, for the guards of emergencies; nil: there are none.
func New(envelopes Envelopes, newest func(ctx context.Context, credential string) (bus.Log, error)) *Rotator {
	return &Rotator{envelopes: envelopes, newest: newest, admins: map[string]*postgres.Admin{}, behind: map[string]func(){}, passages: map[string]passage{}, sights: map[string]sight{}, fixed: map[string]*fixed{}}
}

// KeepTime has the rotator go by that clock. Call it before the first step.
func (o *Rotator) KeepTime(c *clock.Clock) { o.clock = c }

// Close ends the sessions.
func (o *Rotator) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, end := range o.behind {
		end()
	}
	for _, admin := range o.admins {
		admin.Close()
	}
	clear(o.admins)
}

// background runs work until it returns or the rotator closes. There is one for
// each key, however often it is asked for.
func (o *Rotator) background(key string, work func(context.Context)) {
	ctx, end := context.WithCancel(context.Background())
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.behind[key] != nil {
		end()
		return
	}
	o.behind[key] = end
	go func() {
		defer func() {
			end()
			o.mu.Lock()
			defer o.mu.Unlock()
			delete(o.behind, key)
		}()
		work(ctx)
	}()
}

// reaches reports whether a session on the server is open.
func (o *Rotator) reaches(server string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	admin := o.admins[server]
	return admin != nil && admin.Open()
}

func (o *Rotator) admin(c *inventory.Credential, node inventory.Node) (*postgres.Admin, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := serverOf(c, node.Name)
	if admin, ok := o.admins[key]; ok {
		return admin, nil
	}
	var others postgres.Others
	if o.envelopes != nil { // but where a person breaks the glass
		others = o.envelopes.Logins
	}
	admin, err := postgres.NewAdmin(node, c.Cluster, others)
	if err == nil {
		o.admins[key] = admin
	}
	return admin, err
}

// change runs work on every node in a fenced transaction. Work looks before it
// changes, so where the answer to COMMIT was lost it simply runs again: the
// fence's row lock makes it wait for whatever is still under way.
func (o *Rotator) change(ctx context.Context, r *service.Rotation, name string, phase int, work func(ctx context.Context, s *primary, tx *postgres.Tx) error) error {
	return o.onEach(ctx, r.Credential, name, func(ctx context.Context, s *primary) error {
		for {
			err := s.Fenced(ctx, fence(r, phase), func(ctx context.Context, tx *postgres.Tx) error { return work(ctx, s, tx) })
			if !errors.Is(err, postgres.ErrUnknownOutcome) || ctx.Err() != nil {
				return settle(err)
			}
			effect.Warn(ctx, "%v; looked again", err)
		}
	})
}

// settle marks what trying again cannot mend.
func settle(err error) error {
	if errors.As(err, new(*postgres.FencedOff)) || postgres.IsRefused(err, postgres.NotPermitted) {
		return saga.Permanent(err)
	}
	return err
}

func fence(r *service.Rotation, phase int) postgres.Fence {
	return postgres.Fence{Role: r.Credential.Role, Generation: r.Requested().GetGeneration(), Phase: phase, Rotation: r.ID}
}

// own reports whether user is one of the credential's two logins, whatever the
// strategy: a credential may have been alternating before.
func own(c *inventory.Credential, user string) error {
	if user != c.Role && user != c.Sibling() {
		return saga.Permanentf("login %q is neither %q nor %q: correct role in pawl.yaml, or run pawl adopt", user, c.Role, c.Sibling())
	}
	return nil
}

// other returns the login that user takes turns with.
func other(c *inventory.Credential, user string) string {
	if user == c.Role {
		return c.Sibling()
	}
	return c.Role
}

// carries reports whether the role holds the sealed password. Nodes may hold it
// under different salts, so an unequal verifier is computed again.
func carries(role postgres.Role, sealed *sealed.Credential) bool {
	return role.Exists && !role.Verifier.IsZero() &&
		(role.Verifier.Equal(sealed.Verifier) || postgres.Matches(role.Name, sealed.Password, role.Verifier))
}

// unfit says why a role must not be rotated; nil if it may.
func unfit(role postgres.Role) error {
	switch {
	case !role.Exists:
		return saga.Permanentf("role %q does not exist", role.Name)
	case role.Superuser:
		return saga.Permanentf("role %q is a superuser: applications must not use one, and Pawl rotates none", role.Name)
	case role.Replication:
		return saga.Permanentf("role %q has REPLICATION: standbys that use it must be rotated by hand", role.Name)
	}
	return nil
}

// drifted is the answer to a password that nobody but a stranger can have set.
func drifted(name, fix string) error {
	return fmt.Errorf("role %q carries a password that Pawl did not set: nothing was touched: %s", name, fix)
}

// sealFor seals what each of the other recipients may see of c. What was
// earlier, which backups bring back, is for the secret-publisher alone.
func (o *Rotator) sealFor(ctx context.Context, c *sealed.Credential) error {
	var all errgroup.Group // each is a synced write, and they need not wait for one another
	for _, recipient := range sealed.Recipients {
		if recipient != saga.DBRotator {
			public := *c
			public.Before, public.Compromised, public.Settings = nil, nil, nil
			if recipient != saga.SecretPublisher {
				public.Earlier = nil
			}
			all.Go(func() error { _, err := o.seal(ctx, recipient, &public); return err })
		}
	}
	return all.Wait()
}

func (o *Rotator) seal(ctx context.Context, recipient string, c *sealed.Credential) (stored bool, err error) {
	err = effect.Do(ctx, "seal", recipient, func(ctx context.Context) error {
		stored, err = o.envelopes.Seal(ctx, recipient, c)
		return err
	})
	return stored, err
}

// sealOnce seals c as ours and returns what is sealed: another replica's, where
// that was first.
func (o *Rotator) sealOnce(ctx context.Context, c *sealed.Credential) (*sealed.Credential, error) {
	if stored, err := o.seal(ctx, saga.DBRotator, c); err != nil || stored {
		return c, err
	}
	return o.envelopes.Open(ctx, c.Credential, c.Rotation)
}

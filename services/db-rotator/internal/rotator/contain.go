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

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// patience is how long an emergency tries to reach a node before it goes on
// without it.
const patience = 3 * time.Second

// Contain refuses every login in doubt, on every node at once. Nobody who was
// logged in still is when it ends, and nobody can come back. A node or a replica
// that cannot be reached is named, and left to Release.
func (o *Rotator) Contain(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	k := o.newContainment(r.Credential, fence(r, phaseBegin), r.StillDue)
	k.basis = r.Requested().GetBasisUser()
	k.on(ctx, r.Credential.Nodes)
	k.seen.settle(ctx)
	// Where no primary is done, no node could be given the new password, and nobody
	// would come back to have that made up for.
	if !slices.ContainsFunc(r.Credential.Nodes, func(n inventory.Node) bool { return k.found.At[n.Name] != nil }) {
		return nil, fmt.Errorf("contained on no primary: %s", describe(k.found.Pending))
	}
	k.decide(r)
	summary := fmt.Sprintf("%s refused on %s, %s ended", strings.Join(k.found.Logins, " and "), strings.Join(slices.Sorted(maps.Keys(k.found.At)), ", "), service.Count(k.found.Sessions, "session"))
	if r.State.Flow.Kind() != saga.Lock {
		summary += fmt.Sprintf("; %q returns", k.found.Returns)
	}
	o.gather(r.Credential, r.ID, k.found)
	if len(k.found.Pending) > 0 {
		summary += "; not yet: " + describe(k.found.Pending)
	}
	return &pawlv1.Event{Summary: summary, Detail: &pawlv1.Event_Contained{Contained: k.found}}, nil
}

// BreakGlass is Contain without a log: behind whatever fence the nodes have.
func (o *Rotator) BreakGlass(ctx context.Context, c *inventory.Credential, keeper evidence.Keeper) (*pawlv1.Contained, error) {
	k := o.newContainment(c, postgres.Fence{Role: c.Role}, func(context.Context) error { return nil })
	k.seen.keeper = keeper
	k.on(effect.With(ctx, &effect.Recorder{Credential: c.Name}), c.Nodes)
	k.seen.settle(ctx)
	slices.Sort(k.found.Logins)
	k.found.Logins = slices.Compact(k.found.Logins)
	if len(k.found.Pending) > 0 {
		return k.found, fmt.Errorf("not contained everywhere: %s", describe(k.found.Pending))
	}
	return k.found, nil
}

func describe(pending map[string]string) string {
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(pending)) {
		texts = append(texts, name+" ("+pending[name]+")")
	}
	return strings.Join(texts, ", ")
}

// containment is one attempt at it, on all nodes.
type containment struct {
	o        *Rotator
	c        *inventory.Credential
	fence    postgres.Fence
	stillDue func(context.Context) error
	seen     *witness

	mu      sync.Mutex
	found   *pawlv1.Contained
	had     bool          // the login that is not in use had a password somewhere
	exists  bool          // and it is there, somewhere
	timeout time.Duration // the longest authentication_timeout
	basis   string        // the login in use
}

func (o *Rotator) newContainment(c *inventory.Credential, f postgres.Fence, stillDue func(context.Context) error) *containment {
	f.Urgent = true
	return &containment{o: o, c: c, fence: f, stillDue: stillDue, seen: newWitness(o.keeper, c.Name, f.Rotation),
		found: &pawlv1.Contained{Pending: map[string]string{}, At: map[string]*timestamppb.Timestamp{}}}
}

// decide says which login returns. One that had no password for as long as a
// handshake may take cannot be anybody else's. What a node holds that could not
// be asked is not known.
func (k *containment) decide(r *service.Rotation) {
	basis := r.Requested().GetBasisUser()
	bare := r.Requested().GetBareSince()
	began, _ := r.State.Has(saga.Requested)
	k.found.Returns = basis
	k.found.Clean = r.Credential.Strategy == inventory.Alternating && (!k.exists && !k.away(r.Credential.Nodes) || bare != nil && !k.had && r.Clock.Since(bare.AsTime())-r.Clock.Since(began.At) > k.timeout)
	if k.found.Clean {
		k.found.Returns = other(r.Credential, basis)
	}
	slices.Sort(k.found.Logins)
	slices.Sort(k.found.Carried)
	k.found.Logins, k.found.Carried = slices.Compact(k.found.Logins), slices.Compact(k.found.Carried)
}

// away reports whether one of the nodes is pending.
func (k *containment) away(nodes []inventory.Node) bool {
	return slices.ContainsFunc(nodes, func(n inventory.Node) bool { return k.found.Pending[n.Name] != "" })
}

// on contains the nodes, each with its replicas, all at once.
func (k *containment) on(ctx context.Context, nodes []inventory.Node) {
	var all sync.WaitGroup
	for _, node := range nodes {
		all.Go(func() {
			err := k.patiently(ctx, node.Name, func(ctx context.Context) error { return k.node(ctx, node) })
			if err != nil {
				k.late(node.Name, err)
			}
		})
	}
	all.Wait()
}

func (k *containment) late(name string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found.Pending[name] = err.Error()
}

// patiently tries until it succeeds or patience is over.
func (k *containment) patiently(ctx context.Context, name string, try func(context.Context) error) error {
	return effect.Do(ctx, "contain", name, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		pause := time.NewTicker(50 * time.Millisecond)
		defer pause.Stop()
		var last error
		for {
			err := try(ctx)
			if err == nil || saga.IsPermanent(err) {
				return err
			}
			if last == nil || ctx.Err() == nil {
				last = err
			}
			select {
			case <-ctx.Done():
				return last
			case <-pause.C:
			}
		}
	})
}

// node is one primary: refuse, end what is there, roll back what is prepared,
// and only then take the passwords, since a live session could set its own.
func (k *containment) node(ctx context.Context, node inventory.Node) error {
	s, err := k.o.lead(ctx, k.c, node)
	if err != nil {
		return err
	}
	if err := k.refuse(ctx, s, false); err != nil {
		return err
	}
	lsn, err := s.Position(ctx)
	if err != nil {
		return err
	}
	var replicas sync.WaitGroup
	for _, replica := range s.replicas {
		replicas.Go(func() {
			err := k.patiently(ctx, replica.Node, func(ctx context.Context) error { return k.replica(ctx, replica, lsn) })
			if err != nil {
				k.late(replica.Node, err)
			}
		})
	}
	defer replicas.Wait()
	if err := k.empty(ctx, s.Admin); err != nil {
		return err
	}
	if err := k.refuse(ctx, s, true); err != nil {
		return err
	}
	if err := k.empty(ctx, s.Admin); err != nil {
		return err
	}
	timeout, err := s.AuthenticationTimeout(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.timeout = max(k.timeout, timeout)
	k.mu.Unlock()
	return k.done(ctx, s.Admin, node.Name)
}

// replica ends what is there until the refusal is replayed and nobody is left.
func (k *containment) replica(ctx context.Context, replica *postgres.Admin, lsn string) error {
	if err := k.evict(ctx, replica); err != nil {
		return err
	}
	if _, err := replica.Replayed(ctx, lsn); err != nil {
		return err
	}
	if err := k.evict(ctx, replica); err != nil {
		return err
	}
	return k.done(ctx, replica, replica.Node)
}

func (k *containment) done(ctx context.Context, a *postgres.Admin, name string) error {
	k.seen.done(ctx, a.Node)
	now, err := a.Now(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found.At[name] = timestamppb.New(now)
	delete(k.found.Pending, name) // by an earlier try
	return err
}

// refuse takes LOGIN from both logins, and their passwords, too, where strip
// says so. What is locked by others is freed, and tried again.
func (k *containment) refuse(ctx context.Context, s *primary, strip bool) error {
	for {
		err := behindFence(ctx, s, k.fence, k.stillDue, func(ctx context.Context, tx *postgres.Tx) error {
			for _, login := range []string{k.c.Role, k.c.Sibling()} {
				if err := k.refuseLogin(ctx, tx, login, strip); err != nil {
					return err
				}
			}
			return nil
		})
		switch {
		case errors.Is(err, postgres.ErrUnknownOutcome) && ctx.Err() == nil:
		case errors.Is(err, postgres.ErrLocked) && ctx.Err() == nil:
			if err := errors.Join(k.pass(ctx, s.Admin), s.FreeLocks(ctx)); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func (k *containment) refuseLogin(ctx context.Context, tx *postgres.Tx, login string, strip bool) error {
	role, err := tx.RoleState(ctx, login)
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
	k.mu.Lock()
	k.found.Logins = append(k.found.Logins, login)
	k.exists = k.exists || login != k.basis
	if !role.Verifier.IsZero() {
		k.had = k.had || login != k.basis
		if k.o.envelopes != nil {
			k.found.Carried = append(k.found.Carried, k.o.envelopes.Fingerprint(login, role.Verifier))
		}
	}
	k.mu.Unlock()
	switch {
	case strip && !role.Verifier.IsZero():
		return tx.SetVerifier(ctx, login, false, secret.String{})
	case role.CanLogin:
		return tx.SetLogin(ctx, login, false)
	}
	return nil
}

// behindFence works behind the rotation's fence; where the database is ahead of
// the log, behind the database's own, if the log still wants it: refusing a
// stolen login is never wrong.
func behindFence(ctx context.Context, s *primary, f postgres.Fence, stillDue func(context.Context) error, work func(context.Context, *postgres.Tx) error) error {
	err := s.Fenced(ctx, f, work)
	refused := new(postgres.FencedOff)
	if !errors.As(err, &refused) {
		return err
	}
	if err := stillDue(ctx); err != nil {
		return err
	}
	if refused.Ahead() || f.Rotation == "" {
		f.Generation, f.Phase, f.Rotation = refused.Stored.Generation, max(f.Phase, refused.Stored.Phase), refused.Stored.Rotation
		return s.Fenced(ctx, f, work)
	}
	return err
}

// pass ends what is there, once.
func (k *containment) pass(ctx context.Context, a *postgres.Admin) error {
	if _, err := k.end(ctx, a); err != nil {
		return err
	}
	prepared, err := a.PreparedBy(ctx, k.logins())
	if err != nil {
		return err
	}
	k.seen.prepared(ctx, a.Node, prepared)
	for _, p := range prepared {
		err := effect.Do(ctx, "roll back prepared", a.Node+" "+p.Database, func(ctx context.Context) error { return a.RollbackPrepared(ctx, p) })
		if err != nil {
			return err
		}
		k.mu.Lock()
		k.found.Prepared++
		k.mu.Unlock()
	}
	return nil
}

// logins are those that were found to be the credential's: a role that only has
// the sibling's name is somebody else's.
func (k *containment) logins() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.found.Logins) == 0 {
		return []string{k.c.Role}
	}
	return slices.Clone(k.found.Logins)
}

func (k *containment) everybody() postgres.Eviction {
	return postgres.Eviction{Logins: k.logins(), Members: true, Except: postgres.Accounts(k.c.Cluster)}
}

// end ends what is there now, and has it witnessed as it was.
func (k *containment) end(ctx context.Context, a *postgres.Admin) (ended bool, err error) {
	sessions, err := a.Evict(ctx, k.everybody())
	if err != nil {
		return false, err
	}
	fresh := k.seen.ended(ctx, a.Node, sessions)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found.Sessions += uint32(fresh)
	return len(sessions) > 0, nil
}

// empty ends sessions until none is left, and what they had prepared.
func (k *containment) empty(ctx context.Context, a *postgres.Admin) error {
	if err := k.evict(ctx, a); err != nil {
		return err
	}
	return k.pass(ctx, a)
}

// evict ends sessions until none is left.
func (k *containment) evict(ctx context.Context, a *postgres.Admin) error {
	return untilNone(ctx, func(ctx context.Context) (bool, error) { return k.end(ctx, a) })
}

// untilNone ends sessions until three looks find none: one that was just being
// let in shows only after its login. end reports whether there were any.
func untilNone(ctx context.Context, end func(context.Context) (bool, error)) error {
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for none := 0; none < 3; none++ {
		ended, err := end(ctx)
		if err != nil {
			return err
		}
		if ended {
			none = -1
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
	}
	return nil
}

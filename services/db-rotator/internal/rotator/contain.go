package rotator

import (
	"context"
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
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// patience is how long an emergency tries to reach a node before it goes on
// without it.
const patience = 3 * time.Second

// crowdedAgain is when a server that lets nobody in is tried again, between tries that
// follow each other even closer.
const crowdedAgain = 50 * time.Millisecond

// Contain refuses every login in doubt, on every node at once. Nobody who was
// logged in still is when it ends, and nobody can come back. A node or a replica
// that cannot be reached is named, and left to Release.
func (o *Rotator) Contain(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	k := o.newContainment(r.Credential, fence(r, phaseBegin), r.StillDue)
	k.basis, k.bare = r.Requested().GetBasisUser(), r.Requested().GetBareSince() != nil
	k.on(ctx, r.Credential.Nodes)
	k.seen.settle(ctx)
	// Where no primary is done, no node could be given the new password, and nobody
	// would come back to have that made up for.
	if !slices.ContainsFunc(r.Credential.Nodes, func(n inventory.Node) bool { return k.found.At[n.Name] != nil }) {
		err := fmt.Errorf("contained on no primary: %s", describe(k.found.Pending))
		if len(k.crowded) > 0 {
			err = &saga.NotYet{Again: crowdedAgain, Why: err.Error(), Laggards: slices.Sorted(maps.Keys(k.found.Pending))}
		}
		return nil, err
	}
	if r.State.Flow.Locks && len(k.found.Unending) > 0 { // nothing comes after it that would end them
		return nil, fmt.Errorf("%s", unending(k.found.Unending))
	}
	k.decide(r)
	summary := fmt.Sprintf("%s refused on %s, %s ended", strings.Join(k.found.Logins, " and "), strings.Join(slices.Sorted(maps.Keys(k.found.At)), ", "), service.Count(k.found.Sessions, "session"))
	if !r.State.Flow.Locks {
		summary += fmt.Sprintf("; %q returns", k.found.Returns)
	}
	o.gather(r.Credential, r.ID, k.found)
	if len(k.found.Pending) > 0 {
		summary += "; not yet: " + describe(k.found.Pending)
	}
	if len(k.found.Unending) > 0 {
		summary += "; " + unending(k.found.Unending)
	}
	return &pawlv1.Event{Summary: summary, Detail: &pawlv1.Event_Contained{Contained: k.found}}, nil
}

// BreakGlass is Contain without a log: behind whatever fence the nodes have. While a
// server lets nobody in, since it is starting or every slot is taken, it tries until ctx
// ends, and says so by waits (nil: to nobody).
func (o *Rotator) BreakGlass(ctx context.Context, c *inventory.Credential, keeper evidence.Keeper, waits func(text string)) (*pawlv1.Contained, error) {
	k := o.newContainment(c, postgres.Fence{Role: c.Role}, func(context.Context) error { return nil })
	k.seen.keeper = keeper
	for nodes := c.Nodes; len(nodes) > 0 && ctx.Err() == nil; nodes = k.crowdedOf(nodes) {
		if len(k.crowded) > 0 && waits != nil {
			waits(describe(k.found.Pending))
		}
		k.on(effect.With(ctx, &effect.Recorder{Credential: c.Name}), nodes)
	}
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
	crowded map[string]bool     // pending, since the server lets nobody in for now
	told    map[string]*endings // by node
	held    map[string]string   // what last held a node's locks, and is not Pawl's to end
	found   *pawlv1.Contained
	had     bool            // the login that is not in use had a password somewhere
	exists  bool            // and it is there, somewhere
	timeout time.Duration   // the longest authentication_timeout
	basis   string          // the login in use
	bare    bool            // the other had no password before, by the log
	again   bool            // what the logins had may have been taken by an earlier attempt, of which nothing is known
	looked  map[string]bool // whether there was one, by node
}

func (o *Rotator) newContainment(c *inventory.Credential, f postgres.Fence, stillDue func(context.Context) error) *containment {
	f.Urgent = true
	return &containment{o: o, c: c, fence: f, stillDue: stillDue, seen: newWitness(o.keeper, c.Name, f.Rotation), held: map[string]string{}, crowded: map[string]bool{}, told: map[string]*endings{}, looked: map[string]bool{},
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
	k.found.Clean = r.Credential.Strategy == inventory.Alternating && (!k.exists && !k.away(r.Credential.Nodes) || bare != nil && !k.had && !k.again && r.Clock.Since(bare.AsTime())-r.Clock.Since(began.At) > k.timeout)
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
			err := k.patiently(ctx, node.Name, func(ctx context.Context, together bool) error { return k.node(ctx, node, together) })
			if err != nil {
				k.follows(node.Name) // it may be a standby now, and have done its share as one
				k.late(node.Name, err)
				k.orphans(ctx, node, err)
			}
		})
	}
	all.Wait()
	k.found.Unending = nil
	for _, node := range slices.Sorted(maps.Keys(k.told)) {
		if k.found.At[node] != nil {
			k.found.Unending = append(k.found.Unending, k.told[node].named(node)...)
		}
	}
}

// orphans are the replicas of a node that was not contained: none of them replays a
// refusal soon, so they are late, too. Who is in there now is ended; who comes after
// that is the guard's.
func (k *containment) orphans(ctx context.Context, node inventory.Node, why error) {
	ctx, cancel := context.WithTimeout(ctx, patience/3)
	defer cancel()
	var all sync.WaitGroup
	for _, replica := range k.c.Cluster.Replicas(node) {
		if k.follows(replica.Name) {
			continue
		}
		k.late(replica.Name, fmt.Errorf("follows %s, which is late: %w", node.Name, why))
		all.Go(func() {
			if admin, err := k.o.admin(k.c, replica); err == nil {
				_ = k.evict(ctx, admin) // it is late either way
			}
		})
	}
	all.Wait()
}

// follows takes back that a server was contained, since what it follows was not: it gets
// the new password no sooner. It reports whether it is known already why it is late.
func (k *containment) follows(name string) (known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.found.At, name)
	return k.found.Pending[name] != ""
}

func (k *containment) late(name string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found.Pending[name] = err.Error()
	if delete(k.crowded, name); postgres.IsCrowded(err) {
		k.crowded[name] = true
	}
}

// crowdedOf are those of the nodes that let nobody in for now, or have such a replica.
func (k *containment) crowdedOf(nodes []inventory.Node) (all []inventory.Node) {
	for _, node := range nodes {
		if slices.ContainsFunc(append(k.c.Cluster.Replicas(node), node), func(n inventory.Node) bool { return k.crowded[n.Name] }) {
			all = append(all, node)
		}
	}
	return all
}

// patiently tries until it succeeds or patience is over: together with other
// emergencies, if there are any, and then by itself, once its turn on the server has come.
func (k *containment) patiently(ctx context.Context, name string, try func(ctx context.Context, together bool) error) error {
	return effect.Do(ctx, "contain", name, func(ctx context.Context) (err error) {
		at := serverOf(k.c, name)
		defer k.o.crowd.enter(at)()
		defer func() { k.o.lanes.found(at, err == nil || k.o.reaches(at)) }()
		// What is given up may still be done a little later: the fence refuses that once a new
		// password is issued, but not if it has the phase in which that is done.
		if !k.o.crowd.isOne(at) && k.fence.Phase < phaseRetire {
			within, cancel := context.WithTimeout(ctx, 2*patience) // to end the sessions of all is what takes time
			err := try(within, true)
			cancel()
			if err == nil || saga.IsPermanent(err) || ctx.Err() != nil || !k.o.reaches(at) {
				return err
			}
		}
		leave, err := k.o.lanes.enter(ctx, at, containing)
		if err != nil {
			return err
		}
		defer leave()
		ctx, cancel := context.WithTimeout(ctx, k.o.lanes.patience(at))
		defer cancel()
		return again(ctx, func(ctx context.Context) error { return try(ctx, false) })
	})
}

// again tries until it succeeds or ctx ends.
func again(ctx context.Context, try func(context.Context) error) error {
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
}

// node is one primary: refuse, end what is there, roll back what is prepared,
// and only then take the passwords, since a live session could set its own.
func (k *containment) node(ctx context.Context, node inventory.Node, together bool) error {
	looking, end := context.WithTimeout(ctx, patience/3) // a server that hangs must not keep another from being refused
	s, err := k.o.lead(looking, k.c, node)
	if err == nil && k.bare {
		err = k.lookBack(looking, s.Admin)
	}
	end()
	if err != nil {
		return err
	}
	refuse := k.refuse
	if together {
		refuse = k.refuseTogether
	}
	if err := refuse(ctx, s, false); err != nil {
		return err
	}
	var lsn string
	if len(s.replicas) > 0 {
		if lsn, err = s.Position(ctx); err != nil {
			return err
		}
	}
	var replicas sync.WaitGroup
	for _, replica := range s.replicas {
		replicas.Go(func() {
			err := k.patiently(ctx, replica.Node, func(ctx context.Context, _ bool) error { return k.replica(ctx, replica, lsn) })
			if err != nil {
				k.late(replica.Node, err)
			}
		})
	}
	defer replicas.Wait()
	if err := k.empty(ctx, s.Admin); err != nil {
		return err
	}
	if together && k.clings(s.Node) {
		return fmt.Errorf("%w: a session does not end", postgres.ErrAlone)
	}
	if err := refuse(ctx, s, true); err != nil {
		return err
	}
	if err := k.empty(ctx, s.Admin); err != nil {
		return err
	}
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
	var is postgres.Clock
	var err error
	if k.isSeveral(a) {
		is, err = k.o.jointlyOn(a, k.c.Cluster).clocks.ask(ctx, struct{}{})
	} else {
		is, err = a.Clock(ctx)
	}
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timeout = max(k.timeout, is.AuthenticationTimeout)
	k.found.At[name] = timestamppb.New(is.Now)
	delete(k.found.Pending, name) // by an earlier try
	delete(k.crowded, name)
	return nil
}

// pass ends what is there, once.
func (k *containment) pass(ctx context.Context, a *postgres.Admin) error {
	if _, err := k.end(ctx, a); err != nil {
		return err
	}
	find := a.PreparedBy
	if k.isSeveral(a) {
		find = k.o.jointlyOn(a, k.c.Cluster).prepared.ask
	}
	prepared, err := find(ctx, k.logins())
	if err != nil {
		return err
	}
	for _, p := range prepared {
		if err := k.rollback(ctx, a, p); err != nil {
			return err
		}
	}
	return nil
}

func (k *containment) rollback(ctx context.Context, a *postgres.Admin, p postgres.Prepared) error {
	k.seen.prepared(ctx, a.Node, []postgres.Prepared{p})
	err := effect.Do(ctx, "roll back prepared", a.Node+" "+p.Database, func(ctx context.Context) error { return a.RollbackPrepared(ctx, p, k.logins()...) })
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.found.Prepared++
	}
	return err
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
func (k *containment) end(ctx context.Context, a *postgres.Admin) ([]postgres.Ended, error) {
	if !k.isSeveral(a) {
		return k.endThese(ctx, a, k.everybody())
	}
	sessions, err := k.o.jointlyOn(a, k.c.Cluster).sweeps.ask(ctx, k.logins())
	if err == nil {
		k.count(ctx, a, sessions)
	}
	return sessions, err
}

func (k *containment) endThese(ctx context.Context, a *postgres.Admin, e postgres.Eviction) ([]postgres.Ended, error) {
	sessions, err := a.Evict(ctx, e)
	if err != nil {
		return nil, err
	}
	k.count(ctx, a, sessions)
	return sessions, nil
}

// count has the sessions that were ended witnessed.
func (k *containment) count(ctx context.Context, a *postgres.Admin, sessions []postgres.Ended) {
	fresh := k.seen.ended(ctx, a.Node, sessions)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.found.Sessions += uint32(fresh)
}

// empty ends sessions until none is left, and what they had prepared.
func (k *containment) empty(ctx context.Context, a *postgres.Admin) error {
	if err := k.evict(ctx, a); err != nil {
		return err
	}
	return k.pass(ctx, a)
}

// evict ends sessions until none is left, but for those that do not end.
func (k *containment) evict(ctx context.Context, a *postgres.Admin) error {
	k.mu.Lock()
	if k.told[a.Node] == nil {
		k.told[a.Node] = &endings{}
	}
	t := k.told[a.Node]
	k.mu.Unlock()
	return t.untilNone(ctx, func(ctx context.Context) ([]postgres.Ended, error) { return k.end(ctx, a) })
}

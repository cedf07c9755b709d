package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Release ends the watch: every node has been reached, and on each of them every
// handshake that began before the new password has ended, one way or the other.
func (o *Rotator) Release(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	o.guardOf(r)
	envelope, err := o.envelopes.Open(ctx, r.Credential.Name, r.ID)
	if err != nil {
		return nil, err
	}
	if err := o.reachPending(ctx, r, envelope); err != nil {
		return nil, err
	}
	o.gather(r.Credential, r.ID, everywhereAt(r.Credential, r.Events[saga.Contained].GetContained()))
	var mu sync.Mutex
	var waits []error
	err = o.onEach(ctx, r.Credential, "look for handshakes", func(ctx context.Context, s *primary) error {
		err := o.settled(ctx, r, s, envelope)
		if err == nil {
			err = o.settingsAgain(ctx, s, r, envelope)
		}
		if wait := new(saga.NotYet); errors.As(err, &wait) {
			mu.Lock()
			defer mu.Unlock()
			waits = append(waits, wait)
			return nil
		}
		return err
	})
	if err == nil {
		err = saga.Join(waits)
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("nobody can come in with what was stolen, on %s", everywhere(r.Credential))}, err
}

// settled returns once a node and its replicas hold what the emergency has set, and nobody
// can come in any more who began to log in before.
func (o *Rotator) settled(ctx context.Context, r *service.Rotation, s *primary, envelope *sealed.Credential) error {
	if _, err := o.regain(ctx, r, s, envelope); err != nil {
		return err
	}
	issued, _ := r.State.Has(saga.Staged)
	left, err := o.handshakes(ctx, s, r.Credential, issued.At)
	if err != nil {
		return err
	}
	k := o.newContainment(r.Credential, fence(r, phaseRetire), r.StillDue)
	if err := o.inOrder(ctx, k, r.Events[saga.Contained].GetContained(), issued.At, s, envelope); err != nil {
		return err
	}
	for _, replica := range s.replicas {
		there, err := o.handshakesAt(ctx, r, replica, envelope)
		if err != nil {
			return err
		}
		left = max(left, there)
	}
	if left > 0 {
		return &saga.NotYet{Again: min(left+10*time.Millisecond, 10*time.Second), Why: "a handshake from before may last as long as authentication_timeout: whoever comes in by one is ended"}
	}
	return o.lastLook(ctx, r, s, envelope)
}

// handshakesAt is how long one may still succeed on a replica that had begun before the
// new password arrived there.
func (o *Rotator) handshakesAt(ctx context.Context, r *service.Rotation, replica *postgres.Admin, envelope *sealed.Credential) (time.Duration, error) {
	carries, err := o.look(ctx, r, replica, envelope)
	if err != nil {
		return 0, err
	}
	timeout, err := replica.AuthenticationTimeout(ctx)
	return max(0, timeout+letIn-carries.passed()), err
}

// everywhereAt is what was contained, by now on every server.
func everywhereAt(c *inventory.Credential, contained *pawlv1.Contained) *pawlv1.Contained {
	contained = proto.Clone(contained).(*pawlv1.Contained)
	for _, node := range c.Members() {
		if contained.At == nil {
			contained.At = map[string]*timestamppb.Timestamp{}
		}
		if contained.At[node.Name] == nil {
			contained.At[node.Name] = timestamppb.Now()
		}
	}
	return contained
}

// letIn is how long after the end of its handshake a session may take to show in
// pg_stat_activity, where it can be ended.
const letIn = 500 * time.Millisecond

// lastLook ends whoever came in by a handshake that was the last to succeed: the
// guard, whose process may have died, is not relied on. A session that does not end is
// waited for.
func (o *Rotator) lastLook(ctx context.Context, r *service.Rotation, s *primary, envelope *sealed.Credential) error {
	contained := r.Events[saga.Contained].GetContained()
	for _, server := range append([]*postgres.Admin{s.Admin}, s.replicas...) {
		e := postgres.Eviction{Logins: stolen(contained), Sessions: unendingOn(contained, server.Node)}
		if _, late := r.Pending()[server.Node]; late || !contained.GetClean() {
			returned, err := o.returned(ctx, r, server, envelope)
			if err != nil {
				return err
			}
			e.Returned = map[string]time.Time{contained.GetReturns(): returned}
		}
		var t endings
		if err := t.untilNone(ctx, func(ctx context.Context) ([]postgres.Ended, error) { return server.Evict(ctx, e) }); err != nil {
			return err
		}
		if still := t.named(server.Node); len(still) > 0 {
			return &saga.NotYet{Again: time.Second, Why: unending(still), Laggards: []string{server.Node}}
		}
	}
	return nil
}

// returned is when the login came back on the server, by its own clock.
func (o *Rotator) returned(ctx context.Context, r *service.Rotation, server *postgres.Admin, envelope *sealed.Credential) (time.Time, error) {
	if isReplica(r.Credential, server.Node) {
		carries, err := o.look(ctx, r, server, envelope)
		return carries.since, err
	}
	stored, err := server.Stored(ctx, r.Credential.Role)
	return stored.Passed, err
}

// inOrder checks one node. Where whoever slipped in has changed a login before he
// was ended, it is refused once more, for as long as a handshake may last: each
// that is under way with what he set could set it again. Then the login returns.
func (o *Rotator) inOrder(ctx context.Context, k *containment, contained *pawlv1.Contained, issued time.Time, s *primary, envelope *sealed.Credential) error {
	returning, err := s.RoleState(ctx, envelope.User)
	if err != nil {
		return err
	}
	back := false
	for _, login := range stolen(contained) {
		role, err := s.RoleState(ctx, login)
		if err != nil {
			return err
		}
		back = back || role.CanLogin
	}
	switch {
	case back || returning.CanLogin != returning.Verifier.Equal(envelope.Verifier):
		effect.Warn(ctx, "%s: the logins are not as they were left: refused again", s.Node)
		if err := k.refuseAgain(ctx, s); err != nil {
			return err
		}
	case returning.CanLogin:
		return nil
	}
	left, err := o.handshakes(ctx, s, k.c, issued)
	if err != nil {
		return err
	}
	if left > 0 {
		return &saga.NotYet{Again: min(left, 10*time.Second), Why: fmt.Sprintf("%s: somebody changed a login, which returns once no handshake from then can succeed", s.Node)}
	}
	return behindFence(ctx, s, k.fence, k.stillDue, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.SetVerifier(ctx, envelope.User, true, envelope.Verifier)
	})
}

// handshakes is how long one may still succeed that had begun when the node last
// passed the fence; 0: none can. issued is when the event of the new password was
// stored: the node passed the fence shortly before, or since. So the fence is not older
// than that if the server's clock went forward.
func (o *Rotator) handshakes(ctx context.Context, s *primary, c *inventory.Credential, issued time.Time) (time.Duration, error) {
	timeout, err := s.AuthenticationTimeout(ctx)
	if err != nil {
		return 0, err
	}
	stored, err := s.Stored(ctx, c.Role)
	if err != nil {
		return 0, err
	}
	return max(0, timeout+letIn-o.passed(c.Cluster.Name+"/"+s.Node, stored, o.clock.Since(issued))), nil
}

// passage is a fence that was passed, as this process has first seen it.
type passage struct {
	fence postgres.Fence // without its age
	age   time.Duration  // then
	seen  time.Time
}

// passed returns how long ago a node has passed its fence, at most that long: as the
// server's clock said when this process first asked, and as this process has measured
// since. So a step of either clock neither ends the watch early nor prolongs it.
func (o *Rotator) passed(node string, stored postgres.Fence, atMost time.Duration) time.Duration {
	age := max(0, min(stored.Age, atMost))
	stored.Age = 0
	o.mu.Lock()
	defer o.mu.Unlock()
	key := node + "/" + stored.Role
	p, ok := o.passages[key]
	if !ok || p.fence != stored {
		p = passage{stored, age, time.Now()}
		o.passages[key] = p
	}
	return p.age + time.Since(p.seen)
}

// refuseAgain refuses both logins on a node, and ends who is in.
func (k *containment) refuseAgain(ctx context.Context, s *primary) error {
	if err := k.refuse(ctx, s, true); err != nil {
		return err
	}
	if err := k.empty(ctx, s.Admin); err != nil {
		return err
	}
	if err := k.emptyReplicas(ctx, s); err != nil {
		effect.Warn(ctx, "whoever is in on a replica stays until it can be reached: %v", err) // the application waits for none
	}
	return nil
}

// emptyReplicas ends the sessions on those replicas that replay in time.
func (k *containment) emptyReplicas(ctx context.Context, s *primary) error {
	if len(s.replicas) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lsn, err := s.Position(ctx)
	if err != nil {
		return err
	}
	errs := make([]error, len(s.replicas))
	var all sync.WaitGroup
	for i, replica := range s.replicas {
		all.Go(func() {
			if _, errs[i] = replica.AwaitReplay(ctx, lsn); errs[i] == nil {
				errs[i] = k.evict(ctx, replica)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// stolen are the logins that do not return.
func stolen(contained *pawlv1.Contained) []string {
	return slices.DeleteFunc(slices.Clone(contained.GetLogins()), func(login string) bool { return login == contained.GetReturns() })
}

// holds reports whether the login can log in on the server with the new password.
func holds(ctx context.Context, a *postgres.Admin, envelope *sealed.Credential) (bool, error) {
	role, err := a.RoleState(ctx, envelope.User)
	return err == nil && role.CanLogin && role.Verifier.Equal(envelope.Verifier), err
}

// reachPending does on the nodes that could not be reached before what was done
// on the others. A replica that is late only has to replay: its primary, where
// the application is back, is left in peace.
func (o *Rotator) reachPending(ctx context.Context, r *service.Rotation, envelope *sealed.Credential) error {
	pending := r.Pending()
	if len(pending) == 0 {
		return nil
	}
	var mu sync.Mutex
	left, again := map[string]string{}, time.Second
	var all sync.WaitGroup
	for _, node := range r.Credential.Nodes {
		all.Go(func() {
			for name, err := range o.reachSet(ctx, r, node, envelope, pending) {
				mu.Lock()
				left[name] = err.Error()
				if crowded := new(saga.NotYet); errors.As(err, &crowded) {
					left[name], again = crowded.Why, crowded.Again
				} else if postgres.IsCrowded(err) {
					again = crowdedAgain
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(left) == 0 {
		return nil
	}
	wait := &saga.NotYet{Again: again, Why: "not contained yet: " + describe(left)}
	for name := range left {
		wait.Laggards = append(wait.Laggards, name)
	}
	slices.Sort(wait.Laggards)
	return wait
}

// reachSet does so for a node and its replicas, and says what is left of them.
func (o *Rotator) reachSet(ctx context.Context, r *service.Rotation, node inventory.Node, envelope *sealed.Credential, pending map[string]string) (left map[string]error) {
	left = map[string]error{}
	s, err := o.lead(ctx, r.Credential, node)
	if err != nil {
		if _, itself := pending[node.Name]; itself {
			left[node.Name] = err
		}
		return left
	}
	if _, itself := pending[node.Name]; itself {
		if err := o.reach(ctx, r, s, envelope); err != nil {
			left[node.Name] = err
			return left
		}
	}
	for _, replica := range s.replicas {
		if _, late := pending[replica.Node]; !late {
			continue
		}
		if ours, err := holds(ctx, replica, envelope); err != nil {
			left[replica.Node] = err
		} else if !ours {
			left[replica.Node] = errors.New("has yet to replay")
		}
	}
	return left
}

package rotator

import (
	"context"
	"fmt"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
)

// sight is since when a replica carries the new password of an emergency, as far as this
// process has seen. The primary has had it for longer if the replica replays late, and who
// logged in to the replica in between did so with what was stolen.
type sight struct {
	rotation string
	carries  bool
	since    time.Time     // by the replica's clock, no earlier than it replayed the password
	age      time.Duration // since then, at least, when that was seen
	seen     time.Time
}

// passed is how long the replica has carried the password, at least.
func (s sight) passed() time.Duration { return s.age + time.Since(s.seen) }

// observed takes over what a replica was just seen to carry, at that time of its clock. The
// log may know since when: of a replica that replayed before the password was issued
// everywhere.
func (o *Rotator) observed(c *inventory.Credential, node, rotation string, carries bool, at time.Time, k known) sight {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := serverOf(c, node) + "/" + c.Role
	s := o.sights[key]
	first := s.rotation != rotation
	if !first && (s.carries == carries || at.Before(s.since)) { // else it was read earlier, and comes later
		return s
	}
	s = sight{rotation: rotation, carries: carries, since: at, seen: time.Now()}
	if replayed := k.staged.GetCommittedAt()[node]; first && carries && replayed != nil {
		s.since = replayed.AsTime()
		s.age = max(0, min(at.Sub(s.since), o.clock.Since(k.issued)))
	}
	o.sights[key] = s
	return s
}

// look sees whether a replica carries the new password, and waits for it otherwise.
func (o *Rotator) look(ctx context.Context, r *service.Rotation, replica *postgres.Admin, envelope *sealed.Credential) (sight, error) {
	role, err := replica.RoleState(ctx, envelope.User)
	if err != nil {
		return sight{}, err
	}
	issued, _ := r.State.Has(saga.Staged)
	s := o.observed(r.Credential, replica.Node, r.ID, role.Verifier.Equal(envelope.Verifier), role.At, known{staged: r.Staged(), issued: issued.At})
	if !s.carries {
		return s, &saga.NotYet{Again: time.Second, Why: fmt.Sprintf("%s has yet to replay the new password", replica.Node), Laggards: []string{replica.Node}}
	}
	return s, nil
}

// isReplica reports whether the server is one by pawl.yaml: it has another clock than the
// primary, and gets what is committed there later, if at all.
func isReplica(c *inventory.Credential, node string) bool {
	return c.Cluster.Nodes[node].ReplicaOf != ""
}

// isIssued reports whether the emergency has committed its new password where this fence
// is stored, or in what that server has replayed.
func isIssued(stored postgres.Fence, rotation string) bool {
	return stored.Rotation == rotation && stored.Phase >= phaseRetire
}

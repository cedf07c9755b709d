package rotator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// findings collects what was looked at on one node.
type findings struct {
	node   string
	checks []*pawlv1.Check
}

func (f *findings) note(format string, args ...any)   { f.add(false, fmt.Sprintf(format, args...)) }
func (f *findings) refuse(format string, args ...any) { f.add(true, fmt.Sprintf(format, args...)) }

func (f *findings) add(refused bool, finding string) {
	f.checks = append(f.checks, &pawlv1.Check{Service: saga.DBRotator, Target: f.node, Finding: finding, Refused: refused})
}

// Check looks whether a rotation could be done now. It changes nothing.
func (o *Rotator) Check(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	return append(checkObserver(c), eachNode(c.Members(), func(f *findings, node inventory.Node) error {
		if node.ReplicaOf != "" {
			return o.checkReplica(ctx, f, c, node)
		}
		return o.checkNode(ctx, f, c, node)
	})...)
}

// checkObserver warns of what stays unseen inside the application's database. It
// refuses nothing: a credential that has been rotated without an observer still is.
func checkObserver(c *inventory.Credential) []*pawlv1.Check {
	f := &findings{node: c.Cluster.Name}
	if unseen := c.Unseen(); unseen != "" {
		f.note("warning: %s", unseen)
	} else if c.LoginDatabase() != c.Cluster.Admin.Database {
		if _, err := c.Cluster.Observer.Login(); err != nil {
			f.note("warning: an emergency would keep no evidence from inside database %q, since the db-rotator cannot log in as the observer: %v", c.LoginDatabase(), err)
		}
	}
	return f.checks
}

// eachNode looks at all nodes at once; the findings are in the order of the nodes.
func eachNode(nodes []inventory.Node, look func(*findings, inventory.Node) error) (checks []*pawlv1.Check) {
	found := make([]*findings, len(nodes))
	var all sync.WaitGroup
	for i, node := range nodes {
		found[i] = &findings{node: node.Name}
		all.Go(func() {
			if err := look(found[i], node); err != nil {
				found[i].refuse("%v", err)
			}
		})
	}
	all.Wait()
	for _, f := range found {
		checks = append(checks, f.checks...)
	}
	return checks
}

// checkReplica finds out whether the admin can log in on a replica: staging
// awaits it there. Whether it is a good replica the verifier says.
func (o *Rotator) checkReplica(ctx context.Context, f *findings, c *inventory.Credential, node inventory.Node) error {
	admin, err := o.admin(c, node)
	if err != nil {
		return err
	}
	standby, err := admin.InRecovery(ctx)
	if err != nil {
		return err
	}
	checkAccount(ctx, f, admin, c.Cluster.Admin)
	if standby {
		f.note("%q can await it", c.Cluster.Admin.User)
	}
	return nil
}

func (o *Rotator) checkNode(ctx context.Context, f *findings, c *inventory.Credential, node inventory.Node) error {
	s, err := o.lead(ctx, c, node)
	if err != nil {
		return err
	}
	admin := s.Admin
	health, err := admin.Look(ctx)
	if err != nil {
		return err
	}
	checkHealth(f, health, c.Cluster.Admin.User)
	checkAccount(ctx, f, admin, c.Cluster.Admin)
	if err := checkDatabase(ctx, f, admin, c); err != nil {
		return err
	}
	if err := checkFence(ctx, f, admin, c.Role); err != nil {
		return err
	}
	return checkLogins(ctx, f, admin, c, health)
}

// CheckSealed looks whether each node still carries what was sealed: the
// credential in use, and after it the predecessor that a rollback restores.
func (o *Rotator) CheckSealed(ctx context.Context, c *inventory.Credential, sealed []*sealed.Credential) []*pawlv1.Check {
	return eachNode(c.Nodes, func(f *findings, node inventory.Node) error {
		s, err := o.lead(ctx, c, node)
		if err != nil {
			return nil // Check has said so
		}
		for i, envelope := range sealed {
			role, err := s.RoleState(ctx, envelope.User)
			switch predecessor := i > 0; {
			case err != nil:
				return err
			case carries(role, envelope):
			case predecessor && envelope.User == sealed[0].User: // replaced in place, and so to be put back
			case predecessor:
				f.refuse("login %q does not carry the predecessor's password any more: there is no way back; rotate forward", envelope.User)
			case c.Strategy == inventory.InPlace:
				f.refuse("%v", drifted(envelope.User, "run pawl adopt"))
			default:
				f.note("warning: login %q, which is in use, carries a password that Pawl did not set: whoever logs in anew with what is published is refused there", envelope.User)
			}
		}
		if len(sealed) == 0 {
			return nil
		}
		// A rollback must not wait for anybody: it changes no setting.
		return checkSettings(ctx, f, s, c, sealed[0], len(sealed) == 1)
	})
}

func checkHealth(f *findings, h postgres.Health, admin string) {
	f.note("PostgreSQL %d, %d free connection slots", h.Version/10000, h.FreeSlots)
	if h.InRecovery {
		f.refuse("is a standby: name its primary in nodes, and this one with replica_of")
	}
	if !h.CanAlter {
		f.refuse("%q may not alter roles: run what `pawl init --admin-sql` prints", admin)
	}
	if h.CanCreate {
		f.note("warning: %q can create roles, which Pawl needs no more: run what `pawl init --admin-sql` prints", admin)
	}
	if h.Strangers != "" {
		f.refuse("schema pawl holds what no superuser made, and what could be called in the place of Pawl's own: %s. Fix: look who made it, and drop it as a superuser", h.Strangers)
	}
	if !h.CanEvict {
		f.note("warning: %q may not end sessions, so an emergency could not throw a thief out: run what `pawl init --admin-sql` prints", admin)
	}
	if h.FreeSlots < 2 {
		f.refuse("no connection slots are free: raise max_connections or close sessions")
	}
	if !h.Fsync {
		f.note("warning: fsync is off: a crash can lose a password that was committed")
	}
	if h.SynchronousCommit == "off" {
		f.note("warning: synchronous_commit is off; Pawl turns it on for its own transactions")
	}
	if len(h.Leaks) > 0 {
		f.note("warning: %s would record passwords that people set by hand; Pawl's own statements are kept out", strings.Join(h.Leaks, ", "))
	}
}

// checkAccount looks at what the next session needs, while one is open. An
// account that Pawl turns finds its newer login without the file.
func checkAccount(ctx context.Context, f *findings, admin *postgres.Admin, account inventory.Account) {
	switch err := admin.CheckLogin(ctx); {
	case err == nil:
	case account.Credential != "":
		f.note("warning: Pawl goes on with a login that it knows, but not by the file: %v", err)
	default:
		f.refuse("no new session could be opened: %v", err)
	}
}

// checkDatabase warns if the admin logs in to a database of the application's: its
// owner decides what a session finds there.
func checkDatabase(ctx context.Context, f *findings, admin *postgres.Admin, c *inventory.Credential) error {
	owns, err := admin.IsOwnedBy(ctx, c.Role)
	if owns && !c.IsOwn() {
		f.note("warning: %q owns database %q, to which Pawl's admin logs in. Fix: name another one in clusters.%s.admin.database, and run there what `pawl init --admin-sql` prints",
			c.Role, c.Cluster.Admin.Database, c.Cluster.Name)
	}
	return err
}

func checkFence(ctx context.Context, f *findings, admin *postgres.Admin, role string) error {
	exists, writable, err := admin.HasFence(ctx)
	switch {
	case err != nil:
		return err
	case !writable:
		f.refuse("pawl.fence is missing or cannot be written: run what `pawl init --admin-sql` prints")
	case exists:
		fence, err := admin.Stored(ctx, role)
		if err != nil {
			return err
		}
		f.note("fence of %q at generation %d", role, fence.Generation)
	}
	return nil
}

// kept is how many connection slots of a server an emergency needs.
const kept = 3

// checkSlots warns if the credential's logins may take every connection slot: an
// emergency has to log in, too.
func checkSlots(f *findings, h postgres.Health, admin string, roles map[string]postgres.Role) {
	taken, logins := 0, 0
	for _, role := range roles {
		if taken >= 0 && role.Exists {
			logins, taken = logins+1, taken+role.ConnLimit
		}
		if role.Exists && role.ConnLimit < 0 {
			taken = -1
		}
	}
	switch {
	case h.Superuser || taken >= 0 && taken <= h.Slots-kept:
	case h.Version >= 160000 && h.Reserved == 0:
		f.note("warning: if others take every connection slot, an emergency finds none. Fix: set reserved_connections = %d on the server, which needs a restart", kept)
	case h.Version >= 160000 && !h.CanUseReserved:
		f.note("warning: if others take every connection slot, an emergency finds none: %q may not use reserved_connections. Fix: run what `pawl init --admin-sql` prints", admin)
	case h.Version < 160000:
		f.note("warning: its logins may take all of the %d connection slots that are not a superuser's, and an emergency that needs another session would wait for one. Fix: ALTER ROLE … CONNECTION LIMIT %d, each of %s", h.Slots, max(1, (h.Slots-kept)/max(1, len(roles))), strings.Join(slices.Sorted(maps.Keys(roles)), ", "))
	}
}

func checkLogins(ctx context.Context, f *findings, admin *postgres.Admin, c *inventory.Credential, health postgres.Health) error {
	var idle []string
	open := 0
	roles, err := admin.RoleStates(ctx, c.Logins()...)
	if err != nil {
		return err
	}
	checkSlots(f, health, c.Cluster.Admin.User, roles)
	for _, name := range c.Logins() {
		role := roles[name]
		if !role.Exists && name != c.Role {
			if c.Name == c.Cluster.Admin.Credential {
				f.refuse("role %q, the second login of Pawl itself, is missing: run what `pawl init --admin-sql` prints", name)
			} else {
				f.note("role %q will be created", name)
			}
			if err := checkMayAlter(ctx, f, admin, c, name); err != nil {
				return err
			}
			continue
		}
		if err := unfit(role); err != nil {
			f.refuse("%v", err)
			continue
		}
		if err := stranger(ctx, admin, c, name); saga.IsPermanent(err) {
			f.refuse("%v", err)
			continue
		} else if err != nil {
			return err
		}
		if err := checkMayAlter(ctx, f, admin, c, name); err != nil {
			return err
		}
		f.note("role %q: %s", name, may(role))
		if role.CanLogin {
			open++
		} else {
			idle = append(idle, name)
		}
	}
	if open == 0 {
		f.refuse("no login of %q may log in", c.Role)
	}
	sessions, err := admin.Sessions(ctx, idle)
	if len(sessions) > 0 {
		f.refuse("the idle login is in use by %s", strings.Join(names(f.node, sessions), ", "))
	}
	return err
}

// checkMayAlter asks the server, since a role may have become more than it was when
// the admin was given it.
func checkMayAlter(ctx context.Context, f *findings, admin *postgres.Admin, c *inventory.Credential, name string) error {
	refusal, err := admin.MayAlter(ctx, name)
	if refusal != "" {
		f.refuse("%q may not alter role %q, which %s", c.Cluster.Admin.User, name, refusal)
	}
	return err
}

func may(role postgres.Role) string {
	if role.CanLogin {
		return "may log in"
	}
	return "may not log in"
}

// Examine tells, for each login on each node, whether it may log in and which
// rotation's password it carries. Refused marks what disagrees with every
// sealed credential.
func (o *Rotator) Examine(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	f := &findings{node: "sealed credentials", checks: checkObserver(c)}
	envelopes, closed, _, err := o.known(ctx, c.Name)
	if err != nil {
		f.refuse("%v", err)
		return f.checks
	}
	if len(closed) > 0 {
		f.refuse("those of %s cannot be opened with the key that is here", strings.Join(closed, ", "))
	}
	return append(f.checks, eachNode(c.Members(), func(f *findings, node inventory.Node) error {
		return o.examineNode(ctx, f, c, node, envelopes)
	})...)
}

func (o *Rotator) examineNode(ctx context.Context, f *findings, c *inventory.Credential, node inventory.Node, envelopes []*sealed.Credential) error {
	admin, err := o.admin(c, node)
	if err != nil {
		return err
	}
	if err := checkDatabase(ctx, f, admin, c); err != nil {
		return err
	}
	roles, err := admin.RoleStates(ctx, c.Logins()...)
	if err != nil {
		return err
	}
	for _, name := range c.Logins() {
		role := roles[name]
		carried := carriedBy(role, envelopes)
		switch {
		case !role.Exists:
			f.add(name == c.Role, fmt.Sprintf("role %q does not exist", name))
		case role.Verifier.IsZero():
			f.add(role.CanLogin, fmt.Sprintf("role %q %s, no password", name, may(role)))
		case carried == nil:
			f.refuse("role %q %s, with a password that Pawl does not know", name, may(role))
		default:
			f.note("role %q %s, with the password of generation %d (rotation %s)", name, may(role), carried.Generation, carried.Rotation)
		}
	}
	return nil
}

// carriedBy returns the newest sealed credential that the role carries, or nil.
func carriedBy(role postgres.Role, envelopes []*sealed.Credential) (newest *sealed.Credential) {
	for _, e := range envelopes {
		if e.User == role.Name && carries(role, e) && (newest == nil || e.Generation > newest.Generation) {
			newest = e
		}
	}
	return newest
}

package rotator

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// sweepEvery is how long somebody who slips in by an old handshake may stay, where the
// server answers soon.
const sweepEvery = 25 * time.Millisecond

// sentries look at the servers for the guards, one at each: a thousand emergencies are
// one look at a server, not a thousand.
type sentries struct {
	mu      sync.Mutex
	posts   map[string]*sentry // by cluster and node
	watches int
}

// sentry sweeps one server.
type sentry struct {
	admin   *postgres.Admin
	node    inventory.Node // its primary, where the server is a replica
	watches []*watch
	unread  map[string]bool // logins whose verifiers the account may not read, by the last sweep
}

// join has the watch's servers swept for it, until it leaves or the rotator is closed.
func (s *sentries) join(g *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.posts == nil {
		s.posts = map[string]*sentry{}
	}
	s.watches++
	for _, node := range g.c.Nodes {
		for _, member := range append([]inventory.Node{node}, g.c.Cluster.Replicas(node)...) {
			admin, err := g.o.admin(g.c, member)
			if err != nil {
				continue
			}
			key := g.c.Cluster.Name + "/" + member.Name
			if post := s.posts[key]; post != nil && post.admin == admin {
				post.watches = append(post.watches, g)
				continue
			}
			post := &sentry{admin: admin, node: node, watches: []*watch{g}}
			s.posts[key] = post
			g.o.background(fmt.Sprintf("sentry %s %p", key, post), func(ctx context.Context) { s.stand(ctx, key, post) })
		}
	}
}

// leave ends that.
func (s *sentries) leave(g *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches--
	for _, post := range s.posts {
		post.watches = slices.DeleteFunc(slices.Clone(post.watches), func(w *watch) bool { return w == g })
	}
}

// many is how many emergencies are guarded.
func (s *sentries) many() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watches
}

// stand sweeps until nobody needs it any more. It is at work for a tenth of the time at
// most if a sweep is soon done, but for a server that does not answer: that may be back at any moment.
func (s *sentries) stand(ctx context.Context, key string, post *sentry) {
	for ctx.Err() == nil {
		watches := s.of(key, post)
		if len(watches) == 0 {
			return
		}
		began := time.Now()
		post.sweep(ctx, watches)
		select {
		case <-ctx.Done():
		case <-time.After(max(sweepEvery, min(9*time.Since(began), 10*sweepEvery))):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.posts[key] == post {
		delete(s.posts, key)
	}
}

// of are the watches of a post, which is given up if there are none.
func (s *sentries) of(key string, post *sentry) []*watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(post.watches) == 0 && s.posts[key] == post {
		delete(s.posts, key)
	}
	return post.watches
}

// swept is a watch while its server is swept.
type swept struct {
	*watch
	known
	isIssued bool // here, by the server's fence
}

// sweep looks at the server once. It leaves alone what a later rotation has reached: by
// the log the guard may know of that only later, and what it calls stolen is the login
// to which the application has turned by then. A server that is away is the step's affair.
func (p *sentry) sweep(ctx context.Context, watches []*watch) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	all := make([]swept, len(watches))
	var roles, returning []string
	for i, g := range watches {
		all[i] = swept{watch: g, known: g.now()}
		roles = append(roles, g.c.Role)
		if !all[i].contained.GetClean() || all[i].isPending(p.admin.Node) {
			returning = append(returning, all[i].contained.GetReturns())
		}
	}
	fences, err := p.admin.StoredOf(ctx, roles...)
	all = slices.DeleteFunc(all, func(g swept) bool {
		return isOvertaken(fences[g.c.Role], g.rotation, max(g.begin.GetGeneration(), g.staged.GetFence()))
	})
	var held map[string]postgres.Role // read after the fences: what has passed one is seen
	if len(returning) > 0 {
		held = p.read(ctx, all, returning)
	}
	e := postgres.Eviction{Returned: map[string]time.Time{}}
	for i := range all {
		all[i].doomsStolen(&e, p.admin.Node)
		if err == nil { // else nobody knows since when the login that returns is the application's
			all[i].doomsReturned(&e, p.admin.Node, fences[all[i].c.Role], held)
		}
	}
	ended, _ := p.admin.Evict(ctx, e)
	takesWrites := sync.OnceValue(func() bool { standby, err := p.admin.InRecovery(ctx); return err == nil && !standby })
	for _, g := range all {
		if len(ended) > 0 {
			g.seen.ended(ctx, p.admin.Node, slices.DeleteFunc(slices.Clone(ended), func(s postgres.Ended) bool { return !g.concerns(s, p.admin.Node) }))
		}
		if g.isIssued && g.isAltered(held) || err == nil && g.lacks(p.node.Name, fences[g.c.Role], held) && takesWrites() {
			select {
			case g.altered <- p.node:
			default: // by the next sweep
			}
		}
	}
}

// read reads what the logins carry. One that the account may not read hides no other,
// and is named once.
func (p *sentry) read(ctx context.Context, watches []swept, logins []string) map[string]postgres.Role {
	ctx, cancel := context.WithTimeout(ctx, time.Second/2) // sessions are to be ended in any case
	defer cancel()
	unread := func(login string) bool { return p.unread[login] }
	held, err := p.admin.RoleStates(ctx, slices.DeleteFunc(slices.Clone(logins), unread)...)
	alone := slices.DeleteFunc(slices.Clone(logins), func(login string) bool { return !unread(login) })
	if postgres.IsRefused(err, postgres.NotPermitted) {
		held, alone = map[string]postgres.Role{}, logins
	}
	for _, login := range alone {
		role, err := p.admin.RoleState(ctx, login)
		if err == nil {
			held[login] = role
		}
		if refused := postgres.IsRefused(err, postgres.NotPermitted); refused && !p.unread[login] {
			p.tell(ctx, watches, login, err)
		} else if err == nil {
			delete(p.unread, login)
		}
	}
	return held
}

// tell names a login that cannot be read.
func (p *sentry) tell(ctx context.Context, watches []swept, login string, err error) {
	if p.unread == nil {
		p.unread = map[string]bool{}
	}
	p.unread[login] = true
	for _, g := range watches {
		if g.contained.GetReturns() == login && g.o.note != nil {
			g.o.note(ctx, &pawlv1.Note{Kind: "not guarded", Credential: g.c.Name, Rotation: g.rotation,
				Text: fmt.Sprintf("%s: nobody sees whether the password of login %q is changed meanwhile: %v", p.admin.Node, login, err)})
		}
	}
}

// isOvertaken reports whether a later rotation has been at the fence. Where the database
// was ahead of the log, a rotation has passed with a greater counter than its own.
func isOvertaken(stored postgres.Fence, rotation string, generation uint64) bool {
	return stored.Generation > generation && stored.Rotation != rotation
}

func (g *swept) isPending(node string) bool {
	_, pending := g.contained.GetPending()[node]
	return pending
}

// doomsStolen adds the sessions that are to end on the server whatever it holds.
func (g *swept) doomsStolen(e *postgres.Eviction, node string) {
	e.Logins = append(e.Logins, stolen(g.contained)...)
	e.Sessions = append(e.Sessions, unendingOn(g.contained, node)...)
}

// doomsReturned adds those of the login that returns which began before it came back on
// the server. As long as it has not come back on a replica, or on a server that is late or
// has lost what was committed there, whoever is in has come with what was stolen.
func (g *swept) doomsReturned(e *postgres.Eviction, node string, stored postgres.Fence, held map[string]postgres.Role) {
	returns := g.contained.GetReturns()
	role, read := held[returns]
	g.isIssued = isIssued(stored, g.rotation)
	late := g.isPending(node) || !g.isIssued && g.staged != nil
	if g.contained.GetClean() && !late {
		return
	}
	carries, now := g.isIssued, role.At
	if read && g.envelope != nil {
		carries = role.Verifier.Equal(g.envelope.Verifier)
	} else {
		now = stored.Passed.Add(stored.Age)
	}
	switch replica := isReplica(g.c, node); {
	case replica && carries:
		e.Returned[returns] = g.o.observed(g.c, node, g.rotation, true, now, g.known).since
	case !replica && (g.isIssued || carries):
		e.Returned[returns] = stored.Passed
	case !replica && !late: // nobody can have come in since it was contained
	case now.IsZero():
		e.Logins = append(e.Logins, returns)
	default:
		e.Returned[returns] = now
		if replica {
			g.o.observed(g.c, node, g.rotation, false, now, g.known)
		}
	}
}

// lacks reports whether what was committed when the password was issued is missing on a
// server that takes the node's writes, as after a failover to one that was behind. A node
// that was never reached is the business of reachLate.
func (g *swept) lacks(node string, stored postgres.Fence, held map[string]postgres.Role) bool {
	if g.staged == nil || g.envelope == nil || g.isPending(node) {
		return false
	}
	role, read := held[g.contained.GetReturns()]
	return !g.isIssued || read && lacksLogin(role, stored, g.staged, node, g.envelope)
}

// concerns reports whether a session was ended for this emergency.
func (g *swept) concerns(s postgres.Ended, node string) bool {
	if s.User == g.contained.GetReturns() || slices.Contains(stolen(g.contained), s.User) {
		return true
	}
	return slices.ContainsFunc(unendingOn(g.contained, node), func(id postgres.SessionID) bool { return id.PID == s.PID && id.BackendStart.Equal(s.BackendStart) })
}

// isAltered reports whether the login carries another password here than this
// emergency has given it: who slips in may change it before he is ended. None
// counts where this guard has taken it away; else somebody broke the glass, which
// another emergency follows.
func (g *swept) isAltered(held map[string]postgres.Role) bool {
	if g.envelope == nil {
		return false
	}
	role, known := held[g.envelope.User]
	return known && !role.Verifier.Equal(g.envelope.Verifier) && (g.refused || !role.Verifier.IsZero())
}

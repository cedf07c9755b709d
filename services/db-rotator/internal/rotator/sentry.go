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
	returned time.Time // when the login came back on this server; zero: it has not
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
	fences, _ := p.admin.StoredOf(ctx, roles...)
	all = slices.DeleteFunc(all, func(g swept) bool {
		return isOvertaken(fences[g.c.Role], g.rotation, max(g.begin.GetGeneration(), g.staged.GetFence()))
	})
	var held map[string]postgres.Role // read after the fences: what has passed one is seen
	if len(returning) > 0 {
		held = p.read(ctx, all, returning)
	}
	e := postgres.Eviction{Returned: map[string]time.Time{}}
	for i := range all {
		all[i].dooms(&e, p.admin.Node, fences[all[i].c.Role], held)
	}
	ended, _ := p.admin.Evict(ctx, e)
	for _, g := range all {
		if len(ended) > 0 {
			g.seen.ended(ctx, p.admin.Node, slices.DeleteFunc(slices.Clone(ended), func(s postgres.Ended) bool { return !g.concerns(s, p.admin.Node) }))
		}
		if !g.returned.IsZero() && g.isAltered(held) {
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

// dooms adds whose sessions are to end on the server.
func (g *swept) dooms(e *postgres.Eviction, node string, stored postgres.Fence, held map[string]postgres.Role) {
	returns := g.contained.GetReturns()
	e.Logins = append(e.Logins, stolen(g.contained)...)
	e.Sessions = append(e.Sessions, unendingOn(g.contained, node)...)
	switch role, known := held[returns]; {
	case g.isPending(node) && known && g.stillOld(role):
		e.Logins = append(e.Logins, returns)
	case !g.contained.GetClean():
		g.returned = returned(stored, g.c, node, g.rotation, g.staged.GetCommittedAt()[node])
		e.Returned[returns] = g.returned
	}
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

// stillOld reports whether the login that returns carries on a late server anything but
// its new password: what it had there is not known, if no attempt has seen it.
func (g *swept) stillOld(role postgres.Role) bool {
	if g.envelope == nil { // it cannot be opened now
		return !role.Verifier.IsZero() && slices.Contains(g.contained.GetCarried(), g.o.envelopes.Fingerprint(role.Name, role.Verifier))
	}
	return !role.Verifier.IsZero() && !role.Verifier.Equal(g.envelope.Verifier)
}

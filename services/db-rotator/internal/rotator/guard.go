package rotator

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// sweepEvery is how long somebody who slips in by an old handshake may stay.
const sweepEvery = 25 * time.Millisecond

// guard watches the nodes from the moment when a login returns until the
// emergency is released: who comes in with what the login had before is ended.
// There is one for each emergency, however often it is asked for.
func (o *Rotator) guard(c *inventory.Credential, rotation string) {
	if o.newest == nil {
		return
	}
	o.background("guard "+c.Name+"/"+rotation, func(ctx context.Context) {
		o.sweep(effect.With(ctx, &effect.Recorder{Credential: c.Name, Step: "guard"}), c, rotation)
	})
}

func (o *Rotator) sweep(ctx context.Context, c *inventory.Credential, rotation string) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	g := &watch{o: o, c: c, rotation: rotation, seen: newWitness(o.keeper, c.Name, rotation)}
	var looked time.Time
	for ctx.Err() == nil {
		if g.staged == nil || time.Since(looked) > 20*sweepEvery {
			log, err := o.newest(ctx, c.Name)
			if err == nil {
				looked = time.Now()
				if g.over(log) {
					return
				}
				g.read(log)
			}
			if g.envelope == nil {
				g.envelope, _ = o.envelopes.Open(ctx, c.Name, rotation) // at the next look, where it cannot be
			}
		}
		if g.contained != nil { // until then it is not known who returns
			if altered := g.pass(ctx); len(altered) > 0 {
				g.putRight(ctx, altered)
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// watch is what a guard knows of its emergency.
type watch struct {
	o         *Rotator
	c         *inventory.Credential
	rotation  string
	seen      *witness
	begin     *pawlv1.Requested
	contained *pawlv1.Contained
	staged    *pawlv1.Staged
	issued    time.Time          // when that was stored
	envelope  *sealed.Credential // nil: not made yet
	refused   bool               // a login that was altered
}

func (g *watch) over(log bus.Log) bool {
	return log.Rotation != g.rotation || log.Find(saga.Released) != nil
}

func (g *watch) read(log bus.Log) {
	g.begin = log.Records[0].Body.GetRequested()
	if e := log.Find(saga.Contained); e != nil {
		g.contained = e.Body.GetContained()
	}
	if e := log.Find(saga.Staged); e != nil {
		g.staged, g.issued = e.Body.GetStaged(), e.At
	}
}

// pass looks once at every server that can be reached, and names the nodes on
// which the login that returns was given another password.
func (g *watch) pass(ctx context.Context) (altered []inventory.Node) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, node := range g.c.Nodes {
		for _, member := range append([]inventory.Node{node}, g.c.Cluster.Replicas(node)...) {
			admin, err := g.o.admin(g.c, member)
			if err != nil {
				continue
			}
			all.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				if g.passOne(ctx, admin) {
					mu.Lock()
					defer mu.Unlock()
					altered = append(altered, node)
				}
			})
		}
	}
	all.Wait()
	slices.SortFunc(altered, func(a, b inventory.Node) int { return strings.Compare(a.Name, b.Name) })
	return slices.CompactFunc(altered, func(a, b inventory.Node) bool { return a.Name == b.Name })
}

// passOne leaves a server alone that a later rotation has reached: by the log the guard
// may know of that only half a second later, and what it calls stolen is the login to
// which the application has turned by then.
func (g *watch) passOne(ctx context.Context, admin *postgres.Admin) (altered bool) {
	if stored, err := admin.Stored(ctx, g.c.Role); err == nil && stored.Generation > max(g.begin.GetGeneration(), g.staged.GetFence()) {
		return false
	}
	e := postgres.Eviction{Logins: stolen(g.contained)}
	if _, pending := g.contained.GetPending()[admin.Node]; pending && g.o.stillOld(ctx, admin, g.contained) {
		e.Logins = append(e.Logins, g.contained.GetReturns())
	} else if !g.contained.GetClean() {
		e.Returning, e.Since = g.contained.GetReturns(), returned(ctx, admin, g.c, g.rotation, g.staged.GetCommittedAt()[admin.Node])
	}
	ended, _ := admin.Evict(ctx, e) // a node that is away is the step's affair
	g.seen.ended(ctx, admin.Node, ended)
	return !e.Since.IsZero() && g.isAltered(ctx, admin)
}

// isAltered reports whether the login carries another password here than this
// emergency has given it: who slips in may change it before he is ended. None
// counts where this guard has taken it away; else somebody broke the glass, which
// another emergency follows.
func (g *watch) isAltered(ctx context.Context, admin *postgres.Admin) bool {
	if g.envelope == nil {
		return false
	}
	role, err := admin.RoleState(ctx, g.envelope.User)
	return err == nil && !role.Verifier.Equal(g.envelope.Verifier) && (g.refused || !role.Verifier.IsZero())
}

// putRight takes the password away with which somebody would go on coming in,
// and the application would not. The step that ends the emergency would be too
// late: before it the application has to be seen.
func (g *watch) putRight(ctx context.Context, nodes []inventory.Node) {
	g.refused = true
	c := *g.c
	c.Nodes = nodes
	f := postgres.Fence{Role: c.Role, Generation: g.begin.GetGeneration(), Phase: phaseRetire, Rotation: g.rotation}
	err := g.o.onEach(ctx, &c, "put right", func(ctx context.Context, s *primary) error {
		return g.o.inOrder(ctx, g.o.newContainment(g.c, f, g.stillDue), g.contained, g.issued, s, g.envelope)
	})
	if err != nil && !errors.As(err, new(*saga.NotYet)) {
		effect.Warn(ctx, "not put right, tried again: %v", err)
	}
}

func (g *watch) stillDue(ctx context.Context) error {
	log, err := g.o.newest(ctx, g.c.Name)
	if err == nil && g.over(log) {
		err = errMovedOn
	}
	return err
}

// returned is when the login came back on this server; the zero time where it
// has not. A replica's own clock is in the log. A primary knows it before the
// log does: it passed the fence then.
func returned(ctx context.Context, admin *postgres.Admin, c *inventory.Credential, rotation string, replayed *timestamppb.Timestamp) time.Time {
	if member := c.Cluster.Nodes[admin.Node]; member.ReplicaOf != "" && replayed != nil {
		return replayed.AsTime()
	}
	stored, err := admin.Stored(ctx, c.Role)
	if err != nil || stored.Rotation != rotation || stored.Phase < phaseRetire {
		return time.Time{}
	}
	return stored.Passed
}

// stillOld reports whether the login that returns still carries on this server
// what it had before: a replica may have yet to replay.
func (o *Rotator) stillOld(ctx context.Context, admin *postgres.Admin, contained *pawlv1.Contained) bool {
	role, err := admin.RoleState(ctx, contained.GetReturns())
	return err == nil && !role.Verifier.IsZero() && slices.Contains(contained.GetCarried(), o.envelopes.Fingerprint(role.Name, role.Verifier))
}

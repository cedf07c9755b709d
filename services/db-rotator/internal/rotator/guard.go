package rotator

import (
	"context"
	"errors"
	"sync"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// lookEvery is how often a guard looks at its emergency's log. With many of them it is
// less often, so that together they ask no more than two hundred times a second.
const lookEvery = 500 * time.Millisecond

// guard watches the servers from the moment when a login returns until the emergency
// is released: who comes in with what the login had before is ended. There is one for
// each emergency, however often it is asked for. It began with that event of the log.
func (o *Rotator) guard(c *inventory.Credential, rotation string, began uint64) {
	if o.newest == nil {
		return
	}
	o.background("guard "+c.Name+"/"+rotation, func(ctx context.Context) {
		g := &watch{o: o, c: c, rotation: rotation, began: began, seen: newWitness(o.keeper, c.Name, rotation), altered: make(chan inventory.Node, 1)}
		g.follow(effect.With(ctx, &effect.Recorder{Credential: c.Name, Step: "guard"}))
	})
}

func (o *Rotator) guardOf(r *service.Rotation) {
	requested, _ := r.State.Has(saga.Requested)
	o.guard(r.Credential, r.ID, requested.Seq)
}

// watch is a guarded emergency.
type watch struct {
	o        *Rotator
	c        *inventory.Credential
	rotation string
	began    uint64 // the sequence of its requested
	seen     *witness
	altered  chan inventory.Node // on which the login that returns was given another password

	mu sync.Mutex
	known
}

// known is what a guard knows of its emergency; what it points to is not changed.
type known struct {
	r         *service.Rotation // nil: not read yet
	begin     *pawlv1.Requested
	contained *pawlv1.Contained // nil: it is not known who returns
	staged    *pawlv1.Staged
	issued    time.Time          // when that was stored
	envelope  *sealed.Credential // nil: not made yet
	refused   bool               // a login that was altered
}

func (g *watch) now() known {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.known
}

// follow follows the log until the emergency is over, and puts right what sentries find.
func (g *watch) follow(ctx context.Context) {
	var posted bool
	defer func() {
		if posted {
			g.o.sentries.leave(g)
		}
	}()
	for ctx.Err() == nil {
		log, err := g.o.newest(ctx, g.c.Name)
		if err == nil && g.over(log) {
			return
		}
		if err == nil && log.Rotation == g.rotation {
			g.read(log)
		}
		k := g.now()
		if k.envelope == nil {
			k.envelope, _ = g.o.envelopes.Open(ctx, g.c.Name, g.rotation) // at the next look, where it cannot be
			g.mu.Lock()
			g.envelope = k.envelope
			g.mu.Unlock()
		}
		if k.contained != nil && !posted {
			posted = true
			g.o.sentries.join(g)
		}
		g.reachLate(k)
		every := lookEvery
		if k.staged == nil { // soon
			every = sweepEvery
		}
		g.rest(ctx, max(every, time.Duration(g.o.sentries.many())*lookEvery/100))
	}
}

// rest waits until the next look, and puts right meanwhile what is found to be altered.
func (g *watch) rest(ctx context.Context, until time.Duration) {
	over := time.NewTimer(until)
	defer over.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-over.C:
			return
		case node := <-g.altered:
			if g.putRight(ctx, node) {
				continue
			}
			select { // nor would the next sweep's
			case <-ctx.Done():
			case <-over.C:
			}
			return
		}
	}
}

// over reports whether the emergency is over by that log. One of another rotation that
// ends before this one began is what a follower says that is late.
func (g *watch) over(log bus.Log) bool {
	if log.Rotation != g.rotation {
		return log.LastSeq() > g.began
	}
	return log.Find(saga.Released) != nil
}

func (g *watch) read(log bus.Log) {
	r := &service.Rotation{ID: g.rotation, Credential: g.c, Clock: g.o.clock, StillDue: g.stillDue, Events: map[saga.Event]*pawlv1.Event{}}
	for _, record := range log.Records {
		r.Events[record.Event] = record.Body
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.r, g.begin = r, r.Requested()
	if e := log.Find(saga.Contained); e != nil {
		g.contained = e.Body.GetContained()
	}
	if e := log.Find(saga.Staged); e != nil {
		g.staged, g.issued = e.Body.GetStaged(), e.At
	}
}

// reachLate gives the primaries that could not be contained in time what the others
// have, as soon as they can be. The release does so, too: but it comes after the restart
// of the application, which may log in to just that node, and then would never succeed.
func (g *watch) reachLate(k known) {
	if k.staged == nil || k.envelope == nil {
		return
	}
	for _, node := range k.r.Late(g.c.Nodes) {
		g.o.background("reach "+node.Name+" for "+g.c.Name+"/"+g.rotation, func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(effect.With(ctx, &effect.Recorder{Credential: g.c.Name, Step: "guard"}), nodeTimeout)
			defer cancel()
			// What is not reached is tried again at the next look; the release names it.
			if s, err := g.o.lead(ctx, g.c, node); err == nil {
				_ = g.o.reach(ctx, k.r, s, k.envelope)
			}
		})
	}
}

// putRight has a node that has lost what was committed there contained again. On another
// it takes the password away with which somebody would go on coming in, and the
// application would not. The step that ends the emergency would be too late: before it
// the application has to be seen. It reports whether that could be done.
func (g *watch) putRight(ctx context.Context, node inventory.Node) bool {
	k := g.now()
	c := *g.c
	c.Nodes = []inventory.Node{node}
	f := postgres.Fence{Role: c.Role, Generation: k.begin.GetGeneration(), Phase: phaseRetire, Rotation: g.rotation}
	err := g.o.onEach(ctx, &c, "put right", func(ctx context.Context, s *primary) error {
		if again, err := g.o.regain(ctx, k.r, s, k.envelope); again || err != nil {
			return err
		}
		g.mu.Lock()
		g.refused = true
		g.mu.Unlock()
		return g.o.inOrder(ctx, g.o.newContainment(g.c, f, g.stillDue), k.contained, k.issued, s, k.envelope)
	})
	if err != nil && !errors.As(err, new(*saga.NotYet)) {
		effect.Warn(ctx, "not put right, tried again: %v", err)
		return false
	}
	return true
}

func (g *watch) stillDue(ctx context.Context) error {
	log, err := g.o.newest(ctx, g.c.Name)
	if err == nil && g.over(log) {
		err = errMovedOn
	}
	return err
}

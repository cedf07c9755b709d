package app

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
)

// Credentials that turn together have a log each, under one rotation id. What
// one waits for, or leaves to another, is read in their logs alone, so that any
// replica decides alike and a crash forgets nothing. docs/decisions/0011 tells
// why none can wait for ever.

// peer is another credential of the same group rotation, by its log.
type peer struct {
	name  string
	log   bus.Log
	state saga.State // zero before its log can be read
}

func (p *peer) has(e saga.Event) bool { _, ok := p.state.Has(e); return ok }

// turned reports whether it has turned round.
func (p *peer) turned() bool { return p.state.Failed != nil }

// failure says what turned it round.
func (p *peer) failure() string {
	f := p.log.Find(p.state.Failed.Event).Body.GetFailure()
	return f.GetStep() + ": " + f.GetReason()
}

// turn is what a step has to restart now, and, where that is not all, what it
// waits for.
type turn struct {
	consumers []inventory.Consumer
	left      int // consumers that another member restarts, or nobody needs to
	wait      *saga.NotYet
}

// turnOf decides which of the consumers this credential's step restarts.
func (a *app) turnOf(ctx context.Context, r *service.Rotation) (turn, error) {
	all := r.Credential.Consumers
	if len(r.Requested().GetGroup()) == 0 {
		return turn{consumers: all}, nil
	}
	peers := map[string]*peer{}
	for _, name := range r.Requested().GetGroup() {
		if name == r.Credential.Name {
			continue
		}
		p, err := a.peer(ctx, r.ID, name)
		if err != nil {
			return turn{}, err
		}
		peers[name] = p
	}
	var t turn
	var err error
	switch {
	case r.State.Flow.Urgent:
		t = a.urgently(r, peers)
	case r.Step.Retriable():
		t = a.back(r, peers)
	default:
		t, err = a.forward(r, peers)
	}
	t.left = max(0, len(all)-len(t.consumers)) // poolers of others may be among them
	return t, err
}

func (a *app) peer(ctx context.Context, rotation, name string) (*peer, error) {
	p := &peer{name: name}
	var err error
	if p.log, err = a.read(ctx, name, rotation); err != nil || len(p.log.Records) == 0 {
		return p, err // a follower's answer may lag behind
	}
	p.state, err = p.log.Fold()
	return p, err
}

// read returns a rotation's log, which mostly is the credential's newest.
func read(b *bus.Bus) func(ctx context.Context, credential, rotation string) (bus.Log, error) {
	return func(ctx context.Context, credential, rotation string) (bus.Log, error) {
		log, err := b.ReadNewest(ctx, credential) // remembers what it has read
		if err == nil && log.Rotation != rotation {
			log, err = b.ReadRotation(ctx, credential, rotation)
		}
		return log, err
	}
}

// forward waits until all are published, and then leaves each shared consumer
// to the first member that has it. It fails where another one turned round
// before its own restart was done, so that all roll back together.
func (a *app) forward(r *service.Rotation, peers map[string]*peer) (t turn, err error) {
	var first *peer
	var unpublished, unrestarted []string
	for _, name := range r.Requested().GetGroup() {
		p := peers[name]
		switch {
		case p == nil: // this one
		case p.turned() && !p.has(saga.Restarted):
			if first == nil || p.state.Failed.Seq < first.state.Failed.Seq {
				first = p
			}
		case !p.has(saga.Published):
			unpublished = append(unpublished, name)
		}
	}
	if first != nil {
		return t, saga.Permanentf("%s turns together with this one, and has failed: %s", first.name, first.failure())
	}
	if len(unpublished) > 0 {
		t.wait = notYet(r, "waits until all that turn together are published", unpublished)
		return t, nil
	}
	for _, c := range r.Credential.Consumers {
		by := a.inventory.Sharing(c.Name, r.Requested().GetGroup())[0]
		switch p := peers[by]; {
		case p == nil:
			t.consumers = append(t.consumers, c)
		case !p.has(saga.Restarted) && !slices.Contains(unrestarted, by):
			unrestarted = append(unrestarted, by)
		}
	}
	if len(unrestarted) > 0 {
		t.consumers = nil
		t.wait = notYet(r, "waits for the restart of the consumers that it shares", unrestarted)
	}
	return t, nil
}

// back decides which consumers have to read the restored credential. A shared
// one needs to do so once after the last of those that roll back has written
// its sinks: that one restarts it. The others wait for it, but only so long,
// since a sink may take for ever to mend.
func (a *app) back(r *service.Rotation, peers map[string]*peer) (t turn) {
	for _, p := range peers {
		if p.turned() && !p.has(saga.Published) {
			return t // so none ever was restarted: none had all published
		}
	}
	return a.lastRestarts(r, peers, a.after, saga.Rerestarted, "waits for those that roll back together with it")
}

// urgently decides so in an emergency of several, which only goes forward: whoever is
// published last restarts what they share. One that did not begin is not waited for.
// Poolers are cut by each, and by whoever brings the new keys to what they share: a
// pooler would go on serving a thief whom it let in before.
func (a *app) urgently(r *service.Rotation, peers map[string]*peer) turn {
	after := func(r *service.Rotation, p *peer) bool {
		mine, _ := r.State.Has(saga.Published)
		its, published := p.state.Has(saga.Published)
		return len(p.log.Records) > 0 && (!published || its.Seq > mine.Seq)
	}
	t := a.lastRestarts(r, peers, after, saga.Restarted, "waits for those that share a consumer with it")
	for _, name := range r.Requested().GetGroup() {
		for _, c := range a.consumersOf(name) {
			known := slices.ContainsFunc(t.consumers, func(x inventory.Consumer) bool { return x.Name == c.Name })
			if c.Restart.Pgbouncer != nil && !known && (name == r.Credential.Name || len(t.consumers) > 0) {
				t.consumers = append(t.consumers, c)
			}
		}
	}
	return t
}

// consumersOf are the consumers of a credential; of one that is no longer in pawl.yaml,
// none.
func (a *app) consumersOf(credential string) []inventory.Consumer {
	if c := a.inventory.Credentials[credential]; c != nil {
		return c.Consumers
	}
	return nil
}

// lastRestarts leaves a shared consumer to whoever comes after this one, and waits for
// it, but only so long, since a sink may take for ever to mend.
func (a *app) lastRestarts(r *service.Rotation, peers map[string]*peer, after func(*service.Rotation, *peer) bool, done saga.Event, why string) (t turn) {
	patient := r.Waited() < service.Limit(r.Step, r.Requested())/20
	var awaited []string
	for _, c := range r.Credential.Consumers {
		served, later := false, ""
		for _, name := range a.inventory.Sharing(c.Name, r.Requested().GetGroup()) {
			p := peers[name]
			if p == nil {
				continue
			}
			switch follows := after(r, p); {
			case follows && p.has(done):
				served = true
			case follows:
				later = name
			}
		}
		switch {
		case served:
		case later != "" && patient:
			awaited = append(awaited, later)
		default:
			t.consumers = append(t.consumers, c)
		}
	}
	if len(awaited) > 0 {
		slices.Sort(awaited)
		t.wait = notYet(r, why, slices.Compact(awaited))
	}
	return t
}

// after reports whether the peer has written, or is yet to write, its old
// credential back after this rotation did: it then restarts what they share.
func (a *app) after(r *service.Rotation, p *peer) bool {
	if _, passed := r.State.Has(saga.Restarted); !p.turned() {
		// It turns round as well once it sees that this one did not restart.
		return !passed && !p.has(saga.Restarted)
	}
	restored, done := p.state.Has(saga.Restored)
	return !done || restored.Seq > r.State.Last.Seq
}

// notYet asks again soon at first, then ever less often. People are told after
// some seconds.
func notYet(r *service.Rotation, why string, laggards []string) *saga.NotYet {
	waited := r.Waited()
	n := &saga.NotYet{Again: min(max(waited/3, 50*time.Millisecond), time.Second), Laggards: laggards}
	if waited > 5*time.Second {
		n.Why = fmt.Sprintf("%s turns together with others and %s", r.Credential.Name, why)
	}
	return n
}

// sum is the step's line for people.
func (t turn) sum() string {
	text := service.Count(len(t.consumers), "consumer") + " restarted"
	switch {
	case t.left > 0 && len(t.consumers) == 0:
		return "nothing to restart: others of the group do it, or nobody needs it"
	case t.left > 0:
		return text + ", the rest by others of the group"
	}
	return text
}

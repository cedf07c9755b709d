// Package posture keeps in memory where every credential stands: it follows the
// log, the notes and the audit trail as they grow, and tells whoever watches
// that something has changed. What it keeps does not grow with the past: of each
// credential the newest rotation, without its effects, and what is noted of it.
// It only reads, and each auditor does so for itself; nothing is lost with it.
package posture

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/service"
)

// Posture follows.
type Posture struct {
	d     service.Dependencies
	names []string // of the credentials, sorted

	mu          sync.Mutex
	credentials map[string]*credential
	read        uint64 // events
	events      ring[chronicle.Line]
	notes       ring[chronicle.Line]
	trail       Trail
	caughtUp    struct{ log, notes bool }
	failing     string // why nothing new is read; empty: it is
	watchers    map[*watcher]struct{}
}

// recent is how many events, notes and records are kept to be shown.
const recent = 100

// New returns what knows nothing yet.
func New(d service.Dependencies) *Posture {
	p := &Posture{d: d, names: slices.Sorted(maps.Keys(d.Inventory.Credentials)), credentials: map[string]*credential{}, watchers: map[*watcher]struct{}{}}
	for name, c := range d.Inventory.Credentials {
		p.credentials[name] = &credential{config: c, dirty: true}
	}
	return p
}

// Run follows until ctx ends.
func (p *Posture) Run(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	read := make(chan struct{}) // closed when the log was read once: notes are of rotations
	all.Go(func() error {
		return p.follow(ctx, bus.StreamLog, "pawl.rotation.*.*.*", p.event, sync.OnceFunc(func() {
			p.mu.Lock()
			p.caughtUp.log = true
			p.mu.Unlock()
			close(read)
		}))
	})
	all.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-read:
		}
		return p.follow(ctx, bus.StreamNote, "pawl.note.*", p.note, sync.OnceFunc(func() {
			p.mu.Lock()
			p.caughtUp.notes = true
			p.mu.Unlock()
			p.changed("")
		}))
	})
	all.Go(func() error { return p.prove(ctx) })
	return all.Wait()
}

// follow hands on what can be decoded; what cannot is another version's.
func (p *Posture) follow(ctx context.Context, stream, subject string, take func(bus.Entry), first func()) error {
	return p.d.Bus.Follow(ctx, stream, subject, bus.Start{}, func(m *jetstream.RawStreamMsg) {
		if e, err := bus.ReadEntry(m.Subject, m.Header, m.Data, m.Sequence, m.Time); err == nil {
			take(e)
		}
	}, func() { p.fails(""); first() }, func(err error) {
		p.d.Log.Warn("dashboard falls behind; it goes on reading", "error", err)
		p.fails(err.Error())
	})
}

func (p *Posture) fails(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failing = why
}

func (p *Posture) event(e bus.Entry) {
	p.mu.Lock()
	p.read++
	p.events.add(chronicle.NewLine(e))
	if c, ok := p.credentials[e.Credential]; ok {
		c.event(e)
	}
	live := p.caughtUp.log
	p.mu.Unlock()
	if live {
		p.changed(e.Credential)
	}
}

func (p *Posture) note(e bus.Entry) {
	p.mu.Lock()
	p.notes.add(chronicle.NewLine(e))
	if k := e.Note.GetKind(); k == "configuration" || k == "configuration changed" { // the service begins anew, and compares all of them anew
		for _, c := range p.credentials {
			c.forget(e.Service)
		}
	}
	if c, ok := p.credentials[e.Credential]; ok {
		c.note(e)
	}
	live := p.caughtUp.notes
	p.mu.Unlock()
	if live {
		p.changed(e.Credential)
	}
}

// ring keeps the newest.
type ring[T any] struct {
	items []T
	next  int
}

func (r *ring[T]) add(item T) {
	if len(r.items) < recent {
		r.items = append(r.items, item)
		return
	}
	r.items[r.next] = item
	r.next = (r.next + 1) % recent
}

// newest first.
func (r *ring[T]) all() []T {
	out := slices.Concat(r.items[r.next:], r.items[:r.next])
	slices.Reverse(out)
	return out
}

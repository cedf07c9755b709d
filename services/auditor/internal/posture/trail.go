package posture

import (
	"context"
	"errors"
	"time"

	"golang.org/x/mod/sumdb/note"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/trail"
)

// Trail is what was proved of the audit trail: by this process, from the first
// record on, and then of each that came.
type Trail struct {
	Records    int64             // read
	Signed     int64             // of these, covered by the newest checkpoint, and proved
	Checkpoint *trail.Checkpoint // the newest; nil: none yet
	At         time.Time         // when the newest entry was read
	Fault      string            // the first record that is not what was signed; nothing after it is believed
	Failing    string            // why it cannot be read; empty: it can

	newest ring[*trail.Record]
}

// Newest are the newest records, newest first.
func (t Trail) Newest() []*trail.Record { return t.newest.all() }

// Trail tells of the audit trail.
func (p *Posture) Trail() Trail {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.trail
	t.newest.items = append([]*trail.Record(nil), t.newest.items...)
	return t
}

// prove follows the trail until ctx ends, or until it is found broken.
func (p *Posture) prove(ctx context.Context) error {
	keys, err := trail.LoadKeys(trail.PublicFile(p.d.Inventory.KeysDir))
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		err := p.follows(ctx, keys)
		var wrong *trail.Fault
		if errors.As(err, &wrong) {
			p.mu.Lock()
			p.trail.Fault = wrong.Error()
			p.mu.Unlock()
			p.changed("")
			return nil
		}
		if ctx.Err() != nil {
			break
		}
		p.d.Log.Warn("trail not read; again soon", "error", err)
		p.mu.Lock()
		p.trail = Trail{Failing: err.Error()}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// follows proves from the first record on.
func (p *Posture) follows(ctx context.Context, keys note.Verifiers) error {
	chain, decoder := trail.NewChain(keys), trail.NewDecoder(keys, nil)
	p.mu.Lock()
	p.trail = Trail{}
	p.mu.Unlock()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for m := range p.d.Bus.Tail(ctx, bus.StreamAudit, trail.Subjects, bus.Start{}) {
		entry, err := decoder.Decode(m)
		if err == nil {
			err = chain.Add(entry)
		}
		if err != nil {
			return err
		}
		p.proved(chain, entry)
	}
	return ctx.Err()
}

func (p *Posture) proved(chain *trail.Chain, entry trail.Entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &p.trail
	t.At = time.Now()
	if entry.Record != nil {
		t.Records = entry.Record.Index + 1
		t.newest.add(entry.Record)
	}
	if t.Checkpoint = chain.Newest(); t.Checkpoint != nil {
		t.Signed = t.Checkpoint.Size
	}
	for w := range p.watchers {
		if w.credential != "" {
			continue
		}
		select {
		case w.heard <- struct{}{}:
		default:
		}
	}
}

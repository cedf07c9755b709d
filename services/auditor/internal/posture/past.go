package posture

import (
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
)

// Bounds of what is read for one page.
const (
	scannedNotes = 20_000
	afterwards   = 5 * time.Second // notes of a rotation may be stored later than its last event
)

// History reads the newest rotations of a credential, newest first; more says
// that there were others before them.
func (p *Posture) History(ctx context.Context, credential string, now time.Time) (all []chronicle.Rotation, more bool, err error) {
	p.mu.Lock()
	c, ok := p.credentials[credential]
	var from uint64
	if ok && len(c.begins) > 0 {
		from, more = c.begins[0], len(c.begins) == keptBegins
	}
	p.mu.Unlock()
	if from == 0 {
		return nil, false, nil
	}
	var logs []bus.Log
	_, err = p.d.Bus.Scan(ctx, bus.StreamLog, bus.LogSubject(credential, "*", "*"), bus.Start{Seq: from}, func(m *jetstream.RawStreamMsg) bool {
		e, err := bus.ReadEntry(m.Subject, m.Header, m.Data, m.Sequence, m.Time)
		if err != nil {
			return true // another version's
		}
		logs = bus.ByRotation(logs, e)
		return true
	})
	if err != nil {
		return nil, false, err
	}
	for _, log := range logs {
		if r, err := chronicle.NewRotation(log, now); err == nil { // else another version's, or its beginning is older
			all = append(all, r)
		}
	}
	logs = slices.DeleteFunc(logs, func(l bus.Log) bool { return l.Records[0].Body.GetRequested() == nil })
	chronicle.MarkSuperseded(all, logs)
	slices.Reverse(all)
	return all, more, nil
}

// Rotation reads a rotation: a timeline of each credential that has it, of so many as
// may rotate together; left is how many more have. None if there is no such rotation.
func (p *Posture) Rotation(ctx context.Context, id string, now time.Time) (all []chronicle.Timeline, left int, err error) {
	names, err := p.d.Bus.CredentialsOf(ctx, id)
	if err != nil {
		return nil, 0, err
	}
	left = max(0, len(names)-inventory.MaxTogether)
	var logs []bus.Log
	for _, name := range names[:len(names)-left] {
		log, err := p.d.Bus.ReadRotation(ctx, name, id)
		if err != nil {
			return nil, 0, err
		}
		if len(log.Records) > 0 { // else a follower's answer lags behind
			logs = append(logs, log)
		}
	}
	if len(logs) == 0 {
		return nil, 0, nil
	}
	notes, err := p.notesOf(ctx, logs)
	if err != nil {
		return nil, 0, err
	}
	for _, log := range logs {
		t, err := chronicle.NewTimeline(log, notes, p.d.Inventory.Telemetry.Jaeger, now)
		if err != nil {
			return nil, 0, err
		}
		p.superseded(&t)
		all = append(all, t)
	}
	return all, left, nil
}

// superseded gives one that stands open, and is not the newest, its outcome.
func (p *Posture) superseded(t *chronicle.Timeline) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.credentials[t.Credential]
	if !ok || t.Outcome != chronicle.Running || c.log.Rotation == "" || c.log.Rotation == t.ID || len(c.log.Records) == 0 {
		return
	}
	at := c.log.Records[0].At
	if at.Before(t.Requested) {
		return // of one that has just begun, and was not heard of yet
	}
	t.Outcome, t.Ended, t.Seconds = chronicle.Superseded, &at, at.Sub(t.Requested).Seconds()
}

// notesOf reads the notes of a rotation: from its beginning to its last event.
func (p *Posture) notesOf(ctx context.Context, logs []bus.Log) (notes []bus.Entry, err error) {
	begin, end := logs[0].Records[0].At, time.Time{}
	for _, log := range logs {
		if len(log.Records) == 0 {
			continue
		}
		if state, err := log.Fold(); err != nil || state.Open() {
			end = time.Now()
		}
		if at := log.Records[len(log.Records)-1].At; at.After(end) {
			end = at
		}
	}
	read := 0
	_, err = p.d.Bus.Scan(ctx, bus.StreamNote, "pawl.note.*", bus.Start{Time: begin}, func(m *jetstream.RawStreamMsg) bool {
		if read++; m.Time.After(end.Add(afterwards)) || read > scannedNotes {
			return false
		}
		if e, err := bus.ReadEntry(m.Subject, m.Header, m.Data, m.Sequence, m.Time); err == nil && e.Rotation == logs[0].Rotation {
			notes = append(notes, e)
		}
		return true
	})
	return notes, err
}

package trail

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"pawl.dev/internal/bus"
)

// Live reads the trail from its first entry to what is stored now, in order.
// What is no record or checkpoint, a signature by another key, and a gap are a
// Fault; whether it is the trail that was signed, a Chain says.
func Live(ctx context.Context, b *bus.Bus, keys note.Verifiers) Entries {
	return func(yield func(Entry, error) bool) {
		d := Decoder{keys: keys}
		for m, err := range stored(ctx, b, bus.StreamAudit) {
			var e Entry
			if err == nil {
				e, err = d.Decode(m)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Decoder reads entries from PAWL_AUDIT's messages, in stored order.
type Decoder struct {
	keys     note.Verifiers
	index    int64
	sequence uint64
}

// NewDecoder begins after a checkpoint's last record; nil: at the first.
func NewDecoder(keys note.Verifiers, after *Checkpoint) *Decoder {
	if after == nil {
		return &Decoder{keys: keys}
	}
	return &Decoder{keys, after.Size, after.Last}
}

// Next is the sequence of the message that Decode takes next.
func (d *Decoder) Next() uint64 { return d.sequence + 1 }

// Decode reads the next message. Its error may be a Fault.
func (d *Decoder) Decode(m *jetstream.RawStreamMsg) (Entry, error) {
	if m.Sequence != d.Next() {
		return Entry{}, &Fault{d.index, "", fmt.Sprintf("or a checkpoint is gone: %s ends its gap at sequence %d, not at %d", bus.StreamAudit, m.Sequence, d.Next())}
	}
	d.sequence++
	if strings.HasPrefix(m.Subject, checkpoints) {
		c, err := readCheckpoint(m.Subject, m.Data, d.keys)
		if err != nil {
			return Entry{}, err
		}
		c.Sequence = d.sequence
		return Entry{Checkpoint: c}, nil
	}
	r, err := readRecord(d.index, m.Subject, m.Data)
	if err != nil {
		return Entry{}, err
	}
	r.Sequence = d.sequence
	d.index++
	return Entry{Record: r}, nil
}

// NewestCheckpoint reads the newest one that is stored; nil where there is none.
func NewestCheckpoint(ctx context.Context, b *bus.Bus, keys note.Verifiers) (*Checkpoint, error) {
	m, err := b.Last(ctx, bus.StreamAudit, CheckpointSubject("*"), nil)
	if err != nil {
		return nil, fmt.Errorf("newest checkpoint: %w", err)
	}
	if m == nil {
		return nil, nil
	}
	c, err := readCheckpoint(m.Subject, m.Data, keys)
	if err != nil {
		return nil, err
	}
	c.Sequence = m.Sequence
	return c, nil
}

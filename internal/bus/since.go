package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/saga"
)

// Happened is one event of a credential's log, of whichever rotation.
type Happened struct {
	saga.Entry
	Rotation string
}

// ReadSince lists what was stored in the log of a credential from then on, by
// the bus's clock, oldest first.
func (b *Bus) ReadSince(ctx context.Context, credential string, since time.Time) (all []Happened, err error) {
	var undecodable error
	_, err = b.Scan(ctx, StreamLog, logOf(credential), Start{Time: since}, func(m *jetstream.RawStreamMsg) bool {
		h := Happened{Entry: saga.Entry{Seq: m.Sequence, At: m.Time}}
		_, h.Rotation, h.Event, undecodable = ParseLogSubject(m.Subject)
		all = append(all, h)
		return undecodable == nil
	})
	if err = errors.Join(err, undecodable); err != nil {
		return nil, fmt.Errorf("read the log of %s since %s: %w", credential, since.Format(time.RFC3339), err)
	}
	return all, nil
}

// firstSince returns the sequence of the first message on the subjects of filter
// from then on, 0 for none.
func (b *Bus) firstSince(ctx context.Context, stream, filter string, since time.Time) (seq uint64, err error) {
	_, err = b.batch(ctx, stream, filter, 1, &Start{Time: since}, func(m *jetstream.RawStreamMsg) bool {
		seq = m.Sequence
		return false
	})
	return seq, err
}

// LastOf returns when a credential's log last had the event, and in which
// rotation; the zero Happened where it never had.
func (b *Bus) LastOf(ctx context.Context, credential string, e saga.Event) (Happened, error) {
	m, err := b.Last(ctx, StreamLog, LogSubject(credential, "*", e), nil)
	if err != nil {
		return Happened{}, fmt.Errorf("read the log of %s: %w", credential, err)
	}
	if m == nil {
		return Happened{}, nil
	}
	h := Happened{Entry: saga.Entry{Seq: m.Sequence, At: m.Time}}
	_, h.Rotation, h.Event, err = ParseLogSubject(m.Subject)
	return h, err
}

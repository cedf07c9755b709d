package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

// scanned is how many messages Scan asks for at a time.
const scanned = 256

// Start of Scan and Follow: at a sequence of the stream; where that is 0, at a
// time; where that is zero, too, at the beginning.
type Start struct {
	Seq  uint64
	Time time.Time
}

// Scan calls take with each message that the stream holds on a subject from
// there on, in stored order, until take returns false. It returns where to go
// on. It leaves nothing on the server and needs no right but to read.
func (b *Bus) Scan(ctx context.Context, stream, subject string, from Start, take func(*jetstream.RawStreamMsg) bool) (next Start, err error) {
	for next = from; ; {
		more, err := b.batch(ctx, stream, subject, &next, take)
		if err != nil {
			return next, fmt.Errorf("read %s: %w", stream, err)
		}
		if !more {
			return next, nil
		}
	}
}

// batch asks once. Each message says how many come after it: where one is
// missing, which a connection that breaks can do, the rest is asked for again.
func (b *Bus) batch(ctx context.Context, stream, subject string, next *Start, take func(*jetstream.RawStreamMsg) bool) (more bool, err error) {
	ctx, cancel := Bound(ctx)
	defer cancel()
	start := jetstreamext.GetBatchSeq(max(1, next.Seq))
	if next.Seq == 0 && !next.Time.IsZero() {
		start = jetstreamext.GetBatchStartTime(next.Time)
	}
	messages, err := jetstreamext.GetBatch(ctx, b.JetStream, stream, scanned, start, jetstreamext.GetBatchSubject(subject))
	if err != nil {
		return false, err
	}
	n, pending := 0, uint64(0)
	for m, err := range messages {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		after, err := strconv.ParseUint(m.Header.Get("Nats-Num-Pending"), 10, 64)
		if err != nil {
			return false, fmt.Errorf("message %d: %w", m.Sequence, err)
		}
		if n > 0 && after+1 != pending {
			return true, nil
		}
		n, pending, next.Seq = n+1, after, m.Sequence+1
		if !take(m) {
			return false, nil
		}
	}
	if n == 0 {
		return false, errors.New("no answer") // the end would have been told
	}
	return pending > 0, nil
}

// Follow is Scan that never ends: it calls take with what is stored later, too,
// and idle each time it has come to the end. It is woken by what passes on the
// subject, and looks once a second in any case. Failures are told to failed, and
// the reading goes on; it ends with ctx.
func (b *Bus) Follow(ctx context.Context, stream, subject string, from Start, take func(*jetstream.RawStreamMsg), idle func(), failed func(error)) error {
	passed := make(chan struct{}, 1)
	sub, err := b.NATS.Subscribe(subject, func(*nats.Msg) {
		select {
		case passed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return fmt.Errorf("follow %s: %w", stream, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
	const soon, late = 5 * time.Millisecond, time.Second
	wait := late
	for {
		before := from
		from, err = b.Scan(ctx, stream, subject, from, func(m *jetstream.RawStreamMsg) bool { take(m); return ctx.Err() == nil })
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			failed(err)
			wait = late
		default:
			idle()
		}
		if from != before {
			wait = late
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			wait = min(3*wait, late)
		case <-passed:
			wait = soon // it passes before it is stored
		}
	}
}

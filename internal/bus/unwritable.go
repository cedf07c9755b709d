package bus

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/condition"
)

// forgetTimeout is how long a publish that nobody acknowledged speaks against its
// stream, if no other one fails: longer than any of Pawl's retries.
const forgetTimeout = time.Minute

// unwritable are the streams that did not take what this process published.
type unwritable struct {
	mu      sync.Mutex
	streams map[string]refusal
}

// refusal is the last failure of a publish to a stream.
type refusal struct {
	at         time.Time
	full       bool   // the server said so; otherwise it said nothing
	reconnects uint64 // of the connection, until then
}

// publishing calls publish, and notes whether the stream of the subject takes writes.
func (b *Bus) publishing(subject string, publish func() error) error {
	reconnects := b.NATS.Stats().Reconnects
	err := b.Refused(subject, publish())
	if silent(err) && b.NATS.IsConnected() && b.NATS.Stats().Reconnects == reconnects { // else the connection is at fault
		text := "takes no writes: NATS did not acknowledge a message. Is its disk full, or was it? Fix: docs/runbooks/disk.md"
		if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
			text = "takes no writes: it does not exist, or has no leader. `pawl provision` makes streams that are new in this version"
		}
		b.refuses(streamOf(subject), refusal{at: time.Now(), reconnects: reconnects}, text)
	}
	return err
}

// silent reports whether NATS did not answer a publish.
func silent(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders)
}

// refuses notes that a stream did not take a message.
func (b *Bus) refuses(stream string, r refusal, text string) {
	b.unwritable.mu.Lock()
	defer b.unwritable.mu.Unlock()
	if b.unwritable.streams == nil {
		b.unwritable.streams = map[string]refusal{}
	}
	_, known := b.unwritable.streams[stream]
	b.unwritable.streams[stream] = r
	b.conditions.Raise(condition.Condition{Name: ConditionStream, Object: stream, Failing: true, Text: text})
	if !known {
		b.log.Warn("stream takes no writes", "stream", stream, "text", text)
	}
}

// writable forgets what spoke against a stream.
func (b *Bus) writable(stream string) {
	b.unwritable.mu.Lock()
	defer b.unwritable.mu.Unlock()
	if _, known := b.unwritable.streams[stream]; !known {
		return
	}
	delete(b.unwritable.streams, stream)
	b.conditions.Clear(ConditionStream, stream)
	b.log.Info("stream takes writes again, as far as is known", "stream", stream)
}

// ReviewStreams forgets failures that say nothing any more about a stream that this
// process does not write to meanwhile: it has room again; or it did not answer a
// while ago, or a server before this one.
func (b *Bus) ReviewStreams(ctx context.Context) {
	b.unwritable.mu.Lock()
	streams := maps.Clone(b.unwritable.streams)
	b.unwritable.mu.Unlock()
	for stream, r := range streams {
		late := time.Since(r.at) > forgetTimeout
		if r.full && b.hasRoom(ctx, stream, late) || !r.full && (late || b.NATS.Stats().Reconnects != r.reconnects) {
			b.writable(stream)
		}
	}
}

// hasRoom reports whether a stream is below its limits. Services may not look at all
// of the streams that they write to; of those, otherwise is returned.
func (b *Bus) hasRoom(ctx context.Context, stream string, otherwise bool) bool {
	s, err := b.Stream(ctx, stream)
	if err != nil {
		return otherwise
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	info, err := s.Info(ctx)
	if err != nil {
		return otherwise
	}
	limits, has := info.Config, info.State
	if limits.MaxBytes <= 0 && limits.MaxMsgs <= 0 {
		return otherwise // the server was full, not the stream
	}
	return (limits.MaxBytes <= 0 || has.Bytes+MaxEvent < uint64(limits.MaxBytes)) && (limits.MaxMsgs <= 0 || has.Msgs < uint64(limits.MaxMsgs))
}

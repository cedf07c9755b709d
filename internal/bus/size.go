package bus

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Size is how much a stream holds, of at most how much.
type Size struct {
	Stream   string
	Messages uint64
	Bytes    uint64
	Limit    uint64 // in bytes; 0: the disk
	Altered  string // see Altered
	last     uint64 // sequence
}

// Sizes asks for the size of every stream.
func (b *Bus) Sizes(ctx context.Context) ([]Size, error) {
	var all []Size
	for _, c := range Streams(Settings{}) {
		once, cancel := Bound(ctx)
		stream, err := b.JetStream.Stream(once, c.Name)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("size of %s: %w", c.Name, err)
		}
		info := stream.CachedInfo()
		all = append(all, Size{c.Name, info.State.Msgs, info.State.Bytes, uint64(max(0, info.Config.MaxBytes)), Altered(info.Config), info.State.LastSeq})
	}
	return all, nil
}

// growing are the streams from which nothing is ever removed; the others stay
// within what their limits, ages and readers leave of them.
var growing = []string{StreamLog, StreamAudit, StreamNote, StreamDead, StreamEvidence}

// Grown estimates how many bytes were stored in a stream from then on, by the bus's
// clock: 0 of a stream that does not grow forever.
func (b *Bus) Grown(ctx context.Context, s Size, since time.Time) (uint64, error) {
	if s.Messages == 0 || !slices.Contains(growing, s.Stream) {
		return 0, nil
	}
	first, err := b.firstSince(ctx, s.Stream, ">", since)
	if err != nil {
		return 0, fmt.Errorf("growth of %s: %w", s.Stream, err)
	}
	if first == 0 || first > s.last {
		return 0, nil
	}
	return (s.last - first + 1) * s.Bytes / s.Messages, nil
}

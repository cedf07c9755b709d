package trail

import (
	"context"
	"iter"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// stored reads all that a stream holds when it begins, in order.
func stored(ctx context.Context, b *bus.Bus, stream string) iter.Seq2[*jetstream.RawStreamMsg, error] {
	return func(yield func(*jetstream.RawStreamMsg, error) bool) {
		if _, err := b.Scan(ctx, stream, ">", bus.Start{}, func(m *jetstream.RawStreamMsg) bool { return yield(m, nil) }); err != nil {
			yield(nil, err)
		}
	}
}

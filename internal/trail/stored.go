package trail

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// stored reads all that a stream holds when it begins, in order.
func stored(ctx context.Context, b *bus.Bus, stream string) iter.Seq2[jetstream.Msg, error] {
	return func(yield func(jetstream.Msg, error) bool) {
		if err := read(ctx, b, stream, func(m jetstream.Msg) bool { return yield(m, nil) }); err != nil {
			yield(nil, fmt.Errorf("read %s: %w", stream, err))
		}
	}
}

func read(ctx context.Context, b *bus.Bus, stream string, each func(jetstream.Msg) bool) error {
	consumer, err := b.JetStream.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	left := consumer.CachedInfo().NumPending
	if left == 0 {
		return nil
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for ; left > 0; left-- {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		if !each(m) {
			return nil
		}
	}
	return nil
}

func isNone(err error) bool { return errors.Is(err, jetstream.ErrMsgNotFound) }

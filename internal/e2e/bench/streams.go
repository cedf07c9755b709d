package main

import (
	"context"
	"fmt"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// streams looks at all streams and consumers, as only the provisioner may.
type streams struct{ *bus.Bus }

// stored returns, by stream, how many messages were ever stored in it.
func (s streams) stored(ctx context.Context) (map[string]uint64, error) {
	stored := map[string]uint64{}
	for _, config := range bus.Streams(bus.Settings{}) {
		stream, err := s.JetStream.Stream(ctx, config.Name)
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", config.Name, err)
		}
		stored[config.Name] = stream.CachedInfo().State.LastSeq
	}
	return stored, nil
}

// backlog returns how many deliveries there were so far, and how many messages
// are still to be delivered or acknowledged, to all services and to the auditor
// alone.
func (s streams) backlog(ctx context.Context) (deliveries, open, audit uint64, err error) {
	for _, c := range bus.Consumers(bus.Settings{}) {
		consumer, err := s.JetStream.Consumer(ctx, c.Stream, c.Config.Durable)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("consumer %s of %s: %w", c.Config.Durable, c.Stream, err)
		}
		info := consumer.CachedInfo()
		left := info.NumPending + uint64(info.NumAckPending)
		deliveries += info.Delivered.Consumer
		open += left
		if c.Config.Durable == saga.Auditor {
			audit += left
		}
	}
	return deliveries, open, audit, nil
}

// settle waits until nothing is left to do, so that what one cell left behind
// is not paid for by the next.
func (s streams) settle(ctx context.Context) (deliveries uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		deliveries, open, _, err := s.backlog(ctx)
		if err != nil || open == 0 {
			return deliveries, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%d messages are not acknowledged after %v: %w", open, patience, ctx.Err())
		case <-tick.C:
		}
	}
}

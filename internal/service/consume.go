package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// Message is one of a durable consumer's.
type Message struct {
	jetstream.Msg
	ackWait time.Duration
}

// Heartbeat keeps the message ours while it is worked on, so that no other replica
// gets it before ack wait after our death. It returns when ctx ends: let that be
// bounded, so that a hung effect does not hold the message for ever.
func (m Message) Heartbeat(ctx context.Context) {
	tick := time.NewTicker(m.ackWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = m.InProgress() // a lost heartbeat only means a redelivery
		}
	}
}

// outsiders are the streams on which others than services write, as they please.
var outsiders = []string{bus.StreamRequest, bus.StreamAsked, bus.StreamEmergency, bus.StreamAlert}

// Consume gives take each message of a durable consumer until ctx ends or stop is
// called; it returns once the consumer is bound. It is bound again if the server
// ends that by itself, which a server does that has lost the consumer for a moment,
// or on which it is made anew; and if nothing is heard although messages wait.
//
// A message without headers and content ends what was asked for: the server takes it,
// between accounts, for the end of an answer, and sends what follows nowhere. Whoever
// writes on one of the streams of outsiders may send such a message, so there one
// message is asked for at a time. On the others nothing of Pawl's is empty: where a
// stolen key makes one so, the consumer is bound again.
func Consume(ctx context.Context, d Dependencies, stream, durable string, take func(Message), options ...jetstream.PullConsumeOpt) (stop func(), err error) {
	c := &consumer{d: d, stream: stream, durable: durable, single: slices.Contains(outsiders, stream), ended: make(chan struct{}, 1)}
	bound, consuming, err := c.consume(ctx, take, options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				consuming.Stop()
				return
			case <-consuming.Closed():
				d.Log.Warn("NATS ended a consumer; it is bound again", "stream", stream, "consumer", durable)
			case <-c.ended:
				d.Log.Warn("an empty message ended what a consumer had asked for; it is bound again", "stream", stream, "consumer", durable)
				consuming.Drain()
			case <-tick.C:
				if !c.examine(ctx, bound) {
					continue
				}
				consuming.Stop()
			}
			for {
				nextBound, next, err := c.consume(ctx, take, options)
				if err == nil {
					bound, consuming = nextBound, next
					break
				}
				if ctx.Err() == nil {
					d.Log.Warn("consumer not bound; again soon", "error", err)
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Second):
				}
			}
		}
	})
	return func() { cancel(); ended.Wait() }, nil
}

func (c *consumer) consume(ctx context.Context, take func(Message), options []jetstream.PullConsumeOpt) (jetstream.Consumer, jetstream.ConsumeContext, error) {
	bound, err := bind(ctx, c.d.Bus, c.stream, c.durable)
	if err != nil {
		return nil, nil, err
	}
	ackWait := bound.CachedInfo().Config.AckWait
	hear := func(m jetstream.Msg) {
		if !c.single && len(m.Data()) == 0 && len(m.Headers()) == 0 {
			select {
			case c.ended <- struct{}{}:
			default:
			}
		}
		done := c.watch.begin(m)
		defer done()
		take(Message{m, ackWait})
	}
	if c.single {
		return bound, consumeSingly(c.d.Bus, c.stream, c.durable, hear), nil
	}
	consuming, err := bound.Consume(hear, options...)
	if err != nil {
		return nil, nil, fmt.Errorf("consumer %s of %s: %w", c.durable, c.stream, err)
	}
	return bound, consuming, nil
}

// bind opens a durable consumer that the provisioning step makes. It waits for
// a minute: the bus may be starting, too.
func bind(ctx context.Context, b *bus.Bus, stream, durable string) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		once, done := bus.Bound(ctx)
		var consumer jetstream.Consumer
		err := b.Permitted(once, func(ctx context.Context) (err error) {
			consumer, err = b.JetStream.Consumer(ctx, stream, durable)
			return err
		}, "$JS.API.CONSUMER.INFO."+stream+"."+durable)
		done()
		if err == nil {
			return consumer, nil
		}
		if errors.Is(err, bus.ErrNotPermitted) {
			return nil, fmt.Errorf("consumer %s of %s: %w: does the server know this version's permissions? (`pawl nats-config` writes them)", durable, stream, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("consumer %s of %s: %w (is NATS up and provisioned, and does this user own the consumer?)", durable, stream, err)
		case <-tick.C:
		}
	}
}

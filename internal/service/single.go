package service

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// singly asks for one message, and for the next once that is taken. The library's own
// Consume cannot: with PullMaxMessages(1) it misses, now and then, that it has to ask
// again, and hears nothing until it notices that heartbeats are missing.
type singly struct {
	ctx    context.Context
	cancel context.CancelFunc
	closed chan struct{}
}

// consumeSingly gives take each message until it is stopped, or the consumer is gone.
func consumeSingly(consumer jetstream.Consumer, take func(jetstream.Msg)) jetstream.ConsumeContext {
	s := &singly{closed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.run(consumer, take)
	return s
}

func (s *singly) run(consumer jetstream.Consumer, take func(jetstream.Msg)) {
	defer close(s.closed)
	for s.ctx.Err() == nil {
		waits, done := context.WithTimeout(s.ctx, 30*time.Second)
		m, err := consumer.Next(jetstream.FetchContext(waits))
		done()
		switch {
		case err == nil:
			take(m)
		case errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrConsumerNotFound):
			return
		case errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded): // there was none
		default: // the server is away: whoever watches the consumer tells of it
			select {
			case <-s.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// Stop ends the asking. A message that is on its way is delivered again.
func (s *singly) Stop() { s.cancel() }

// Drain is Stop: nothing is kept here.
func (s *singly) Drain() { s.cancel() }

// Closed is closed once nothing is taken any more.
func (s *singly) Closed() <-chan struct{} { return s.closed }

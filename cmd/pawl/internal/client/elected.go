package client

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// electing is how long a bus of several servers may be without a leader: an
// election takes seconds.
const electing = 20 * time.Second

// elected does what needs a leader, until there is one.
func elected(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, electing)
	defer cancel()
	for {
		err := do()
		if !leaderless(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// leaderless reports whether nobody has answered, or one who cannot decide.
func leaderless(err error) bool {
	var refused *jetstream.APIError
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) ||
		errors.As(err, &refused) && refused.Code == http.StatusServiceUnavailable
}

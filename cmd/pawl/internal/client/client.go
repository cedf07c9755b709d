// Package client is what the CLI does on the bus: it asks, and it reads the log
// and the notes, as the user that may see everything that is no secret.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// patience is how long an answer is waited for: the scheduler itself gives
// services that are starting 20 s.
const patience = 40 * time.Second

// Client is the operator's connection.
type Client struct{ *bus.Bus }

// Connect joins the bus of the configuration with the operator's seed.
func Connect(inv *inventory.Inventory, seed []byte) (*Client, error) {
	url, address := inv.NATS.URL, inv.NATS.URL
	if url == "" {
		url, address = "nats://"+inv.NATS.Listen, inv.NATS.Listen
	}
	b, err := bus.Connect(bus.ConnectOptions{URL: url, User: bus.Operator, Seed: seed})
	switch {
	case err == nil:
		return &Client{b}, nil
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("the NATS server on %s does not know %s: is it another installation's?", address, bus.SeedFile(inv, bus.Operator))
	case inv.NATS.URL != "":
		return nil, fmt.Errorf("no NATS server answers on %s (nats.url in %s): %w", address, inv.File, err)
	}
	return nil, fmt.Errorf("no Pawl answers on %s: start it with `pawl up`", address)
}

// Ask publishes a request and returns its answer, which names the request.
func (c *Client) Ask(ctx context.Context, credential string, request *pawlv1.Request) (*pawlv1.Answer, error) {
	id := "cli-" + strings.ToLower(rand.Text())
	answers, err := c.NATS.SubscribeSync(bus.AnswerSubject(id)) // before the request, so that no answer is missed
	if err != nil {
		return nil, fmt.Errorf("subscribe to the answer: %w", err)
	}
	defer func() { _ = answers.Unsubscribe() }() // the connection is about to close
	if err := c.Publish(ctx, bus.RequestSubject(credential), request, nats.Header{jetstream.MsgIDHeader: {id}}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer := &pawlv1.Answer{}
	m, err := answers.NextMsgWithContext(ctx)
	if err == nil {
		return answer, bus.Decode(m.Header, m.Data, answer)
	}
	// It may have come while the connection was down; answers are stored.
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if stream, failed := c.Stream(look, bus.StreamAnswer); failed == nil {
		if stored, failed := stream.GetLastMsgForSubject(look, bus.AnswerSubject(id)); failed == nil {
			return answer, bus.Decode(stored.Header, stored.Data, answer)
		}
	}
	return nil, fmt.Errorf("no answer to request %s (%w): is the scheduler running? The request is kept, and handled once it is", id, err)
}

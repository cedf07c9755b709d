// Package client is what the CLI does on the bus: it asks, and it reads the log
// and the notes, as the user that may see everything that is no secret.
package client

import (
	"cmp"
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

// urgently is how long one attempt to store an emergency is given. A server that has
// lost its store answers nothing; the same message to the one that replaces it is
// stored once, by its id.
const urgently = 700 * time.Millisecond

// Client is the operator's connection.
type Client struct {
	*bus.Bus
	// Stored, if it is set, is called when a request is stored, and its answer awaited.
	Stored func()
}

// Connect joins the bus of the configuration as the operator; o is what bus.For
// returns for it.
func Connect(inv *inventory.Inventory, o bus.ConnectOptions) (*Client, error) {
	address := cmp.Or(inv.NATS.URL, inv.NATS.Listen)
	b, err := bus.Connect(o)
	switch {
	case err == nil:
		return &Client{Bus: b}, nil
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fmt.Errorf("the NATS server on %s does not know %s: is it another installation's?", address, bus.SeedFile(inv, bus.Operator))
	case inv.NATS.URL != "":
		return nil, fmt.Errorf("no NATS server answers on %s (nats.url in %s): %w", address, inv.File, err)
	}
	return nil, fmt.Errorf("no Pawl answers on %s: start it with `pawl up`", address)
}

// Ask publishes a request and returns its answer, which names the request.
func (c *Client) Ask(ctx context.Context, credential string, request *pawlv1.Request) (*pawlv1.Answer, error) {
	return c.ask(ctx, "cli-"+strings.ToLower(rand.Text()), credential, request)
}

// AskOnce is Ask under an id of the caller's: asked again, it is the same
// request, for as long as answers are stored.
func (c *Client) AskOnce(ctx context.Context, id, credential string, request *pawlv1.Request) (*pawlv1.Answer, error) {
	if answer, err := c.Answered(ctx, id); answer != nil || err != nil {
		return answer, err
	}
	return c.ask(ctx, id, credential, request)
}

func (c *Client) ask(ctx context.Context, id, credential string, request *pawlv1.Request) (*pawlv1.Answer, error) {
	answers, err := c.NATS.SubscribeSync(bus.AnswerSubject(id)) // before the request, so that no answer is missed
	if err != nil {
		return nil, fmt.Errorf("subscribe to the answer: %w", err)
	}
	defer func() { _ = answers.Unsubscribe() }() // the connection is about to close
	if err := elected(ctx, func() error {        // under its id it is stored once, however often it is sent
		to, attempt := subject(credential, request), electing
		if to == bus.EmergencySubject(credential) {
			attempt = urgently
		}
		ctx, cancel := context.WithTimeout(ctx, attempt)
		defer cancel()
		return c.Publish(ctx, to, request, nats.Header{jetstream.MsgIDHeader: {id}})
	}); err != nil {
		return nil, err
	}
	if c.Stored != nil {
		c.Stored()
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := answers.NextMsgWithContext(ctx)
	if err == nil {
		answer := &pawlv1.Answer{}
		return answer, bus.Decode(m.Header, m.Data, answer)
	}
	// It may have come while the connection was down.
	look, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if answer, failed := c.Answered(look, id); answer != nil {
		return answer, failed
	}
	return nil, fmt.Errorf("no answer to request %s (%w): is the scheduler running? The request is kept, and handled once it is", id, err)
}

// Answered returns the stored answer to a request, nil where there is none.
func (c *Client) Answered(ctx context.Context, id string) (*pawlv1.Answer, error) {
	answer := &pawlv1.Answer{}
	stored, err := c.Last(ctx, bus.StreamAnswer, bus.AnswerSubject(id), answer)
	switch {
	case stored != nil:
		return answer, err
	case err != nil:
		return nil, fmt.Errorf("look for the answer: %w", err)
	}
	return nil, nil
}

// subject is where the request's action belongs.
func subject(credential string, request *pawlv1.Request) string {
	switch request.GetAction() {
	case pawlv1.Action_ACTION_CONTAIN, pawlv1.Action_ACTION_LOCK, pawlv1.Action_ACTION_UNLOCK:
		return bus.EmergencySubject(credential)
	}
	return bus.RequestSubject(credential)
}

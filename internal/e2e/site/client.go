package site

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// heartbeat is how often the log is read although nothing was heard: a message
// may be lost while the server is down.
const heartbeat = 500 * time.Millisecond

// Client asks for rotations and waits for them.
type Client struct{ *bus.Bus }

// Operator connects a client.
func (s *Site) Operator() (*Client, error) {
	b, err := s.Connect(bus.Operator)
	if err != nil {
		return nil, err
	}
	return &Client{b}, nil
}

// Ask publishes a request and returns its answer.
func (c *Client) Ask(ctx context.Context, credential string, action pawlv1.Action) (*pawlv1.Answer, error) {
	return c.ask(ctx, credential, &pawlv1.Request{Action: action, Reason: "test", RequestedBy: "e2e"})
}

// Contain publishes an emergency of several credentials and returns its answer.
func (c *Client) Contain(ctx context.Context, credentials ...string) (*pawlv1.Answer, error) {
	return c.ask(ctx, bus.Several, &pawlv1.Request{Action: pawlv1.Action_ACTION_CONTAIN, Reason: "test", RequestedBy: "e2e", Selection: &pawlv1.Selection{Credentials: credentials}})
}

// Cancel asks for the rotation to be cancelled.
func (c *Client) Cancel(ctx context.Context, credential, rotation string) (*pawlv1.Answer, error) {
	return c.ask(ctx, credential, &pawlv1.Request{Action: pawlv1.Action_ACTION_CANCEL, Cancels: rotation, Reason: "test", RequestedBy: "e2e"})
}

func (c *Client) ask(ctx context.Context, credential string, request *pawlv1.Request) (*pawlv1.Answer, error) {
	body, err := protojson.Marshal(request)
	if err != nil {
		return nil, err
	}
	id := "e2e-" + strings.ToLower(rand.Text())
	answers, err := c.NATS.SubscribeSync(bus.AnswerSubject(id))
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }()
	subject := bus.RequestSubject(credential)
	switch request.GetAction() {
	case pawlv1.Action_ACTION_CONTAIN, pawlv1.Action_ACTION_LOCK, pawlv1.Action_ACTION_UNLOCK:
		subject = bus.EmergencySubject(credential)
	}
	message := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{jetstream.MsgIDHeader: {id}}}
	unstored := errors.New("not published")
	for {
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		if unstored != nil { // again with the same id, until it is acknowledged
			_, unstored = c.JetStream.PublishMsg(once, message)
		}
		m, err := answers.NextMsgWithContext(once)
		cancel()
		if err != nil {
			m, err = c.answer(ctx, id) // it may have come while we were not connected
		}
		if err == nil {
			answer := &pawlv1.Answer{}
			return answer, bus.Decode(m.Header, m.Data, answer)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("no answer to the request for %s: %w (acknowledged: %v; last reading: %v)", credential, ctx.Err(), unstored == nil, errors.Join(unstored, err))
		}
	}
}

// answer reads the stored answer.
func (c *Client) answer(ctx context.Context, id string) (*nats.Msg, error) {
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	stream, err := c.Stream(ctx, bus.StreamAnswer)
	if err != nil {
		return nil, err
	}
	m, err := stream.GetLastMsgForSubject(ctx, bus.AnswerSubject(id))
	if err != nil {
		return nil, err
	}
	return &nats.Msg{Header: m.Header, Data: m.Data}, nil
}

// Await returns the rotation's log once it holds one of the events.
func (c *Client) Await(ctx context.Context, credential, rotation string, events ...saga.Event) (bus.Log, error) {
	heard, err := c.NATS.SubscribeSync(bus.LogSubject(credential, rotation, "*"))
	if err != nil {
		return bus.Log{}, err
	}
	defer func() { _ = heard.Unsubscribe() }()
	for {
		log, reading := c.ReadRotation(ctx, credential, rotation)
		if reading == nil {
			for _, e := range events {
				if log.Find(e) != nil {
					return log, nil
				}
			}
		}
		wait, cancel := context.WithTimeout(ctx, heartbeat)
		_, err := heard.NextMsgWithContext(wait)
		cancel()
		if ctx.Err() != nil {
			return log, fmt.Errorf("rotation %s of %s is at %v, waiting for %v: %w (last reading: %v)", rotation, credential, Events(log), events, ctx.Err(), reading)
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrTimeout) {
			return log, err
		}
	}
}

// Events lists a log's events.
func Events(log bus.Log) []saga.Event {
	events := make([]saga.Event, len(log.Records))
	for i, r := range log.Records {
		events[i] = r.Event
	}
	return events
}

// Do asks, and waits until the rotation has ended and its leftovers are erased.
func (c *Client) Do(ctx context.Context, credential string, action pawlv1.Action) (bus.Log, error) {
	answer, err := c.Ask(ctx, credential, action)
	if err != nil {
		return bus.Log{}, err
	}
	if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		return bus.Log{}, fmt.Errorf("%s of %s: %s: %s", action, credential, answer.GetOutcome(), answer.GetReason())
	}
	return c.Await(ctx, credential, answer.GetRotation(), saga.Completed, saga.RolledBack)
}

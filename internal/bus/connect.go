package bus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"
)

// ConnectOptions say how to reach the bus.
type ConnectOptions struct {
	URL  string
	User string // one of Users
	Seed []byte // its nkey seed
	// Wait: a server that is not there yet is no error; Connect returns at once
	// and goes on trying.
	Wait   bool
	Server nats.InProcessConnProvider // instead of URL, in one process with the server
}

// Bus is one user's connection.
type Bus struct {
	NATS      *nats.Conn
	JetStream jetstream.JetStream

	mu      sync.Mutex
	streams map[string]jetstream.Stream
	read    map[string]Log // by credential: the newest rotation as last read
}

// Connect joins the bus and stays joined: it reconnects for ever.
func Connect(o ConnectOptions) (*Bus, error) {
	keys, err := nkeys.FromSeed(o.Seed)
	if err != nil {
		return nil, fmt.Errorf("nkey seed of %s: %w", o.User, err)
	}
	public, err := keys.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("nkey seed of %s: %w", o.User, err)
	}
	options := []nats.Option{
		nats.Name("pawl " + o.User), nats.Nkey(public, keys.Sign), nats.CustomInboxPrefix(InboxPrefix(o.User)),
		// A server that is just starting may refuse a right key; by default the
		// client would give up for good when that happens twice.
		nats.IgnoreAuthErrorAbort(), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, time.Second),
	}
	if o.Server != nil {
		options = append(options, nats.InProcessServer(o.Server))
	}
	if o.Wait {
		options = append(options, nats.RetryOnFailedConnect(true))
	}
	nc, err := nats.Connect(o.URL, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS as %s: %w", o.User, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return &Bus{NATS: nc, JetStream: js, streams: map[string]jetstream.Stream{}, read: map[string]Log{}}, nil
}

// Bound limits one request to the bus. Where the server dies, its answer never
// comes, and the caller's own deadline may be far away.
func Bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, 5*time.Second)
}

// Connected waits until the connection is up.
func (b *Bus) Connected(ctx context.Context) error {
	up := b.NATS.StatusChanged(nats.CONNECTED)
	defer b.NATS.RemoveStatusListener(up)
	for !b.NATS.IsConnected() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-up:
		}
	}
	return nil
}

// Publish stores a message outside the saga log.
func (b *Bus) Publish(ctx context.Context, subject string, body proto.Message, header nats.Header, opts ...jetstream.PublishOpt) error {
	data, err := Encode(body)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: subject, Header: header, Data: data}
	setContentType(m)
	ctx, cancel := Bound(ctx)
	defer cancel()
	if _, err := b.JetStream.PublishMsg(ctx, m, opts...); err != nil {
		return fmt.Errorf("publish %s: %w", subject, err)
	}
	return nil
}

// Respond answers a request that is not stored.
func Respond(m *nats.Msg, body proto.Message) error {
	data, err := Encode(body)
	if err != nil {
		return err
	}
	answer := nats.NewMsg(m.Reply)
	answer.Data = data
	setContentType(answer)
	return m.RespondMsg(answer)
}

// Stream returns a handle, kept so that a read costs no STREAM.INFO.
func (b *Bus) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s, ok := b.streams[name]; ok {
		return s, nil
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	s, err := b.JetStream.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", name, err)
	}
	b.streams[name] = s
	return s, nil
}

package bus

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"google.golang.org/protobuf/proto"

	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
)

// ConnectOptions say how to reach the bus; For fills in the first four.
type ConnectOptions struct {
	URL  string
	User string // one of UsersOf the inventory
	Seed []byte // its nkey seed
	// TLSDir holds the user's certificate and its authority, see inventory.TLSDir.
	// They are read anew for each connection. Empty: no TLS.
	TLSDir string
	Log    *slog.Logger // of what goes wrong beside any call; default: slog.Default()
	// Conditions is where the bus tells of streams that refuse writes, and of
	// subscriptions that are not permitted. May be nil.
	Conditions *condition.Set
	// Wait: a server that is not there yet is no error; Connect returns at once
	// and goes on trying.
	Wait   bool
	Server nats.InProcessConnProvider // instead of URL, in one process with the server
}

// For returns how a user joins the bus of the inventory.
func For(inv *inventory.Inventory, user string) (ConnectOptions, error) {
	o := ConnectOptions{URL: inv.NATS.Address(), User: user}
	if inv.NATS.TLS() {
		o.TLSDir = inv.TLSDir()
	}
	var err error
	o.Seed, err = LoadSeed(SeedFile(inv, user))
	return o, err
}

// Bus is one user's connection.
type Bus struct {
	NATS      *nats.Conn
	JetStream jetstream.JetStream

	log        *slog.Logger
	conditions *condition.Set
	waiting    waiting
	removed    removed
	unwritable unwritable
	marks      marks
	mu         sync.Mutex
	streams    map[string]jetstream.Stream
	read       map[string]Log // by credential: the newest rotation as last read
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
	b := &Bus{log: cmp.Or(o.Log, slog.Default()), conditions: o.Conditions, streams: map[string]jetstream.Stream{}, read: map[string]Log{}}
	options := []nats.Option{
		nats.ErrorHandler(b.told), nats.PermissionErrOnSubscribe(true),
		nats.Name("pawl " + o.User), nats.Nkey(public, keys.Sign), nats.CustomInboxPrefix(InboxPrefix(o.User)),
		// A server that is just starting may refuse a right key; by default the
		// client would give up for good when that happens twice.
		nats.ReconnectHandler(func(*nats.Conn) { b.forget() }),
		nats.IgnoreAuthErrorAbort(), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, time.Second),
	}
	if o.Server != nil {
		options = append(options, nats.InProcessServer(o.Server))
	}
	if o.TLSDir != "" && o.Server == nil {
		secure, err := mutualTLS(o.TLSDir, o.User)
		if err != nil {
			return nil, err
		}
		options = append(options, secure...)
	}
	if o.Wait {
		options = append(options, nats.RetryOnFailedConnect(true))
	}
	if b.NATS, err = nats.Connect(o.URL, options...); err != nil {
		return nil, fmt.Errorf("connect to NATS as %s: %w", o.User, err)
	}
	if b.JetStream, err = jetstream.New(b.NATS); err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return b, nil
}

// mutualTLS shows the server the user's certificate, and believes the server
// that the authority of the bus vouches for, and no other.
func mutualTLS(dir, user string) ([]nats.Option, error) {
	authority, certificate, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, user+".pem"), filepath.Join(dir, user+".key")
	for _, file := range []string{authority, certificate, key} {
		if _, err := os.Stat(file); err != nil {
			return nil, fmt.Errorf("certificate of %s: %w (`pawl nats-config` makes it)", user, err)
		}
	}
	options := []nats.Option{nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13}), nats.RootCAs(authority), nats.ClientCert(certificate, key)}
	for _, option := range options[1:] {
		if err := option(&nats.Options{}); err != nil {
			return nil, fmt.Errorf("certificate of %s: %w", user, err)
		}
	}
	return options, nil
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
	if _, err := b.PublishMsg(ctx, m, opts...); err != nil {
		return fmt.Errorf("publish %s: %w", subject, err)
	}
	return nil
}

// Send publishes a message that no stream takes: whoever listens now gets it.
func (b *Bus) Send(subject string, body proto.Message, header nats.Header) error {
	data, err := Encode(body)
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: subject, Header: header, Data: data}
	setContentType(m)
	return b.NATS.PublishMsg(m)
}

// PublishAfter stores a message if, and only if, the newest one on the subjects
// of filter is still at that sequence (0: there is none); else it returns
// ErrConflict. As with Append, it may be stored already, by a call whose answer
// was lost.
func (b *Bus) PublishAfter(ctx context.Context, subject string, body proto.Message, filter string, newest uint64) (sequence uint64, err error) {
	data, err := Encode(body)
	if err != nil {
		return 0, err
	}
	m := &nats.Msg{Subject: subject, Data: data}
	setContentType(m)
	ctx, cancel := Bound(ctx)
	defer cancel()
	ack, err := b.PublishMsg(ctx, m, jetstream.WithExpectLastSequenceForSubject(newest, filter))
	if IsConflict(err) {
		return 0, ErrConflict
	}
	if err != nil {
		return 0, fmt.Errorf("publish %s: %w", subject, err)
	}
	return ack.Sequence, nil
}

// Respond answers a request that is not stored.
func Respond(m *nats.Msg, body proto.Message) error {
	data, err := Encode(body)
	if err != nil {
		return err
	}
	answer := &nats.Msg{Data: data}
	setContentType(answer)
	return m.RespondMsg(answer)
}

// RespondTo sends a message to whoever waits there.
func (b *Bus) RespondTo(inbox string, m *nats.Msg) error {
	return b.NATS.PublishMsg(&nats.Msg{Subject: inbox, Header: m.Header, Data: m.Data})
}

// forget drops what was read before a connection ended: the server may have come
// back with a restored store.
func (b *Bus) forget() {
	b.mu.Lock()
	clear(b.streams)
	clear(b.read)
	b.mu.Unlock()
	b.marks.mu.Lock() // not within: whoever reads the mark asks for the stream
	defer b.marks.mu.Unlock()
	b.marks.read = time.Time{}
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
	var s jetstream.Stream
	err := b.Permitted(ctx, func(ctx context.Context) (err error) {
		s, err = b.JetStream.Stream(ctx, name)
		return err
	}, "$JS.API.STREAM.INFO."+name)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", name, err)
	}
	b.streams[name] = s
	return s, nil
}

// Listen calls each subject's handler with what arrives there, until stop is called.
// Those who listen as one queue share the messages; an empty queue is none.
func (b *Bus) Listen(queue string, handlers map[string]nats.MsgHandler) (stop func(), err error) {
	var subscriptions []*nats.Subscription
	stop = func() {
		for _, s := range subscriptions {
			_ = s.Unsubscribe() // the connection is about to close
		}
	}
	for subject, hear := range handlers {
		s, err := b.NATS.QueueSubscribe(subject, queue, hear)
		if err != nil {
			stop()
			return nil, fmt.Errorf("subscribe %s: %w", subject, err)
		}
		subscriptions = append(subscriptions, s)
	}
	return stop, nil
}

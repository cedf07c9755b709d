package service

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// How one message is asked for. Between accounts the server does not see that whoever
// asked is gone: a message that is sent to him comes again after the acknowledgement
// wait, and by then no question of his may be left.
const (
	askedFor  = 5 * time.Second // the server keeps the question that long,
	beatEvery = 2 * time.Second // and says so often that it has it:
	unheard   = 2*beatEvery + time.Second
)

// singly asks for one message of a consumer, and for the next once that is taken. Not
// by the library: where it asks for one at a time (PullMaxMessages(1)) it now and then
// forgets to ask again; and it takes a message for the server's own word if its headers
// say so, which outsiders write.
type singly struct {
	bus             *bus.Bus
	stream, durable string
	ctx             context.Context
	cancel          context.CancelFunc
	reconnected     chan nats.Status // the server does not know any more what was asked before
	closed          chan struct{}
}

// consumeSingly gives take each message until it is stopped, or the server cannot be
// asked.
func consumeSingly(b *bus.Bus, stream, durable string, take func(jetstream.Msg)) jetstream.ConsumeContext {
	s := &singly{bus: b, stream: stream, durable: durable, reconnected: b.NATS.StatusChanged(nats.CONNECTED), closed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(s.closed)
		defer b.NATS.RemoveStatusListener(s.reconnected)
		for s.ctx.Err() == nil {
			m, err := s.next()
			if err != nil { // it is bound again once the server is there
				return
			}
			if m != nil {
				take(message{m})
			}
		}
	}()
	return s
}

// next returns nil where there is none, or nothing is heard of the question any more.
func (s *singly) next() (*nats.Msg, error) {
	question, err := json.Marshal(map[string]any{"batch": 1, "expires": askedFor, "idle_heartbeat": beatEvery})
	if err != nil {
		return nil, err
	}
	answers := make(chan *nats.Msg, 64)
	inbox := s.bus.NATS.NewInbox()
	sub, err := s.bus.NATS.ChanSubscribe(inbox, answers)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
	if err := s.bus.NATS.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+s.stream+"."+s.durable, inbox, question); err != nil {
		return nil, err
	}
	for until := time.Now().Add(askedFor + beatEvery); time.Now().Before(until); {
		select {
		case <-s.ctx.Done():
			return nil, nil
		case <-s.reconnected:
			return nil, nil
		case <-time.After(unheard):
			return nil, nil
		case m := <-answers:
			if strings.HasPrefix(m.Reply, "$JS.ACK.") {
				return m, nil
			}
			switch m.Header.Get("Status") {
			case "100": // a sign of life
			case "408": // there was none
				return nil, nil
			default: // why none comes
				s.rest()
				return nil, nil
			}
		}
	}
	return nil, nil
}

// rest keeps who is refused at once from asking again at once.
func (s *singly) rest() {
	select {
	case <-s.ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}

// Stop ends the asking. A message that is on its way is delivered again.
func (s *singly) Stop() { s.cancel() }

// Drain is Stop: nothing is kept here.
func (s *singly) Drain() { s.cancel() }

// Closed is closed once nothing is taken any more.
func (s *singly) Closed() <-chan struct{} { return s.closed }

// message is one of a consumer's, as the library has it.
type message struct{ *nats.Msg }

func (m message) Data() []byte         { return m.Msg.Data }
func (m message) Headers() nats.Header { return m.Msg.Header }
func (m message) Subject() string      { return m.Msg.Subject }
func (m message) Reply() string        { return m.Msg.Reply }
func (m message) Ack() error           { return m.Msg.Ack() }
func (m message) Nak() error           { return m.Msg.Nak() }
func (m message) InProgress() error    { return m.Msg.InProgress() }
func (m message) Term() error          { return m.Msg.Term() }

func (m message) DoubleAck(ctx context.Context) error { return m.Msg.AckSync(nats.Context(ctx)) }

func (m message) NakWithDelay(delay time.Duration) error { return m.Msg.NakWithDelay(delay) }

func (m message) TermWithReason(string) error { return m.Msg.Term() }

func (m message) Metadata() (*jetstream.MsgMetadata, error) {
	meta, err := m.Msg.Metadata()
	if err != nil {
		return nil, err
	}
	return &jetstream.MsgMetadata{Sequence: jetstream.SequencePair{Consumer: meta.Sequence.Consumer, Stream: meta.Sequence.Stream}, NumDelivered: meta.NumDelivered,
		NumPending: meta.NumPending, Timestamp: meta.Timestamp, Stream: meta.Stream, Consumer: meta.Consumer, Domain: meta.Domain}, nil
}

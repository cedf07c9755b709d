package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
)

// The snapshots of JetStream are asked for by hand: github.com/nats-io/jsm.go,
// whose code this is in short, waits without end for a server that stops sending,
// and brings an expression language and two dozen more packages into every binary.

// stall is how long a server may send or take nothing before that is an error.
const stall = 30 * time.Second

// restoreChunk is how much a server is given at a time. It stores each message
// before it takes more, with a sync each where every write is synced, and gives up
// when that takes more than 5 s.
const restoreChunk = 4 << 10

// Described is a stream as it was when its snapshot began.
type Described struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`
}

// snapshot writes a stream as the server packs it, without its consumers: where
// they were is of no use to a restored store, see restore.go.
func snapshot(ctx context.Context, b *bus.Bus, stream string, to io.Writer) (Described, error) {
	inbox := b.NATS.NewInbox()
	chunks, err := b.NATS.SubscribeSync(inbox)
	if err != nil {
		return Described{}, err
	}
	defer func() { _ = chunks.Unsubscribe() }() // what still comes has no reader
	if err := chunks.SetPendingLimits(-1, -1); err != nil {
		return Described{}, err
	}
	var is struct {
		Described
		Error *jetstream.APIError `json:"error"`
	}
	if err := ask(ctx, b, "$JS.API.STREAM.SNAPSHOT."+stream, map[string]any{"deliver_subject": inbox, "no_consumers": true, "jsck": true}, &is); err != nil {
		return Described{}, err
	}
	if is.Error != nil {
		return Described{}, is.Error
	}
	for {
		once, cancel := context.WithTimeout(ctx, stall)
		m, err := chunks.NextMsgWithContext(once)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return Described{}, fmt.Errorf("the server sent nothing for %v", stall)
		case err != nil:
			return Described{}, err
		case len(m.Data) == 0:
			return is.Described, ended(m)
		}
		if _, err := to.Write(m.Data); err != nil {
			return Described{}, err
		}
		if m.Reply == "" {
			continue // the last one
		}
		if err := m.Respond(nil); err != nil {
			return Described{}, err
		}
	}
}

// ended reads how a snapshot ended.
func ended(m *nats.Msg) error {
	if status := m.Header.Get("Status"); status != "" && status != "204" {
		return fmt.Errorf("the server ended it: %s %s", status, m.Header.Get("Description"))
	}
	return nil
}

// Restore has the server make the stream of what it once packed, with the Config
// that s has now.
func (s Stream) Restore(ctx context.Context, b *bus.Bus, content io.Reader) error {
	from := io.NopCloser(content)
	if s.Packed {
		from = repacked(content)
	}
	defer from.Close()
	var begin struct {
		Deliver string              `json:"deliver_subject"`
		Error   *jetstream.APIError `json:"error"`
	}
	if err := ask(ctx, b, "$JS.API.STREAM.RESTORE."+s.Name, s.Described, &begin); err != nil {
		return err
	}
	if begin.Error != nil {
		return begin.Error
	}
	chunk := make([]byte, restoreChunk)
	for last := false; !last; {
		n, err := io.ReadFull(from, chunk)
		last = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return err
		}
		if n == 0 {
			break
		}
		if err := deliver(ctx, b, begin.Deliver, chunk[:n], stall); err != nil {
			return err
		}
	}
	// The server now unpacks and reads all of it.
	return deliver(ctx, b, begin.Deliver, nil, 30*time.Minute)
}

func deliver(ctx context.Context, b *bus.Bus, subject string, chunk []byte, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	m, err := b.NATS.RequestWithContext(ctx, subject, chunk)
	if err != nil {
		return err
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	if text := strings.TrimSpace(string(m.Data)); !strings.HasPrefix(text, "{") {
		if text != "" && text != "+OK" {
			return fmt.Errorf("the server answered %.100q", text)
		}
		return nil
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	return nil
}

// ask puts one request to the API of JetStream.
func ask(ctx context.Context, b *bus.Bus, subject string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stall)
	defer cancel()
	return b.Permitted(ctx, func(ctx context.Context) error {
		m, err := b.NATS.RequestWithContext(ctx, subject, body)
		if err != nil {
			return err
		}
		return json.Unmarshal(m.Data, answer)
	}, subject)
}

// lastSeq reads the newest sequence of a state.
func lastSeq(state json.RawMessage) (messages, last uint64, err error) {
	var s struct {
		Messages uint64 `json:"messages"`
		Last     uint64 `json:"last_seq"`
	}
	err = json.Unmarshal(state, &s)
	return s.Messages, s.Last, err
}

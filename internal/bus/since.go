package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/saga"
)

// Happened is one event of a credential's log, of whichever rotation.
type Happened struct {
	saga.Entry
	Rotation string
}

// ReadSince lists what was stored in the log of a credential from then on, by
// the bus's clock, oldest first. Its cost is one request per event.
func (b *Bus) ReadSince(ctx context.Context, credential string, since time.Time) ([]Happened, error) {
	stream, err := b.Stream(ctx, StreamLog)
	if err != nil {
		return nil, err
	}
	seq, err := b.firstSince(ctx, credential, since)
	var all []Happened
	for err == nil && seq > 0 {
		once, cancel := Bound(ctx)
		var m *jetstream.RawStreamMsg
		m, err = stream.GetMsg(once, seq, jetstream.WithGetMsgSubject(logOf(credential)))
		cancel()
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return all, nil
		}
		if err == nil {
			var h Happened
			h.Seq, h.At = m.Sequence, m.Time
			_, h.Rotation, h.Event, err = ParseLogSubject(m.Subject)
			all, seq = append(all, h), m.Sequence+1
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the log of %s since %s: %w", credential, since.Format(time.RFC3339), err)
	}
	return all, nil
}

// firstSince returns the sequence of the first event from then on, 0 for none.
// The client library's GetMsg has no option for a time; the server's API has.
func (b *Bus) firstSince(ctx context.Context, credential string, since time.Time) (uint64, error) {
	request, err := json.Marshal(map[string]any{"start_time": since.UTC(), "next_by_subj": logOf(credential)})
	if err != nil {
		return 0, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	m, err := b.NATS.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+StreamLog, request)
	if err != nil {
		return 0, err
	}
	switch status := m.Header.Get("Status"); status {
	case "":
		return strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	case "404":
		return 0, nil
	default:
		return 0, fmt.Errorf("the server answers %s %s", status, m.Header.Get("Description"))
	}
}

// LastOf returns when a credential's log last had the event, and in which
// rotation; the zero Happened where it never had.
func (b *Bus) LastOf(ctx context.Context, credential string, e saga.Event) (Happened, error) {
	stream, err := b.Stream(ctx, StreamLog)
	if err != nil {
		return Happened{}, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	m, err := stream.GetLastMsgForSubject(ctx, LogSubject(credential, "*", e))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Happened{}, nil
	}
	if err != nil {
		return Happened{}, fmt.Errorf("read the log of %s: %w", credential, err)
	}
	h := Happened{Entry: saga.Entry{Seq: m.Sequence, At: m.Time}}
	_, h.Rotation, h.Event, err = ParseLogSubject(m.Subject)
	return h, err
}

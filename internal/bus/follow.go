package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// directGet begins the subject of a request for messages of a stream.
const directGet = "$JS.API.DIRECT.GET."

// scanned is how many messages Scan asks for at a time.
const scanned = 256

// Start of Scan and Follow: at a sequence of the stream; where that is 0, at a
// time; where that is zero, too, at the beginning.
type Start struct {
	Seq  uint64
	Time time.Time
}

// Scan calls take with each message that the stream holds on a subject from
// there on, in stored order, until take returns false. It returns where to go
// on. It leaves nothing on the server and needs no right but to read.
func (b *Bus) Scan(ctx context.Context, stream, subject string, from Start, take func(*jetstream.RawStreamMsg) bool) (next Start, err error) {
	for next = from; ; {
		var more bool
		err := b.Permitted(ctx, func(ctx context.Context) (err error) {
			more, err = b.batch(ctx, stream, subject, scanned, &next, take)
			return err
		}, directGet+stream)
		if err != nil {
			return next, fmt.Errorf("read %s: %w", stream, err)
		}
		if !more {
			return next, nil
		}
	}
}

// batch asks once, for so many. Each message names the one before it: where one is missing,
// which a connection that breaks can do, the rest is asked for again.
//
// The library for this, orbit.go, takes the first of the headers by which the
// server describes a message. That one is the publisher's, if he has written it:
// by an alert that says it is message 1, an outsider would hide all others.
func (b *Bus) batch(ctx context.Context, stream, subject string, most int, next *Start, take func(*jetstream.RawStreamMsg) bool) (more bool, err error) {
	ctx, cancel := Bound(ctx)
	defer cancel()
	answers, stop, err := b.askBatch(stream, subject, most, *next)
	if err != nil {
		return false, err
	}
	defer stop()
	for previous := uint64(0); ; {
		var m *nats.Msg
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case m = <-answers:
		}
		if complete := described(m, jetstream.LastSequenceHeader) == strconv.FormatUint(previous, 10); m.Header[jetstream.SequenceHeader] == nil {
			return ofBatch(m, complete)
		} else if !complete {
			return true, nil
		}
		stored, err := storedMessage(m)
		if err != nil {
			return false, err
		}
		previous, next.Seq = stored.Sequence, stored.Sequence+1
		if covers(subject, stored.Subject) && !take(stored) {
			return false, nil
		}
	}
}

// askBatch asks for the messages from next on. The channel takes all of an answer.
func (b *Bus) askBatch(stream, subject string, most int, next Start) (answers chan *nats.Msg, stop func(), err error) {
	ask := map[string]any{"batch": most, "next_by_subj": askedAs(subject)}
	if next.Seq == 0 && !next.Time.IsZero() {
		ask["start_time"] = next.Time.UTC()
	} else {
		ask["seq"] = max(1, next.Seq)
	}
	request, err := json.Marshal(ask)
	if err != nil {
		return nil, nil, err
	}
	answers = make(chan *nats.Msg, 2*most) // not NextMsg, which believes a status that a publisher wrote
	inbox := b.NATS.NewInbox()
	sub, err := b.NATS.ChanSubscribe(inbox, answers)
	if err != nil {
		return nil, nil, err
	}
	if err := b.NATS.PublishRequest(directGet+stream, inbox, request); err != nil {
		return nil, nil, errors.Join(err, sub.Unsubscribe())
	}
	return answers, func() { _ = sub.Unsubscribe() }, nil // the connection may be gone
}

// askedAs is what the server is asked for who wants to read a subject. With each batch
// it counts what is left of that, and looks through all subjects of the stream where
// it is a pattern, unless that is of everything: who reads along would read more
// slowly with each message that was ever stored. So a pattern which leaves out hardly
// anything is left out instead, and what it is not of is passed over here.
func askedAs(subject string) string {
	for _, token := range strings.Split(subject, ".")[min(2, strings.Count(subject, ".")):] {
		if token != "*" && token != ">" {
			return subject
		}
	}
	return ">"
}

// ofBatch reads an answer that is no message: there is none, or they end here.
func ofBatch(m *nats.Msg, complete bool) (more bool, err error) {
	switch status := m.Header.Get("Status"); status {
	case "404":
		return false, nil
	case "204":
		return !complete || described(m, pendingOfBatch) != "0", nil
	case "503":
		return false, nats.ErrNoResponders
	default:
		return false, fmt.Errorf("the server answers %s %s", status, m.Header.Get("Description"))
	}
}

// pendingOfBatch says in each answer how many messages come after it.
const pendingOfBatch = "Nats-Num-Pending"

func storedMessage(m *nats.Msg) (*jetstream.RawStreamMsg, error) {
	seq, wrong := strconv.ParseUint(described(m, jetstream.SequenceHeader), 10, 64)
	at, err := time.Parse(time.RFC3339Nano, described(m, jetstream.TimeStampHeaer))
	return &jetstream.RawStreamMsg{Subject: described(m, jetstream.SubjectHeader), Sequence: seq, Header: m.Header, Data: m.Data, Time: at}, errors.Join(wrong, err)
}

// described is what the server says of a message, in a header that it adds to the
// publisher's own.
func described(m *nats.Msg, header string) string {
	all := m.Header[header]
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

// Follow is Scan that never ends: it calls take with what is stored later, too,
// and idle each time it has come to the end. It is woken by what passes on the
// subject, and looks once a second in any case. Failures are told to failed, and
// the reading goes on; it ends with ctx.
func (b *Bus) Follow(ctx context.Context, stream, subject string, from Start, take func(*jetstream.RawStreamMsg), idle func(), failed func(error)) error {
	passed := make(chan struct{}, 1)
	sub, err := b.NATS.Subscribe(subject, func(*nats.Msg) {
		select {
		case passed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return fmt.Errorf("follow %s: %w", stream, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
	const soon, late = 5 * time.Millisecond, time.Second
	wait := late
	for {
		before := from
		from, err = b.Scan(ctx, stream, subject, from, func(m *jetstream.RawStreamMsg) bool { take(m); return ctx.Err() == nil })
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			failed(err)
			wait = late
		default:
			idle()
		}
		if from != before {
			wait = late
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			wait = min(3*wait, late)
		case <-passed:
			wait = soon // it passes before it is stored
		}
	}
}

// Tail is Follow into a channel, which is closed when ctx ends. What fails is logged,
// once until it succeeds again.
func (b *Bus) Tail(ctx context.Context, stream, subject string, from Start) <-chan *jetstream.RawStreamMsg {
	out := make(chan *jetstream.RawStreamMsg)
	take := func(m *jetstream.RawStreamMsg) {
		select {
		case out <- m:
		case <-ctx.Done():
		}
	}
	behind := false
	failed := func(err error) {
		if !behind {
			b.log.Warn("what is stored is not read; it is tried again", "error", err)
		}
		behind = true
	}
	go func() {
		defer close(out)
		if err := b.Follow(ctx, stream, subject, from, take, func() { behind = false }, failed); err != nil {
			failed(err)
		}
	}()
	return out
}

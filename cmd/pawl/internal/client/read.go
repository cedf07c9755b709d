package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Entry is one stored event, or one stored note; the other is nil.
type Entry struct {
	At         time.Time // when it was stored, by the bus's clock
	Credential string
	Rotation   string
	Service    string // whose event or note it is
	Event      *bus.Record
	Note       *pawlv1.Note
	seq        uint64 // in its own stream
}

// Position is the next message of each stream that tells of rotations.
type Position struct{ log, note uint64 }

// Rotation returns the log of one rotation, whichever credential's it is: one
// for each where several turned together, in the order of names. None where
// there is no such rotation.
func (c *Client) Rotation(ctx context.Context, id string) ([]bus.Log, error) {
	stream, err := c.Stream(ctx, bus.StreamLog)
	if err != nil {
		return nil, err
	}
	first, err := stream.GetLastMsgForSubject(ctx, bus.LogSubject("*", id, saga.Requested))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find rotation %s: %w", id, err)
	}
	credential, _, _, err := bus.ParseLogSubject(first.Subject)
	if err != nil {
		return nil, err
	}
	log, err := c.ReadRotation(ctx, credential, id)
	if err != nil || len(log.Records) == 0 {
		return nil, err
	}
	group := log.Records[0].Body.GetRequested().GetGroup()
	if len(group) == 0 {
		return []bus.Log{log}, nil
	}
	var all []bus.Log
	for _, name := range group {
		log, err := c.ReadRotation(ctx, name, id)
		if err != nil {
			return nil, err
		}
		all = append(all, log)
	}
	return all, nil
}

// Rotations returns every rotation of a credential, oldest first.
func (c *Client) Rotations(ctx context.Context, credential string) ([]bus.Log, error) {
	entries, err := c.stored(ctx, bus.StreamLog, bus.LogSubject(credential, "*", "*"), time.Time{})
	if err != nil {
		return nil, err
	}
	var logs []bus.Log
	for _, e := range entries {
		// A rotation's tail may lie behind the next one's beginning.
		i := slices.IndexFunc(logs, func(l bus.Log) bool { return l.Rotation == e.Rotation })
		if i < 0 {
			i, logs = len(logs), append(logs, bus.Log{Credential: credential, Rotation: e.Rotation})
		}
		logs[i].Records = append(logs[i].Records, *e.Event)
	}
	return logs, nil
}

// Notes returns the notes stored since then, oldest first.
func (c *Client) Notes(ctx context.Context, since time.Time) ([]Entry, error) {
	return c.stored(ctx, bus.StreamNote, "pawl.note.*", since)
}

// Since returns what was stored between then and a position, oldest first.
func (c *Client) Since(ctx context.Context, since time.Time, until Position) ([]Entry, error) {
	events, err := c.stored(ctx, bus.StreamLog, bus.LogSubject("*", "*", "*"), since)
	if err != nil {
		return nil, err
	}
	notes, err := c.Notes(ctx, since)
	all := slices.DeleteFunc(slices.Concat(events, notes), func(e Entry) bool {
		return e.Event != nil && e.seq >= until.log || e.Note != nil && e.seq >= until.note
	})
	slices.SortStableFunc(all, func(x, y Entry) int { return x.At.Compare(y.At) })
	return all, err
}

// stored reads what a stream holds now.
func (c *Client) stored(ctx context.Context, stream, filter string, since time.Time) ([]Entry, error) {
	config := jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}}
	if !since.IsZero() {
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	consumer, err := c.JetStream.OrderedConsumer(ctx, stream, config)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", stream, err)
	}
	pending := consumer.CachedInfo().NumPending
	if pending == 0 {
		return nil, nil
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", stream, err)
	}
	defer messages.Stop()
	var entries []Entry
	for pending > 0 {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", stream, err)
		}
		e, meta, err := decode(m)
		if meta == nil {
			return nil, fmt.Errorf("read %s: %w", stream, err)
		}
		if err == nil { // what cannot be decoded is another version's
			entries = append(entries, e)
		}
		pending = meta.NumPending
	}
	return entries, nil
}

// Now returns the position after everything that is stored.
func (c *Client) Now(ctx context.Context) (p Position, err error) {
	for name, next := range map[string]*uint64{bus.StreamLog: &p.log, bus.StreamNote: &p.note} {
		stream, err := c.Stream(ctx, name)
		if err != nil {
			return p, err
		}
		info, err := stream.Info(ctx)
		if err != nil {
			return p, fmt.Errorf("stream %s: %w", name, err)
		}
		*next = info.State.LastSeq + 1
	}
	return p, nil
}

// WholeLog moves the position in the log to its beginning.
func (p Position) WholeLog() Position { return Position{1, p.note} }

// Follow sends what is stored from a position on, until ctx ends: the events
// of the credential and the rotation ("*": of any) and every note. It survives
// the server's restart.
func (c *Client) Follow(ctx context.Context, credential, rotation string, from Position) (<-chan Entry, error) {
	out := make(chan Entry, 64)
	for _, of := range []struct {
		stream, filter string
		from           uint64
	}{{bus.StreamLog, bus.LogSubject(credential, rotation, "*"), from.log}, {bus.StreamNote, "pawl.note.*", from.note}} {
		consumer, err := c.JetStream.OrderedConsumer(ctx, of.stream, jetstream.OrderedConsumerConfig{
			FilterSubjects: []string{of.filter}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: of.from})
		if err != nil {
			return nil, fmt.Errorf("follow %s: %w", of.stream, err)
		}
		consuming, err := consumer.Consume(func(m jetstream.Msg) {
			e, _, err := decode(m)
			if err != nil {
				return // another version's
			}
			select {
			case out <- e:
			case <-ctx.Done():
			}
		})
		if err != nil {
			return nil, fmt.Errorf("follow %s: %w", of.stream, err)
		}
		context.AfterFunc(ctx, consuming.Stop)
	}
	return out, nil
}

func decode(m jetstream.Msg) (Entry, *jetstream.MsgMetadata, error) {
	meta, err := m.Metadata()
	if err != nil {
		return Entry{}, nil, err
	}
	e := Entry{At: meta.Timestamp, seq: meta.Sequence.Stream}
	if service, isNote := strings.CutPrefix(m.Subject(), "pawl.note."); isNote {
		e.Service, e.Note = service, &pawlv1.Note{}
		if err := bus.Decode(m.Headers(), m.Data(), e.Note); err != nil {
			return e, meta, err
		}
		e.Credential, e.Rotation = e.Note.GetCredential(), e.Note.GetRotation()
		return e, meta, nil
	}
	var event saga.Event
	if e.Credential, e.Rotation, event, err = bus.ParseLogSubject(m.Subject()); err != nil {
		return e, meta, err
	}
	e.Service = saga.OwnerOf(event)
	e.Event = &bus.Record{Entry: saga.Entry{Event: event, Seq: meta.Sequence.Stream, At: meta.Timestamp}, Header: m.Headers(), Body: &pawlv1.Event{}}
	return e, meta, bus.Decode(m.Headers(), m.Data(), e.Event.Body)
}

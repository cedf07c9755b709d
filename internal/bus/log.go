package bus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Record is one stored event with its body and headers.
type Record struct {
	saga.Entry
	Body   *pawlv1.Event
	Header nats.Header
}

// Log is the newest rotation of one credential, as stored.
type Log struct {
	Credential string
	Rotation   string
	Records    []Record // from requested on, in stored order
}

// LastSeq is the stream sequence of the newest event; 0 for an empty log.
func (l Log) LastSeq() uint64 {
	if len(l.Records) == 0 {
		return 0
	}
	return l.Records[len(l.Records)-1].Seq
}

// Find returns the stored event of that type, nil without one.
func (l Log) Find(e saga.Event) *Record {
	i := slices.IndexFunc(l.Records, func(r Record) bool { return r.Event == e })
	if i < 0 {
		return nil
	}
	return &l.Records[i]
}

// Empty reports whether the credential has no rotation.
func (l Log) Empty() bool { return len(l.Records) == 0 }

// Body returns what the event of that type says; nil without one, which says nothing.
func (l Log) Body(e saga.Event) *pawlv1.Event {
	if r := l.Find(e); r != nil {
		return r.Body
	}
	return nil
}

// first is the event with which the log begins; of an empty one, none.
func (l Log) first() (r Record) {
	if !l.Empty() {
		r = l.Records[0]
	}
	return r
}

// Requested is what began the rotation; nil if there is none.
func (l Log) Requested() *pawlv1.Requested { return l.first().Body.GetRequested() }

// Began is when that was stored.
func (l Log) Began() time.Time { return l.first().At }

// Staged is the credential that the rotation staged or adopted; nil before either.
func (l Log) Staged() *pawlv1.Staged {
	if staged := l.Body(saga.Staged); staged != nil {
		return staged.GetStaged()
	}
	return l.Body(saga.Adopted).GetStaged()
}

// Contained is what an emergency or a lock has refused; nil before.
func (l Log) Contained() *pawlv1.Contained { return l.Body(saga.Contained).GetContained() }

// Group are the credentials that rotate together, by this log: often it is alone.
func (l Log) Group() []string {
	if group := l.Requested().GetGroup(); len(group) > 0 {
		return group
	}
	return []string{l.Credential}
}

// Fence is the counter of the databases' fences that the log knows of: that of its
// rotation, or a greater one that was found there, by an adoption or by an emergency.
func (l Log) Fence() (counter uint64) {
	for _, r := range l.Records {
		counter = max(counter, r.Body.GetRequested().GetGeneration(), r.Body.GetStaged().GetFence())
	}
	return counter
}

// Fold folds the log.
func (l Log) Fold() (saga.State, error) {
	if len(l.Records) == 0 || l.Records[0].Body.GetRequested() == nil {
		return saga.State{}, fmt.Errorf("rotation %s of %s does not begin with %s", l.Rotation, l.Credential, saga.Requested)
	}
	entries := make([]saga.Entry, len(l.Records))
	for i, r := range l.Records {
		entries[i] = r.Entry
	}
	return saga.Fold(l.Records[0].Body.GetRequested().GetFlow(), entries)
}

// ReadNewest returns the log of the credential's newest rotation; an empty Log
// where it never had one. It may be stale on a follower of a clustered stream:
// compare LastSeq with the trigger's sequence.
func (b *Bus) ReadNewest(ctx context.Context, credential string) (Log, error) {
	last, err := b.Last(ctx, StreamLog, logOf(credential), nil)
	if err != nil {
		return Log{}, fmt.Errorf("read the log of %s: %w", credential, err)
	}
	if last == nil {
		return Log{Credential: credential}, nil
	}
	_, rotation, _, err := ParseLogSubject(last.Subject)
	if err != nil {
		return Log{}, err
	}
	log := b.remembered(credential, rotation, last.Sequence)
	if log.isNext(last) { // most often the newest is all that is new
		err = log.add(last)
	}
	if err == nil {
		err = b.readOn(ctx, &log, last.Sequence)
	}
	if err != nil {
		return log, err
	}
	if log.LastSeq() < last.Sequence {
		return log, fmt.Errorf("read the log of %s: event %d is there and cannot be found by its rotation", credential, last.Sequence)
	}
	b.remember(log)
	return log, nil
}

// NewestSeq returns the sequence of the newest event in the credential's log, 0
// where it is empty: whether anything has happened, for the price of one read.
func (b *Bus) NewestSeq(ctx context.Context, credential string) (uint64, error) {
	last, err := b.Last(ctx, StreamLog, logOf(credential), nil)
	if err != nil {
		return 0, fmt.Errorf("read the log of %s: %w", credential, err)
	}
	if last == nil {
		return 0, nil
	}
	return last.Sequence, nil
}

// remembered returns what this process has read of the rotation before: stored
// events never change, so only newer ones need to be read. A log that is longer
// than the stored one is of a store that was replaced, and is forgotten.
func (b *Bus) remembered(credential, rotation string, last uint64) Log {
	b.mu.Lock()
	defer b.mu.Unlock()
	if log, ok := b.read[credential]; ok && log.Rotation == rotation && log.LastSeq() <= last {
		log.Records = slices.Clone(log.Records)
		return log
	}
	return Log{Credential: credential, Rotation: rotation}
}

func (b *Bus) remember(log Log) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.read) >= rememberedLogs {
		clear(b.read)
	}
	log.Records = slices.Clone(log.Records)
	b.read[log.Credential] = log
}

// rememberedLogs is how many logs a process keeps, a few KB each.
const rememberedLogs = 1024

// ReadRotation returns the log of one rotation, empty where there is none. Its
// cost does not depend on how many rotations there were. (One batched
// request would be one round trip instead of one per event, but where the
// connection breaks in the middle it ends early without an error.)
func (b *Bus) ReadRotation(ctx context.Context, credential, rotation string) (Log, error) {
	log := Log{Credential: credential, Rotation: rotation}
	err := b.readOn(ctx, &log, math.MaxUint64)
	return log, err
}

// FindRotation returns the log of one rotation, whichever credential's it is: one
// for each where several turned together, in the order of names. None where
// there is no such rotation.
func (b *Bus) FindRotation(ctx context.Context, id string) ([]Log, error) {
	names, err := b.CredentialsOf(ctx, id)
	if err != nil {
		return nil, err
	}
	var all []Log
	for _, name := range names {
		log, err := b.ReadRotation(ctx, name, id)
		if err != nil {
			return nil, err
		}
		if len(log.Records) > 0 { // else a follower's answer lags behind
			all = append(all, log)
		}
	}
	return all, nil
}

// CredentialsOf returns the credentials that have a rotation of that id, in the
// order of names.
func (b *Bus) CredentialsOf(ctx context.Context, id string) ([]string, error) {
	subjects, err := b.Stored(ctx, StreamLog, LogSubject("*", id, saga.Requested))
	if err != nil {
		return nil, fmt.Errorf("find rotation %s: %w", id, err)
	}
	names := make([]string, len(subjects))
	for i, subject := range subjects {
		if names[i], _, _, err = ParseLogSubject(subject); err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// readOn reads what was stored after the log's last event, as far as until.
func (b *Bus) readOn(ctx context.Context, log *Log, until uint64) error {
	stream, err := b.Stream(ctx, StreamLog)
	if err != nil {
		return err
	}
	filter := jetstream.WithGetMsgSubject(LogSubject(log.Credential, log.Rotation, "*"))
	for log.LastSeq() < until {
		seq := log.LastSeq() + 1
		once, cancel := Bound(ctx)
		m, err := stream.GetMsg(once, seq, filter)
		cancel()
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read rotation %s of %s: %w", log.Rotation, log.Credential, err)
		}
		if err := log.add(m); err != nil {
			return err
		}
	}
	return nil
}

// isNext reports whether nothing lies between the log and a later event of its rotation:
// the event says which one it was appended after.
func (l *Log) isNext(m *jetstream.RawStreamMsg) bool {
	if !appended(m.Header, l.Credential, l.LastSeq(), m.Sequence) {
		return false
	}
	if len(l.Records) == 0 {
		return m.Subject == LogSubject(l.Credential, l.Rotation, saga.Requested)
	}
	return m.Header.Get(jetstream.ExpectedLastSubjSeqHeader) == strconv.FormatUint(l.LastSeq(), 10)
}

// add takes the next event of the rotation.
func (l *Log) add(m *jetstream.RawStreamMsg) error {
	record, err := decodeRecord(m.Subject, m.Header, m.Data, m.Sequence, m.Time)
	if err != nil {
		return err
	}
	if !appended(m.Header, l.Credential, l.LastSeq(), m.Sequence) {
		return fmt.Errorf("%s (sequence %d) was not appended by Pawl: it is no event, and what its rotation does is not known until a person has looked", m.Subject, m.Sequence)
	}
	l.Records = append(l.Records, record)
	return nil
}

// appended reports whether a stored event went through the compare-and-set, which
// no answer of the server does, wherever somebody has it sent, be it with a body
// that looks like an event: it was the next one after what Append had read, and
// that was not older than what is before it in its rotation.
func appended(header nats.Header, credential string, before, seq uint64) bool {
	expected, err := strconv.ParseUint(header.Get(jetstream.ExpectedLastSubjSeqHeader), 10, 64)
	return err == nil && header.Get(jetstream.ExpectedLastSubjSeqSubjHeader) == logOf(credential) && before <= expected && expected < seq
}

func decodeRecord(subject string, header nats.Header, body []byte, seq uint64, at time.Time) (Record, error) {
	_, _, event, err := ParseLogSubject(subject)
	if err != nil {
		return Record{}, err
	}
	r := Record{Entry: saga.Entry{Event: event, Seq: seq, At: at}, Header: header, Body: &pawlv1.Event{}}
	if err := Decode(header, body, r.Body); err != nil {
		return Record{}, fmt.Errorf("%s (sequence %d): %w", subject, seq, err)
	}
	return r, nil
}

// Append stores the event if, and only if, nothing was appended to the
// credential's log since lastSeq (0: it was empty). It returns ErrConflict when
// something was; the event may even be stored already, by an append whose
// answer was lost. Every publish under a credential's log must come through
// here: in a cluster the condition sees only publishes that carry the same
// filter.
func (b *Bus) Append(ctx context.Context, credential, rotation string, e saga.Event, body *pawlv1.Event, header nats.Header, lastSeq uint64) (seq uint64, err error) {
	message, err := eventMessage(credential, rotation, e, body, header)
	if err != nil {
		return 0, err
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	ack, err := b.PublishMsg(ctx, message, expects(credential, lastSeq))
	if err != nil {
		return 0, appendError(e, err)
	}
	if ack.Duplicate {
		return 0, ErrConflict
	}
	return ack.Sequence, nil
}

// eventMessage encodes an event. Its id names the credential, too: the server
// compares ids across the whole stream, and those that turn together share the
// rotation's id.
func eventMessage(credential, rotation string, e saga.Event, body *pawlv1.Event, header nats.Header) (*nats.Msg, error) {
	data, err := Encode(body)
	if err != nil {
		return nil, fmt.Errorf("event %s of %s: %w", e, credential, err)
	}
	m := &nats.Msg{Subject: LogSubject(credential, rotation, e), Header: header, Data: data}
	setContentType(m)
	m.Header.Set(jetstream.MsgIDHeader, credential+"/"+rotation+"/"+string(e))
	return m, nil
}

// expects is the compare-and-set: nothing was appended since lastSeq.
func expects(credential string, lastSeq uint64) jetstream.PublishOpt {
	return jetstream.WithExpectLastSequenceForSubject(lastSeq, logOf(credential))
}

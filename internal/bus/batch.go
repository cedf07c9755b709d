package bus

import (
	"context"
	"crypto/rand"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Headers of an atomic batch: the server keeps its messages aside until the one
// that commits, and then stores all or none.
const (
	batchID       = "Nats-Batch-Id"
	batchSequence = "Nats-Batch-Sequence"
	batchCommit   = "Nats-Batch-Commit"
)

// Part is one credential's event in AppendAll.
type Part struct {
	Credential string
	Body       *pawlv1.Event
	Header     nats.Header
	LastSeq    uint64 // of the credential's log, as in Append
}

// AppendAll stores one event in the logs of several credentials under the same
// rotation id: all, or none. It returns ErrConflict when any of the logs has
// moved on; as with Append, the events may even be stored already, by a call
// whose answer was lost: look at any one of the logs. Any other error leaves
// that open, too.
func (b *Bus) AppendAll(ctx context.Context, rotation string, e saga.Event, parts []Part) error {
	if len(parts) == 1 {
		p := parts[0]
		_, err := b.Append(ctx, p.Credential, rotation, e, p.Body, p.Header, p.LastSeq)
		return err
	}
	messages, subjects := make([]*nats.Msg, len(parts)), make([]string, len(parts))
	id := rand.Text() // a new one for each try: what is left of another must not be completed
	for i, p := range parts {
		m, err := eventMessage(p.Credential, rotation, e, p.Body, p.Header)
		if err != nil {
			return err
		}
		m.Header.Set(batchID, id)
		m.Header.Set(batchSequence, strconv.Itoa(i+1))
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(p.LastSeq, 10))
		m.Header.Set(jetstream.ExpectedLastSubjSeqSubjHeader, logOf(p.Credential))
		messages[i], subjects[i] = m, m.Subject
	}
	ctx, cancel := Bound(ctx)
	defer cancel()
	var ack *jetstream.PubAck
	err := b.publishing(subjects[0], func() error {
		return b.Permitted(ctx, func(ctx context.Context) (err error) {
			ack, err = b.commit(ctx, messages)
			return err
		}, subjects...)
	})
	if err != nil {
		return appendError(e, err)
	}
	if ack.Duplicate {
		return ErrConflict
	}
	return nil
}

// commit publishes a batch. What comes before the last is not answered: one that
// gets lost has the commit refused.
func (b *Bus) commit(ctx context.Context, messages []*nats.Msg) (*jetstream.PubAck, error) {
	last := len(messages) - 1
	for _, m := range messages[:last] {
		if err := b.NATS.PublishMsg(m); err != nil {
			return nil, err
		}
	}
	messages[last].Header.Set(batchCommit, "1")
	return b.JetStream.PublishMsg(ctx, messages[last])
}

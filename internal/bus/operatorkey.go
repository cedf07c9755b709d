package bus

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// asksKey is the subject by which the scheduler asks the server for the operator's
// public key: the server's configuration maps it to operatorKey of that key. So the
// answer is from the same file as the right to log in, and another one from the
// moment at which another key has that right.
const asksKey = "pawl.operator"

// operatorKey is where the scheduler, and nobody else, hears which key that is.
func operatorKey(public string) string { return asksKey + ".key." + public }

// OperatorKey returns the public key with which an operator logs in at present.
func (b *Bus) OperatorKey(ctx context.Context) (public string, err error) {
	ctx, cancel := Bound(ctx)
	defer cancel()
	answers, err := b.NATS.SubscribeSync(operatorKey("*"))
	if err != nil {
		return "", fmt.Errorf("the operator's key: %w", err)
	}
	defer func() { _ = answers.Unsubscribe() }() // the connection may be gone
	question := rand.Text()                      // comes back: nothing else that arrives there is the answer
	err = b.Permitted(ctx, func(ctx context.Context) error {
		if err := b.NATS.Publish(asksKey, []byte(question)); err != nil {
			return err
		}
		for {
			m, err := answers.NextMsgWithContext(ctx)
			if err != nil {
				return err
			}
			if string(m.Data) == question {
				public = strings.TrimPrefix(m.Subject, operatorKey(""))
				return nil
			}
		}
	}, asksKey)
	if err != nil {
		return "", fmt.Errorf("the operator's key: %w", err)
	}
	return public, nil
}

// LastOperatorKey returns what is stored on OperatorSubject: the key that a scheduler
// saw last, since when, and the sequence by which PublishAfter replaces it.
func (b *Bus) LastOperatorKey(ctx context.Context) (last *pawlv1.OperatorKey, since time.Time, seq uint64, err error) {
	last = &pawlv1.OperatorKey{}
	m, err := b.Last(ctx, StreamTimer, OperatorSubject, last)
	if err != nil {
		return nil, since, 0, fmt.Errorf("the operator's key, as last seen: %w", err)
	}
	if m == nil {
		return last, since, 0, nil
	}
	if !last.GetFirst() {
		since = m.Time
	}
	return last, since, m.Sequence, nil
}

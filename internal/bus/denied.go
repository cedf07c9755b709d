package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrNotPermitted means that the server refused this user the subject: it is
// another's, or the server's configuration is older than this version.
var ErrNotPermitted = errors.New("not permitted")

// waiting are the calls that wait for an answer, by subject. The server tells of
// a denial beside the answer, which never comes: without this, all that a call
// would learn is that its time is over.
type waiting struct {
	mu    sync.Mutex
	calls map[string]map[*context.CancelCauseFunc]struct{}
}

// add has cancel be called when one of the subjects is denied; call remove after.
func (w *waiting) add(cancel context.CancelCauseFunc, subjects []string) (remove func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.calls == nil {
		w.calls = map[string]map[*context.CancelCauseFunc]struct{}{}
	}
	for _, s := range subjects {
		if w.calls[s] == nil {
			w.calls[s] = map[*context.CancelCauseFunc]struct{}{}
		}
		w.calls[s][&cancel] = struct{}{}
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, s := range subjects {
			if delete(w.calls[s], &cancel); len(w.calls[s]) == 0 {
				delete(w.calls, s)
			}
		}
	}
}

// denied ends the calls that wait for an answer on the subject, and reports
// whether there was one.
func (w *waiting) denied(subject string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for cancel := range w.calls[subject] {
		(*cancel)(fmt.Errorf("%w to publish on %s", ErrNotPermitted, subject))
	}
	return len(w.calls[subject]) > 0
}

var deniedPublish = regexp.MustCompile(`(?i)permissions violation for publish to "([^"]+)"`)

// told takes what the server says beside any answer.
func (b *Bus) told(_ *nats.Conn, sub *nats.Subscription, err error) {
	if m := deniedPublish.FindStringSubmatch(err.Error()); m != nil && b.waiting.denied(m[1]) {
		return // whoever asked tells of it
	}
	if m := deniedSubscription.FindStringSubmatch(err.Error()); m != nil && !b.noteRemoved(m[1]) {
		return // it was told before
	}
	about := ""
	if sub != nil {
		about = sub.Subject
	}
	b.log.Warn("NATS", "error", err, "subscription", about)
}

// Permitted calls do, and ends it at once, with ErrNotPermitted, where the server
// refuses one of the subjects that it publishes on.
func (b *Bus) Permitted(ctx context.Context, do func(context.Context) error, subjects ...string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	remove := b.waiting.add(cancel, subjects)
	defer remove()
	err := do(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrNotPermitted) {
		return cause
	}
	return err
}

// PublishMsg stores a message as it is.
func (b *Bus) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (ack *jetstream.PubAck, err error) {
	err = b.publishing(m.Subject, func() error {
		return b.Permitted(ctx, func(ctx context.Context) (err error) {
			ack, err = b.JetStream.PublishMsg(ctx, m, opts...)
			return err
		}, m.Subject)
	})
	return ack, err
}

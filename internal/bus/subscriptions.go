package bus

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/condition"
)

// tryRefused is how often a refused subscription is tried again. A try disturbs
// nothing else that is under way on the connection.
const tryRefused = 2 * time.Second

// removed are the subscriptions that the server has removed, or did not accept, for
// lack of permission. The server tells of it once. After that the subscription
// looks valid and stays dead, also if the permission is given back by another
// reload of the server's configuration: only a subscription made anew is heard.
type removed struct {
	mu      sync.Mutex
	subject map[string]string // by label: a subject that was refused
	trying  bool
}

var deniedSubscription = regexp.MustCompile(`(?i)permissions violation for subscription to "([^"]+)"`)

// label is a refused subject as people and metrics see it: inboxes, of which each
// call has another, are one.
func label(subject string) string {
	if first, _, _ := strings.Cut(subject, "."); strings.HasPrefix(first, stockInbox) {
		return first + ".>"
	}
	return subject
}

// noteRemoved takes what the server says of a refused subscription, and reports whether
// the subject was not known as refused.
func (b *Bus) noteRemoved(subject string) (news bool) {
	b.removed.mu.Lock()
	defer b.removed.mu.Unlock()
	name := label(subject)
	if _, known := b.removed.subject[name]; known {
		return false
	}
	if b.removed.subject == nil {
		b.removed.subject = map[string]string{}
	}
	b.removed.subject[name] = subject
	b.conditions.Raise(condition.Condition{Name: "bus", Object: name, Failing: true,
		Text: "NATS does not permit this subscription, so nothing is heard on it. Does the server know this version's permissions? (`pawl nats-config` writes them)"})
	if !b.removed.trying {
		b.removed.trying = true
		go b.tryRefused()
	}
	return true
}

// tryRefused tries the refused subjects until one of them is permitted. Then it
// reconnects, which makes every subscription of the connection anew; what is still
// refused is told again by the server, and begins this again.
func (b *Bus) tryRefused() {
	closed := b.NATS.StatusChanged(nats.CLOSED)
	defer b.NATS.RemoveStatusListener(closed)
	tick := time.NewTicker(tryRefused)
	defer tick.Stop()
	for {
		b.removed.mu.Lock()
		subjects := slices.Sorted(maps.Values(b.removed.subject))
		b.removed.mu.Unlock()
		if slices.ContainsFunc(subjects, b.permitted) {
			break
		}
		select {
		case <-closed:
			return
		case <-tick.C:
		}
		if b.NATS.IsClosed() {
			return
		}
	}
	b.removed.mu.Lock()
	refused := slices.Collect(maps.Keys(b.removed.subject))
	clear(b.removed.subject)
	b.removed.trying = false
	b.removed.mu.Unlock()
	b.log.Info("NATS permits what it refused; reconnecting, so that every subscription is made anew")
	b.Reconnect()
	// Until the server has them all, this user is as deaf as before.
	for b.NATS.FlushTimeout(tryRefused) != nil && !b.NATS.IsClosed() {
		select {
		case <-closed:
		case <-tick.C:
		}
	}
	b.removed.mu.Lock()
	defer b.removed.mu.Unlock()
	for _, name := range refused {
		if _, again := b.removed.subject[name]; !again {
			b.conditions.Clear("bus", name)
		}
	}
}

// permitted reports whether the server accepts a subscription to the subject. The
// try is no member of a queue group, so that it takes no message from anybody.
func (b *Bus) permitted(subject string) bool {
	try, err := b.NATS.SubscribeSync(subject)
	if err != nil {
		return false
	}
	defer func() { _ = try.Unsubscribe() }() // the connection may be gone
	if err := b.NATS.FlushTimeout(tryRefused); err != nil {
		return false
	}
	_, err = try.NextMsg(time.Millisecond) // tells of a refusal, which came before the answer to the flush
	return !errors.Is(err, nats.ErrPermissionViolation) && !errors.Is(err, nats.ErrConnectionClosed)
}

// Unheard reports whether the server refuses a subscription at present.
func (b *Bus) Unheard() bool {
	b.removed.mu.Lock()
	defer b.removed.mu.Unlock()
	return len(b.removed.subject) > 0
}

// Reconnect makes a new connection, and on it every subscription anew.
func (b *Bus) Reconnect() {
	if err := b.NATS.ForceReconnect(); err != nil {
		b.log.Warn("NATS", "error", err) // closed, which is what it may be
	}
}

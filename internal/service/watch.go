package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/condition"
)

// How a consumer is watched.
const (
	watchEvery  = 4 * time.Second  // so that a fault is told within 15 s: the look after it may see what moved before it
	standsFor   = 2 * watchEvery   // messages wait that long, and nobody takes one: the consumer lags
	lateAfter   = 30 * time.Second // a message has waited that long when it is taken: a warning
	tooLate     = 5 * time.Minute  // … that long: failing
	rebindAt    = 2                // looks in a row at which nothing was heard: then the consumer is bound again,
	reconnectAt = 4                // the connection is made anew,
	endAt       = 6                // the service ends, to be restarted.
)

// remedy is what a look at a consumer leads to.
type remedy int

const (
	leave remedy = iota
	rebind
	reconnect
	end
)

// watch tells whether this process hears a durable consumer: a subscription can be
// dead at the server although the client library holds it for valid. It knows
// nothing of the work: a consumer of which all workers are busy is not deaf.
type watch struct {
	mu      sync.Mutex
	taking  int       // calls under way, which take messages one after the other
	since   time.Time // since when the newest of them
	taken   uint64    // calls begun
	age     time.Duration
	agedAt  time.Time
	unheard int // looks in a row

	deliveries, sequence, before uint64 // as of the last look
}

// begin is called with each message as it is taken.
func (w *watch) begin(m jetstream.Msg) (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.taking, w.taken, w.since = w.taking+1, w.taken+1, now
	if meta, err := m.Metadata(); err == nil && meta.NumDelivered == 1 {
		w.age, w.agedAt = now.Sub(meta.Timestamp), now
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.taking--
	}
}

// look compares what the server says of the consumer with the look before. The
// texts say what is wrong; empty: nothing is.
func (w *watch) look(info *jetstream.ConsumerInfo, now time.Time) (remedy remedy, deaf, lagging condition.Condition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	moved := info.Delivered.Consumer != w.deliveries || info.Delivered.Stream != w.sequence || w.taken != w.before
	w.deliveries, w.sequence, w.before = info.Delivered.Consumer, info.Delivered.Stream, w.taken
	waiting, asked := info.NumPending, info.NumWaiting > 0
	if moved || w.taking > 0 || info.Paused || waiting == 0 && asked {
		w.unheard = 0
	} else {
		w.unheard++
	}
	if w.unheard >= rebindAt {
		deaf = condition.Condition{Failing: true, Text: fmt.Sprintf("nothing is heard although %s for it. The consumer is bound again; if that does not help, the service ends to be restarted", fmt.Sprint(waiting, " messages wait"))}
		if waiting == 0 {
			deaf.Text = "NATS knows nobody who asks for messages. The consumer is bound again; if that does not help, the service ends to be restarted"
		}
	}
	busy := now.Sub(w.since)
	switch {
	case info.Paused:
		lagging = condition.Condition{Failing: waiting > 0, Text: "somebody has paused the consumer in NATS: resume it there"}
	case w.taking > 0 && busy >= standsFor && (waiting > 0 || info.NumAckPending > 1):
		lagging = condition.Condition{Failing: true, Text: fmt.Sprintf("nothing was taken for %v, since all workers are busy; messages wait", busy.Round(time.Second))}
	case waiting > 0 && w.age > lateAfter && now.Sub(w.agedAt) < standsFor:
		lagging = condition.Condition{Failing: w.age > tooLate, Text: fmt.Sprintf("%d messages wait; the last one taken had waited for %v", waiting, w.age.Round(time.Second))}
	}
	switch w.unheard {
	case rebindAt:
		remedy = rebind
	case reconnectAt:
		remedy = reconnect
	case endAt:
		remedy = end
	}
	return remedy, deaf, lagging
}

// consumer is one that is watched.
type consumer struct {
	d               Dependencies
	stream, durable string
	single          bool          // messages are asked for one at a time
	ended           chan struct{} // told when an empty message has ended what was asked for
	watch           watch
}

func (c *consumer) String() string { return c.stream + "/" + c.durable }

// tell raises or clears the consumer's conditions.
func (c *consumer) tell(deaf, lagging condition.Condition) {
	deaf.Name, deaf.Object, lagging.Name, lagging.Object = "deaf", c.String(), "lagging", c.String()
	c.d.update(deaf.Text != "", deaf)
	c.d.update(lagging.Text != "", lagging)
}

// examine looks at the consumer once, and reports whether it has to be bound again.
func (c *consumer) examine(ctx context.Context, bound jetstream.Consumer) (again bool) {
	ctx, cancel := context.WithTimeout(ctx, watchEvery-time.Second)
	defer cancel()
	info, err := bound.Info(ctx)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		c.tell(condition.Condition{Failing: true, Text: "NATS does not have the consumer any more: `pawl provision`, or `pawl up`, makes it"}, condition.Condition{})
		return true
	case err != nil:
		return false // the probe tells of a bus that does not answer
	}
	remedy, deaf, lagging := c.watch.look(info, time.Now())
	c.tell(deaf, lagging)
	if remedy == leave || c.d.Bus.Unheard() { // what is refused is tried again until it is permitted: nothing else helps
		return false
	}
	c.d.Log.Warn("consumer is deaf; it is bound again", "stream", c.stream, "consumer", c.durable, "waiting", info.NumPending)
	switch remedy {
	case reconnect:
		c.d.Bus.Reconnect()
	case end:
		c.d.end(fmt.Errorf("consumer %s is not heard although it was bound again on a new connection: %s", c, deaf.Text))
	}
	return true
}

package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// message is one that was acknowledged.
type message struct {
	subject string
	size    int
	at      time.Time // of the acknowledgement
	going   bool      // its removal was asked for: it may be there, or not
}

// stored is what was acknowledged, by stream and sequence.
type stored struct {
	mu    sync.Mutex
	all   map[string]map[uint64]*message
	taken map[uint64]bool // requests that were delivered and acknowledged, maybe before who stored them heard
	count int
	grew  chan struct{} // holds one once more were acknowledged
}

func newStored() *stored {
	return &stored{all: map[string]map[uint64]*message{}, taken: map[uint64]bool{}, grew: make(chan struct{}, 1)}
}

func (s *stored) add(stream string, sequence uint64, m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[stream] == nil {
		s.all[stream] = map[uint64]*message{}
	}
	s.all[stream][sequence] = m
	s.count++
	select {
	case s.grew <- struct{}{}:
	default:
	}
}

func (s *stored) total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

func (s *stored) takes(request uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[request] = true
}

// before is what had been acknowledged by then.
func (s *stored) before(t time.Time) *stored {
	earlier := newStored()
	earlier.taken = s.taken
	for stream, messages := range s.all {
		for sequence, m := range messages {
			if m.at.Before(t) {
				earlier.add(stream, sequence, m)
			}
		}
	}
	return earlier
}

// publisher stores messages on one stream, one after the other.
type publisher struct {
	user, stream string
	subject      func(n uint64) string
	size         func(*rand.Rand) int
	schedule     bool
}

// large messages fill blocks of 4 or 8 MB soon.
func large(r *rand.Rand) int { return 20_000 + r.IntN(40_000) }
func small(r *rand.Rand) int { return 100 + r.IntN(2000) }

// publishers is each kind of stream: append-only, write-once and purged by subject,
// a work queue, messages that replace each other.
var publishers = []publisher{
	{saga.Scheduler, bus.StreamLog, func(n uint64) string { return fmt.Sprintf("pawl.rotation.c%d.r%d.requested", n%7, n) }, small, false},
	{saga.Auditor, bus.StreamAudit, func(n uint64) string { return fmt.Sprintf("pawl.audit.record.%d", n) }, large, false},
	{saga.Scheduler, bus.StreamNote, func(n uint64) string { return "pawl.note.scheduler" }, large, false},
	{saga.DBRotator, bus.StreamSealed, func(n uint64) string { return fmt.Sprintf("pawl.sealed.c.r%d.verifier", n) }, large, false},
	{bus.Operator, bus.StreamRequest, func(n uint64) string { return fmt.Sprintf("pawl.request.c%d", n) }, func(r *rand.Rand) int { return 600_000 + r.IntN(300_000) }, false},
	{saga.Scheduler, bus.StreamTimer, func(n uint64) string { return fmt.Sprintf("pawl.timer.arm.c%d", n%9) }, small, true},
}

// load stores messages until the server dies, and returns when all has ended.
func (s *stored) load(dir, address string, r *rand.Rand) error {
	var all sync.WaitGroup
	connections := map[string]*bus.Bus{}
	for _, user := range []string{saga.Scheduler, saga.Auditor, saga.DBRotator, bus.Operator} {
		b, err := join(dir, address, user)
		if err != nil {
			return err
		}
		connections[user] = b
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// Nobody waits for a dead server: what it had acknowledged was read before its end.
	dead := connections[saga.Scheduler].NATS.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	go func() {
		<-dead
		cancel()
	}()
	for _, p := range publishers {
		random := rand.New(rand.NewPCG(r.Uint64(), 0))
		all.Go(func() { s.publish(ctx, connections[p.user], p, random) })
	}
	all.Go(func() { s.consume(ctx, connections[saga.Scheduler]) })
	all.Go(func() { s.erase(ctx, connections[saga.DBRotator]) })
	all.Wait()
	for _, b := range connections {
		b.NATS.Close()
	}
	return nil
}

// deaf reports whether the connection is lost: then nobody answers.
func deaf(b *bus.Bus) bool { return !b.NATS.IsConnected() }

func (s *stored) publish(ctx context.Context, b *bus.Bus, p publisher, r *rand.Rand) {
	for !deaf(b) && ctx.Err() == nil {
		m := nats.NewMsg(p.subject(r.Uint64() >> 1))
		m.Data = bytes.Repeat([]byte{byte(r.Uint32())}, p.size(r))
		if p.schedule {
			m.Header.Set("Nats-Schedule", "@at 2099-01-01T00:00:00Z")
			m.Header.Set("Nats-Schedule-Target", "pawl.timer.deadline.c")
		}
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		if p.stream == bus.StreamTimer {
			s.replaced(m.Subject)
		}
		ack, err := b.JetStream.PublishMsg(one, m, jetstream.WithRetryAttempts(0))
		cancel()
		if err == nil {
			s.add(p.stream, ack.Sequence, &message{subject: m.Subject, size: len(m.Data), at: time.Now()})
		}
	}
}

// replaced says that a newer message of the subject may have come.
func (s *stored) replaced(subject string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.all[bus.StreamTimer] {
		m.going = m.going || m.subject == subject
	}
}

// consume removes requests by acknowledging them, now and then one.
func (s *stored) consume(ctx context.Context, b *bus.Bus) {
	one, cancel := context.WithTimeout(ctx, 2*time.Second) // the server may be dead already
	defer cancel()
	requests, err := b.JetStream.Consumer(one, bus.StreamRequest, bus.ConsumerRequests)
	if err != nil {
		return
	}
	for !deaf(b) && ctx.Err() == nil {
		m, err := requests.Next(jetstream.FetchMaxWait(time.Second))
		if err != nil {
			continue
		}
		if meta, err := m.Metadata(); err == nil && meta.Sequence.Stream%5 != 0 {
			s.takes(meta.Sequence.Stream)
			_ = m.Ack() // it may be there, or not
		}
	}
}

// erase purges an envelope now and then.
func (s *stored) erase(ctx context.Context, b *bus.Bus) {
	for !deaf(b) && ctx.Err() == nil {
		s.mu.Lock()
		var subject string
		for sequence, m := range s.all[bus.StreamSealed] {
			if sequence%3 == 0 && !m.going {
				m.going, subject = true, m.subject
				break
			}
		}
		s.mu.Unlock()
		one, cancel := context.WithTimeout(ctx, time.Second)
		if subject != "" {
			body := fmt.Appendf(nil, `{"filter":%q}`, subject)
			_, _ = b.NATS.RequestWithContext(one, "$JS.API.STREAM.PURGE."+bus.StreamSealed, body) // it may be there, or not
		} else {
			<-one.Done()
		}
		cancel()
	}
}

// missing compares what the server holds with what was acknowledged.
func (s *stored) missing(ctx context.Context, b *bus.Bus) (lost []string, err error) {
	for _, stream := range slices.Sorted(maps.Keys(s.all)) {
		have, err := s.held(ctx, b, stream)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", stream, err)
		}
		for sequence, m := range s.all[stream] {
			going := m.going || stream == bus.StreamRequest && s.taken[sequence]
			if got, there := have[sequence]; !there && !going || there && got != *m.key() {
				lost = append(lost, fmt.Sprintf("%s %d: %q, want %q", stream, sequence, got, *m.key()))
			}
		}
	}
	slices.Sort(lost)
	return lost, nil
}

func (m *message) key() *string {
	k := m.subject + " " + strconv.Itoa(m.size)
	return &k
}

// held is what the server holds, by sequence.
func (s *stored) held(ctx context.Context, b *bus.Bus, name string) (map[uint64]string, error) {
	stream, err := b.JetStream.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	have := map[uint64]string{}
	if name == bus.StreamRequest { // a work queue has no second consumer
		for sequence := range s.all[name] {
			m, err := stream.GetMsg(ctx, sequence)
			if err == nil {
				have[sequence] = m.Subject + " " + strconv.Itoa(len(m.Data))
			} else if !errors.Is(err, jetstream.ErrMsgNotFound) {
				return nil, err
			}
		}
		return have, nil
	}
	last := stream.CachedInfo().State
	if last.Msgs == 0 {
		return have, nil
	}
	all, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return nil, err
	}
	messages, err := all.Messages()
	if err != nil {
		return nil, err
	}
	defer messages.Stop()
	for uint64(len(have)) < last.Msgs {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("after %d of %d messages: %w", len(have), last.Msgs, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, err
		}
		have[meta.Sequence.Stream] = m.Subject() + " " + m.Headers().Get("Nats-Msg-Size")
		if meta.NumPending == 0 {
			break
		}
	}
	return have, nil
}

package service

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// How many credentials one service works on at a time.
const (
	atOnce  = 32
	firstly = 1024 // for which an emergency has just begun: what they do to contain, they do together
	held    = 1024 // urgent messages that have no worker yet: one that is soon done must not wait behind another that is not
)

type loop struct {
	service     *Service
	deps        Dependencies
	log         *slog.Logger
	tracer      trace.Tracer
	metrics     *telemetry.Metrics
	instance    string
	credentials turns
	working     interruptible
	lastWait    lastText
}

// run binds the service's consumers and works until ctx ends; it then waits for
// what is under way. It returns an error only when the service cannot start, or
// when its Run does.
func (s *Service) run(ctx context.Context, d Dependencies, tracing trace.TracerProvider, ready func(*probe)) error {
	if err := s.complete(); err != nil {
		return err
	}
	l := &loop{service: s, deps: d, log: d.Log, tracer: tracing.Tracer("pawl.dev/internal/service"), metrics: d.Metrics,
		instance: process()}
	stopAnswering, err := l.answerChecks(ctx)
	if err != nil {
		return err
	}
	defer stopAnswering()
	stopHealth, err := answerHealth(d, s.Name)
	if err != nil {
		return err
	}
	defer stopHealth()

	var working sync.WaitGroup
	defer working.Wait()
	for _, urgent := range []bool{false, true} {
		p := newPools(urgent)
		for _, c := range bus.Consumers(bus.Settings{}) {
			if c.Owner != s.Name || c.Config.Durable != bus.ConsumerOf(s.Name, urgent) || len(s.Steps) == 0 {
				continue
			}
			stop, err := l.consume(ctx, c, urgent, p, &working)
			if err != nil {
				return err
			}
			defer stop()
		}
	}
	p := newProbe(d, s.Name)
	ready(p) // notes the start: a sign of life before would be taken for that of a process before this one
	probing, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	working.Go(func() {
		if err := p.run(probing); err != nil {
			d.end(err)
		}
	})
	if s.Run != nil {
		return s.Run(ctx)
	}
	<-ctx.Done()
	return nil
}

// complete proves that the service has a handler for each of its rows.
func (s *Service) complete() error {
	var have []string
	for name := range s.Steps {
		have = append(have, name)
	}
	slices.Sort(have)
	if want := saga.Steps(s.Name); !slices.Equal(have, want) {
		return fmt.Errorf("%s handles the steps %v; by the saga table it owns %v", s.Name, have, want)
	}
	return nil
}

// pools are the workers for the messages of one urgency.
type pools struct {
	workers chan struct{}
	first   chan struct{} // for what begins an emergency
	held    chan struct{}
}

func newPools(urgent bool) pools {
	p := pools{workers: make(chan struct{}, atOnce), held: make(chan struct{}, 1)}
	if urgent {
		p.first, p.held = make(chan struct{}, firstly), make(chan struct{}, held)
	}
	return p
}

// of are the workers for a message.
func (p pools) of(m Message) chan struct{} {
	if p.first != nil && strings.HasSuffix(m.Subject(), "."+string(saga.Requested)) {
		return p.first
	}
	return p.workers
}

func (l *loop) consume(ctx context.Context, c bus.Consumer, urgent bool, p pools, working *sync.WaitGroup) (stop func(), err error) {
	return Consume(ctx, l.deps, c.Stream, c.Config.Durable, func(m Message) {
		if bus.Urgent(m.Headers()) != urgent {
			_ = m.Ack() // the other consumer's; one that gets lost comes again
			return
		}
		t := trigger{credentialIn(m.Subject()), c.Stream + "/" + c.Config.Durable, position(m, c.Stream, urgent)}
		l.working.interrupt(t.credential, t.seq)
		working.Add(1)
		p.held <- struct{}{}
		go func() {
			defer working.Done()
			workers := p.of(m)
			taken := hold(ctx, m, workers)
			<-p.held
			if taken {
				l.inTurn(ctx, m, t, workers)
			}
		}()
	}, jetstream.PullMaxMessages(2*atOnce), jetstream.PullExpiry(30*time.Second))
}

// hold keeps the message until a worker is free, and takes that; false if ctx ends.
func hold(ctx context.Context, m Message, workers chan struct{}) bool {
	select {
	case workers <- struct{}{}:
		return true
	default:
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go m.Heartbeat(waiting)
	select {
	case workers <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// position is up to which event of the log a message makes work moot: an event of
// the log does so for what began before it, such as the step of a rotation that was
// cancelled meanwhile; what is urgent does so for all.
func position(m Message, stream string, urgent bool) (seq uint64) {
	if urgent {
		return math.MaxUint64
	}
	if meta, err := m.Metadata(); err == nil && stream == bus.StreamLog {
		return meta.Sequence.Stream
	}
	return 0
}

// credentialIn returns the credential of a log subject
// (pawl.rotation.CREDENTIAL.…) or a wake-up (pawl.timer.wake.SERVICE.CREDENTIAL).
func credentialIn(subject string) string {
	parts := strings.Split(subject, ".")
	if parts[1] == "timer" {
		return parts[len(parts)-1]
	}
	return parts[2]
}

// answerChecks answers preflight and doctor's questions; replicas share them.
func (l *loop) answerChecks(ctx context.Context) (stop func(), err error) {
	answers := map[string]nats.MsgHandler{}
	for subject, check := range map[string]Checker{bus.CheckSubject(l.service.Name, "*"): l.service.Check, bus.ExamineSubject(l.service.Name, "*"): l.service.Examine} {
		if check != nil {
			answers[subject] = func(m *nats.Msg) { go l.answerCheck(ctx, m, check) }
		}
	}
	return l.deps.Bus.Listen(l.service.Name, answers)
}

func (l *loop) answerCheck(ctx context.Context, m *nats.Msg, check Checker) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	findings := &pawlv1.Findings{}
	name := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	c, ok := l.deps.Inventory.Credentials[name]
	if ok {
		findings.Checks = check(ctx, c)
	} else {
		findings.Checks = []*pawlv1.Check{{Target: name, Finding: "not in this service's pawl.yaml", Refused: true}}
	}
	var needed []*sealed.Credential
	for _, rotation := range strings.Fields(string(m.Data)) {
		if l.deps.Sealed == nil || !bus.ValidToken(rotation) {
			continue
		}
		envelope, err := l.deps.Sealed.Open(ctx, name, rotation)
		if err != nil {
			ok = false // which of them is left cannot be told
			findings.Checks = append(findings.Checks, &pawlv1.Check{Target: "sealed credential", Refused: true,
				Finding: fmt.Sprintf("%v: put the right key back, or run `pawl adopt %s`", err, name)})
			continue
		}
		needed = append(needed, envelope)
	}
	if ok && len(needed) > 0 && l.service.CheckSealed != nil {
		findings.Checks = append(findings.Checks, l.service.CheckSealed(ctx, c, needed)...)
	}
	for _, c := range findings.Checks {
		c.Service = l.service.Name
	}
	if err := bus.Respond(m, findings); err != nil {
		l.log.Warn("preflight answer not sent", "credential", name, "error", err)
	}
}

// note publishes beside the log. A note that cannot be stored must not stop a
// rotation; it is logged instead.
func note(b *bus.Bus, service string, log *slog.Logger) func(context.Context, *pawlv1.Note) {
	return func(ctx context.Context, n *pawlv1.Note) {
		n.At = timestamppb.Now()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := b.Publish(ctx, bus.NoteSubject(service), n, telemetry.Inject(ctx)); err != nil {
			log.Warn("note not stored", "kind", n.GetKind(), "credential", n.GetCredential(), "text", n.GetText(), "error", err)
		}
	}
}

// lastText remembers what was last said about a key, so that it is said once.
type lastText struct {
	mu   sync.Mutex
	said map[string]string
}

func (l *lastText) same(key, text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said == nil || len(l.said) > 10_000 {
		l.said = map[string]string{}
	}
	if l.said[key] == text {
		return true
	}
	l.said[key] = text
	return false
}

// interruptible are the steps of flows that are not urgent, while they are done:
// what is urgent of the same credential does not wait for them, nor does what
// follows once they are no longer due.
type interruptible struct {
	mu    sync.Mutex
	steps map[string]step // by credential, of which one is done at a time
}

type step struct {
	seq    uint64 // the log's newest event when it began
	cancel context.CancelFunc
}

// begin returns a context that interrupt ends; end it in any case.
func (i *interruptible) begin(ctx context.Context, credential string, seq uint64) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.steps == nil {
		i.steps = map[string]step{}
	}
	i.steps[credential] = step{seq, cancel}
	return ctx, func() {
		cancel()
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.steps, credential)
	}
}

// interrupt ends what began before the event of that sequence as a crash would, and
// may as safely.
func (i *interruptible) interrupt(credential string, seq uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if s, ok := i.steps[credential]; ok && s.seq < seq {
		s.cancel()
	}
}

package notary

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/mod/sumdb/note"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	"pawl.dev/internal/trail"
	pawlv1 "pawl.dev/proto/pawl/v1"
	recorder "pawl.dev/services/auditor/internal/trail"
)

// An auditor process of a test is told by these where it works.
const childURL, childKeys, childSeed = "PAWL_NOTARY_URL", "PAWL_NOTARY_KEYS", "PAWL_NOTARY_SEED"

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		var b *bus.Bus
		seed, err := bus.LoadSeed(os.Getenv(childSeed))
		if err == nil {
			b, err = bus.Connect(bus.ConnectOptions{URL: url, User: saga.Auditor, Seed: seed, Wait: true})
		}
		if err == nil {
			err = audit(context.Background(), b, os.Getenv(childKeys), os.Stderr)
		}
		fmt.Fprintln(os.Stderr, "auditor:", err)
		os.Exit(1)
	}
	bustest.Main(m)
}

// audit records and signs until ctx ends.
func audit(ctx context.Context, b *bus.Bus, keys string, log io.Writer) error {
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		return err
	}
	d := service.Dependencies{Inventory: &inventory.Inventory{KeysDir: keys}, Bus: b, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelError})), Metrics: metrics,
		Tracer: noop.NewTracerProvider().Tracer(""), Note: func(_ context.Context, n *pawlv1.Note) { fmt.Fprintln(log, n.GetKind(), n.GetText()) }}
	n, err := New(d)
	if err != nil {
		return err
	}
	n.quiet = 20 * time.Millisecond
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() { _ = recorder.New(d).Run(ctx) }) // it fails where the server is killed as it starts
	return n.Run(ctx)
}

// site is where auditors work.
type site struct {
	t        *testing.T
	server   *bustest.Server
	keysDir  string
	keys     note.Verifiers
	operator *bus.Bus
}

func newSite(t *testing.T, server *bustest.Server) *site {
	t.Helper()
	s := &site{t: t, server: server, keysDir: t.TempDir()}
	if _, err := trail.CreateKeys(s.keysDir); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.keys, err = trail.LoadKeys(trail.PublicFile(s.keysDir)); err != nil {
		t.Fatal(err)
	}
	s.operator = server.Connect(t, bus.Operator)
	return s
}

// hire has an auditor work until the test ends, or fire is called.
func (s *site) hire(log io.Writer) (fire func()) {
	s.t.Helper()
	ctx, stop := context.WithCancel(s.t.Context())
	ended := make(chan error, 1)
	b := s.server.Connect(s.t, saga.Auditor)
	go func() { ended <- audit(ctx, b, s.keysDir, log) }()
	fire = sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(fire)
	return fire
}

// notes stores so many.
func (s *site) notes(b *bus.Bus, n int) {
	s.t.Helper()
	for range n {
		if err := b.Publish(s.t.Context(), bus.NoteSubject(saga.Scheduler), &pawlv1.Note{Kind: "test", Text: rand.Text()}, nil); err != nil {
			s.t.Fatal(err)
		}
	}
}

// signed waits until a checkpoint covers so many records.
func (s *site) signed(records int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	for m := range s.operator.Tail(ctx, bus.StreamAudit, trail.CheckpointSubject("*"), bus.Start{}) {
		size := int64(0)
		if _, err := fmt.Sscanf(m.Subject, trail.CheckpointSubject("%d"), &size); err != nil {
			s.t.Fatal(err)
		}
		if size >= records {
			return
		}
	}
	s.t.Fatalf("no checkpoint of %d records", records)
}

// whole asserts that the trail verifies, has so many records, and lacks none.
func (s *site) whole(records int64) trail.Result {
	s.t.Helper()
	result, err := trail.VerifyLive(s.t.Context(), s.operator, s.keys)
	if err != nil || result.Records != records || result.Unsigned != 0 || result.Unrecorded != 0 {
		s.t.Errorf("want %d records, all signed: %+v, %v", records, result, err)
	}
	return result
}

func TestTwoAuditorsGrowOneTree(t *testing.T) {
	s := newSite(t, bustest.Start(t))
	s.hire(t.Output())
	s.hire(t.Output())
	scheduler := s.server.Connect(t, saga.Scheduler)
	for i := range int64(20) {
		s.notes(scheduler, 25)
		s.signed(i * 25)
	}
	s.signed(500)
	s.whole(500)
}

func TestAuditorThatStartsAgainGoesOnFromTheCheckpoint(t *testing.T) {
	s := newSite(t, bustest.Start(t))
	scheduler := s.server.Connect(t, saga.Scheduler)
	for i := range int64(5) {
		s.notes(scheduler, 7)
		fire := s.hire(t.Output())
		s.signed((i + 1) * 7)
		fire()
	}
	if result := s.whole(35); result.Checkpoints < 5 {
		t.Errorf("%d checkpoints", result.Checkpoints)
	}
}

// TestBacklogIsSignedInParts has more records than one checkpoint can hold: of
// an installation whose trail was not signed before.
func TestBacklogIsSignedInParts(t *testing.T) {
	s := newSite(t, bustest.Start(t))
	auditor := s.server.Connect(t, saga.Auditor)
	const records = 2*trail.MaxLeaves + 10
	for i := range uint64(records) {
		r := &pawlv1.AuditRecord{Stream: bus.StreamNote, Sequence: i + 1}
		if _, err := auditor.JetStream.PublishAsync(trail.Subject(r), encode(t, r)); err != nil {
			t.Fatal(err)
		}
	}
	<-auditor.JetStream.PublishAsyncComplete()
	s.hire(t.Output())
	s.signed(records)
	result, err := trail.Verify(trail.Live(t.Context(), s.operator, s.keys), s.keys)
	if err != nil || result.Records != records || result.Checkpoints < 3 {
		t.Errorf("%+v, %v", result, err)
	}
}

func encode(t *testing.T, r *pawlv1.AuditRecord) []byte {
	t.Helper()
	data, err := bus.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestTrailThatIsNotTheOneThatWasSignedIsSignedNoFurther: whoever finds a
// checkpoint that he does not trust says so, and adds none.
func TestTrailThatIsNotTheOneThatWasSignedIsSignedNoFurther(t *testing.T) {
	s := newSite(t, bustest.Start(t))
	scheduler := s.server.Connect(t, saga.Scheduler)
	fire := s.hire(t.Output())
	s.notes(scheduler, 5)
	s.signed(5)
	fire()
	// An attacker who may write to the stream, but has another key.
	forger := newSite(t, s.server)
	said, writes := io.Pipe()
	s.notes(scheduler, 5)
	fire = forger.hire(writes)
	line := make([]byte, 4096)
	n, err := said.Read(line) // the log, then the note
	if err != nil || !strings.Contains(string(line[:n]), "no key that is trusted here") {
		t.Errorf("said %q, %v", line[:n], err)
	}
	go func() { _, _ = io.Copy(io.Discard, said) }()
	fire()
	s.hire(t.Output())
	s.signed(10)
	s.whole(10)
}

// TestAuditorsAndServerAreKilled kills two auditor processes and the server at
// random, again and again, while notes are stored.
func TestAuditorsAndServerAreKilled(t *testing.T) {
	dir := t.TempDir()
	server := bustest.StartProcess(t, dir)
	s := newSite(t, server)
	var stored int64
	const rounds = 12
	for round := range rounds {
		auditors := []*exec.Cmd{s.process(), s.process()}
		scheduler := s.server.Connect(t, saga.Scheduler)
		for range 4 {
			s.notes(scheduler, 5)
			stored += 5
			s.recorded(stored) // some, and perhaps none of them signed
			dead := auditors[0]
			kill(dead)
			auditors = append(auditors[1:], s.process())
		}
		if round%3 == 2 {
			s.notes(scheduler, 5)
			stored += 5
			s.server.Kill()
			s.server = bustest.StartProcess(t, dir)
			s.operator = s.server.Connect(t, bus.Operator)
		}
		for _, a := range auditors {
			kill(a)
		}
	}
	s.hire(t.Output())
	s.signed(stored)
	s.whole(stored)
}

// recorded waits until a record is there that was not when it was called, or all
// are: then somebody is in the midst of his work.
func (s *site) recorded(all int64) {
	s.t.Helper()
	stream, err := s.operator.Stream(s.t.Context(), bus.StreamAudit)
	if err != nil {
		s.t.Fatal(err)
	}
	subject := trail.Subject(&pawlv1.AuditRecord{Stream: bus.StreamNote, Sequence: uint64(all - 3)})
	for range 600 {
		if _, err = stream.GetLastMsgForSubject(s.t.Context(), subject); err == nil {
			return
		}
		select {
		case <-s.t.Context().Done():
		case <-time.After(20 * time.Millisecond): // the operator may look, and not listen
		}
	}
	s.t.Fatalf("%s: %v", subject, err)
}

// process is an auditor in a process of its own.
func (s *site) process() *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childURL+"="+s.server.URL, childKeys+"="+s.keysDir, childSeed+"="+s.server.SeedFile(saga.Auditor))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { kill(cmd) })
	return cmd
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // killed, as it says
}

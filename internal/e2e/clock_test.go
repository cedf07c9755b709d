package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/e2e/stepclock"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// steppedPawl is `pawl` with a clock that a test can step.
var steppedPawl = sync.OnceValues(func() (string, error) {
	if built := os.Getenv("PAWL_STEPPED_BINARY"); built != "" { // one that is there already
		return built, nil
	}
	dir, err := site.Binaries()
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "pawl-stepped")
	return out, stepclock.Build(context.Background(), out, "pawl.dev/cmd/pawl", "-tags", "faults")
})

// The waits of the test, in time that really passes, and how late a wait may end:
// the longest time until something is looked at again, on a machine with much to do.
const (
	clockDrain     = 12 * time.Second
	clockKeep      = 16 * time.Second
	clockHandshake = 8 * time.Second
	lateness       = 25 * time.Second
)

// stepped is `pawl up` as a process with a clock of its own. PostgreSQL keeps the
// machine's.
type stepped struct {
	t        *testing.T
	site     *site.Site
	client   *site.Client
	clock    *stepclock.Clock
	postgres *pgserver.Server
}

// TestNoWaitEndsEarlyOrStandsWhenTheClockIsStepped steps the clock of `pawl up`
// while every kind of wait is under way.
func TestNoWaitEndsEarlyOrStandsWhenTheClockIsStepped(t *testing.T) {
	t.Parallel()
	steps := []time.Duration{time.Minute, time.Hour, 24 * time.Hour, -time.Minute, -time.Hour, -24 * time.Hour}
	if !*full { // one forward, one back
		random := newRandom(t)
		steps = []time.Duration{steps[random.IntN(3)], steps[3+random.IntN(3)]}
	}
	for _, by := range steps {
		t.Run(by.String(), func(t *testing.T) {
			if !*full {
				t.Parallel()
			}
			s := startStepped(t)
			s.waitThrough(by)
			s.noted(by)
		})
	}
}

func clockCredentials() []site.Credential {
	alternating := func(name, drain, keep string) site.Credential {
		return site.Credential{Name: name, Strategy: saga.Alternating, Drain: drain, Keep: keep}
	}
	due := alternating("due", "0s", "0s")
	due.Every = "10m"
	return []site.Credential{alternating("drain", clockDrain.String(), "0s"), alternating("in-use", "2s", "0s"), alternating("keep", "0s", clockKeep.String()),
		alternating("late", "0s", "0s"), alternating("midway", "0s", "0s"), alternating("stolen", "0s", "0s"), alternating("held", "0s", "0s"), due}
}

func startStepped(t *testing.T) *stepped {
	t.Helper()
	s, binary := newStepped(t, func(server *pgserver.Server) (*site.Site, error) {
		return site.New(t.Context(), t.TempDir(), server, "", clockCredentials())
	})
	s.begin(binary)
	return s
}

// newStepped makes an installation whose `pawl up`, the binary, has a clock that the
// test steps.
func newStepped(t *testing.T, build func(*pgserver.Server) (*site.Site, error)) (s *stepped, binary string) {
	t.Helper()
	binary, err := steppedPawl()
	if err != nil {
		t.Fatal(err)
	}
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true, Settings: map[string]string{"authentication_timeout": "8s", "max_connections": "200"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s = &stepped{t: t, postgres: server}
	if s.site, err = build(server); err != nil {
		t.Fatal(err)
	}
	if s.clock, err = stepclock.New(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return s, binary
}

// begin starts `pawl up`, and joins its bus.
func (s *stepped) begin(binary string) {
	s.t.Helper()
	s.up(binary)
	var err error
	if s.client, err = s.site.Operator(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.client.NATS.Close)
}

// up runs `pawl up` until the test ends.
func (s *stepped) up(binary string) {
	t := s.t
	t.Helper()
	log := filepath.Join(s.site.Dir, "pawl.log")
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "up", "-v", "-c", s.site.File)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Env = append(os.Environ(), s.clock.Env(), "PAWL_DEADLINE="+stepDeadline.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("pawl up: %v", err)
		}
		_ = file.Close()
		if text, _ := os.ReadFile(log); t.Failed() {
			t.Logf("%s", warningsOf(text))
		}
	})
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		text, _ := os.ReadFile(log)
		if strings.Contains(string(text), "pawl is up") {
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("pawl up: %v\n%s", err, text)
		case <-tick.C:
		}
	}
}

func warningsOf(log []byte) (lines string) {
	for line := range strings.Lines(string(log)) {
		if !strings.Contains(line, `"level":"INFO"`) {
			lines += line
		}
	}
	return lines
}

// waiting is a wait that is under way.
type waiting struct {
	credential string
	rotation   string
	until      saga.Event    // it ends with
	from       time.Time     // when it began, by the clock of the test
	atLeast    time.Duration // how long it lasts
	also       func()        // once the clock is stepped
	fails      bool          // the rotation is to be rolled back
}

func (s *stepped) waitThrough(by time.Duration) {
	t := s.t
	t.Helper()
	begin := []func() *waiting{s.draining, s.inUse, s.kept, s.tooLate, s.midway, s.watched, func() *waiting { return s.heldUntil(by) }, func() *waiting { return s.dueBy(by) }}
	waits := make([]*waiting, len(begin))
	var all sync.WaitGroup
	for i, b := range begin {
		all.Go(func() { waits[i] = b() })
	}
	all.Wait()
	if t.Failed() {
		return
	}
	if err := s.clock.Step(by); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	for _, w := range waits {
		if w != nil {
			all.Go(func() { s.ends(w, at) })
		}
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for _, w := range waits { // and nothing stands
		if w != nil {
			all.Go(func() { s.do(w.credential, rotate) })
		}
	}
	all.Wait()
}

// ends checks that a wait lasts as long as it should, whatever the clock shows.
func (s *stepped) ends(w *waiting, stepped time.Time) {
	if w.also != nil {
		w.also()
	}
	latest := w.from.Add(w.atLeast)
	if latest.Before(stepped) {
		latest = stepped
	}
	ctx, cancel := context.WithDeadline(s.t.Context(), latest.Add(lateness))
	defer cancel()
	if w.rotation == "" {
		log, err := s.begun(ctx, w.credential)
		if err != nil {
			s.t.Errorf("%s: %v", w.credential, err)
			return
		}
		w.rotation = log.Rotation
	}
	log, err := s.client.Await(ctx, w.credential, w.rotation, w.until)
	if err != nil {
		s.t.Errorf("%s: the wait does not end: %v", w.credential, err)
		return
	}
	if lasted := time.Since(w.from); lasted < w.atLeast-time.Second {
		s.t.Errorf("%s: %s after %v, not after %v", w.credential, w.until, lasted, w.atLeast)
	}
	if failed := log.Find(saga.RolledBack) != nil; failed != w.fails {
		s.t.Errorf("%s: %v %s", w.credential, site.Events(log), failureOf(log))
	}
}

// begun waits for a rotation that nobody has asked for.
func (s *stepped) begun(ctx context.Context, credential string) (bus.Log, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		log, err := s.client.ReadNewest(ctx, credential)
		if err == nil && len(log.Records) > 0 && log.Records[0].Body.GetRequested().GetAction() == rotate {
			return log, nil
		}
		select {
		case <-ctx.Done():
			return log, fmt.Errorf("no rotation begins: %w", errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}

func (s *stepped) do(credential string, action pawlv1.Action) bus.Log {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	log, err := s.client.Do(ctx, credential, action)
	if err != nil {
		s.t.Errorf("%s: %v", credential, err)
	}
	return log
}

// reach asks for a rotation, and waits for an event of it.
func (s *stepped) reach(credential string, action pawlv1.Action, event saga.Event) *waiting {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	answer, err := s.client.Ask(ctx, credential, action)
	if err != nil || answer.GetOutcome() != accepted {
		s.t.Errorf("%s: %v %v", credential, answer, err)
		return nil
	}
	if _, err := s.client.Await(ctx, credential, answer.GetRotation(), event); err != nil {
		s.t.Error(err)
		return nil
	}
	return &waiting{credential: credential, rotation: answer.GetRotation(), from: time.Now()}
}

func (s *stepped) draining() *waiting {
	s.do("drain", adopt)
	w := s.reach("drain", rotate, saga.Verified)
	if w != nil {
		w.until, w.atLeast = saga.Retired, clockDrain
	}
	return w
}

// inUse waits for a session of the old login: the step is tried again and again.
func (s *stepped) inUse() *waiting {
	s.do("in-use", adopt)
	conn, err := s.login("in-use")
	if err != nil {
		s.t.Error(err)
		return nil
	}
	w := s.reach("in-use", rotate, saga.Verified)
	if w == nil {
		return nil
	}
	w.until = saga.Retired
	w.also = func() {
		w.from, w.atLeast = time.Now(), 2*time.Second
		_ = conn.Close(context.Background())
	}
	return w
}

func (s *stepped) login(credential string) (*pgx.Conn, error) {
	login, err := published.Read(s.site.Inventory.Credentials[credential].Publish...)
	if err != nil {
		return nil, err
	}
	return site.LoginAt(s.t.Context(), s.site.Nodes[0].Direct(), login, "old")
}

func (s *stepped) kept() *waiting {
	s.do("keep", adopt)
	w := s.reach("keep", rotate, saga.Completed)
	if w != nil {
		w.until, w.atLeast = saga.Erased, clockKeep
	}
	return w
}

// tooLate holds the sink until the step that publishes is given up.
func (s *stepped) tooLate() *waiting {
	s.do("late", adopt)
	release := hold(s.t, filepath.Dir(s.site.Env("late")))
	w := s.reach("late", rotate, saga.Staged)
	if w == nil {
		release()
		return nil
	}
	w.until, w.atLeast, w.fails = saga.RolledBack, stepDeadline*8/10, true
	w.also = func() { time.AfterFunc(stepDeadline-time.Since(w.from), release) }
	return w
}

// midway releases the sink right after the step of the clock: there is time enough.
func (s *stepped) midway() *waiting {
	s.do("midway", adopt)
	release := hold(s.t, filepath.Dir(s.site.Env("midway")))
	w := s.reach("midway", rotate, saga.Staged)
	if w == nil {
		release()
		return nil
	}
	w.until, w.also = saga.Completed, func() { time.AfterFunc(3*time.Second, release) }
	return w
}

// watched is an emergency: it is released once no handshake from before can succeed.
func (s *stepped) watched() *waiting {
	s.do("stolen", adopt)
	w := s.reach("stolen", pawlv1.Action_ACTION_CONTAIN, saga.Verified)
	if w != nil {
		w.until, w.atLeast = saga.Released, clockHandshake-4*time.Second
	}
	return w
}

// heldUntil asks for a rotation at a date, which is by the clock: a step forward
// makes it due.
func (s *stepped) heldUntil(by time.Duration) *waiting {
	s.do("held", adopt)
	wait := 40 * time.Second
	if by < 0 {
		return nil
	}
	err := s.client.Publish(s.t.Context(), bus.RequestSubject("held"), &pawlv1.Request{Action: rotate, Reason: "later", RequestedBy: "test", NotBefore: timestamppb.New(time.Now().Add(wait))}, nil)
	if err != nil {
		s.t.Error(err)
		return nil
	}
	return &waiting{credential: "held", until: saga.Completed, from: time.Now()}
}

// dueBy has a due date, which is by the clock, too. Its timer is armed before the
// clock is stepped: a date that is first worked out once it has passed is spread over
// the next minute, a tenth of the interval.
func (s *stepped) dueBy(by time.Duration) *waiting {
	s.do("due", adopt)
	if by < time.Hour {
		return nil
	}
	if err := s.armed("due"); err != nil {
		s.t.Error(err)
		return nil
	}
	return &waiting{credential: "due", until: saga.Completed, from: time.Now()}
}

// armed waits until a credential's due date has a timer.
func (s *stepped) armed(credential string) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	stream, err := s.client.Stream(ctx, bus.StreamTimer)
	if err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := stream.GetLastMsgForSubject(ctx, bus.ArmSubject("due", credential))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the due date of %s is not armed: %w", credential, errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}

// noted looks for the note of the step, which is one for all services.
func (s *stepped) noted(by time.Duration) {
	s.t.Helper()
	direction := "forward by "
	if by < 0 {
		direction = "back by "
	}
	if notes := s.notes("clock stepped"); len(notes) != 1 || !strings.Contains(notes[0], direction) {
		s.t.Errorf("the step %s was noted as %q", by, notes)
	}
}

// notes reads the texts of one kind in the stream that the audit trail is made of.
func (s *stepped) notes(kind string) (texts []string) {
	t := s.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := s.client.Stream(ctx, bus.StreamNote)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		n := &pawlv1.Note{}
		if err := bus.Decode(m.Header, m.Data, n); err != nil {
			t.Fatal(err)
		}
		if n.GetKind() == kind {
			texts = append(texts, n.GetText())
		}
	}
	return texts
}

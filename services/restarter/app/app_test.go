package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/restarter/internal/consumer"
)

func TestMain(m *testing.M) { consumer.Main(m) }

func start(t *testing.T) *service.Service {
	t.Helper()
	s, err := New(service.Dependencies{Inventory: &inventory.Inventory{File: filepath.Join(t.TempDir(), "pawl.yaml")}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// forward is a rotation whose restart is due since published, backward one
// whose rerestart is, since restored.
var (
	forward  = []saga.Event{saga.Requested, saga.Staged, saga.Published}
	backward = append(slices.Clone(forward), saga.RestartFailed, saga.Restored)
)

func rotation(t *testing.T, events []saga.Event, since time.Time, consumers ...inventory.Consumer) *service.Rotation {
	t.Helper()
	var log []saga.Entry
	for i, event := range events {
		log = append(log, saga.Entry{Event: event, Seq: uint64(i + 1), At: since})
	}
	state, err := saga.Fold(saga.Alternating, log)
	if err != nil {
		t.Fatal(err)
	}
	step := state.Next()
	if step.Owner != saga.Restarter {
		t.Fatalf("%s is due, which is not ours", step.Name)
	}
	return &service.Rotation{
		ID: "r1", Credential: &inventory.Credential{Name: "shop", Consumers: consumers}, State: state, Step: step,
		Deadline: time.Now().Add(step.Deadline), StillDue: func(context.Context) error { return nil },
	}
}

func do(ctx context.Context, s *service.Service, r *service.Rotation) (*pawlv1.Event, error) {
	return s.Steps[r.Step.Name](ctx, r)
}

// scripted is a consumer whose restart appends its name to the file and then
// runs the script.
func scripted(file, name, script string) inventory.Consumer {
	return inventory.Consumer{Name: name, Restart: inventory.Restart{Command: &inventory.Command{
		Argv: []string{"sh", "-c", "echo " + name + " >> " + file + "; " + script}, Timeout: 20 * time.Second}}}
}

func restarted(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(content)), " ")
}

func TestRollingStopsAtTheFirstFailure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "turns")
	r := rotation(t, forward, time.Now(), scripted(file, "z-first", ""), scripted(file, "b", "echo no such user; exit 3"), scripted(file, "a-last", ""))
	_, err := do(t.Context(), start(t), r)
	if !saga.IsPermanent(err) || !strings.Contains(err.Error(), "consumer b: restart: command sh: exit status 3") || !strings.Contains(err.Error(), "no such user") {
		t.Errorf("got %v", err)
	}
	if got := restarted(t, file); got != "z-first b" {
		t.Errorf("restarted %q", got)
	}
}

func TestSummaryTellsWhatShowsARestartAlsoAfterARetry(t *testing.T) {
	p := pooltest.Start(t, 1, "", nil)
	pooler := inventory.Consumer{Name: "pooler", Restart: inventory.Restart{Pgbouncer: &inventory.Reconnect{Console: p.Console, Timeout: 20 * time.Second}}}
	file := filepath.Join(t.TempDir(), "turns")
	s, r := start(t), rotation(t, backward, time.Now(), pooler, scripted(file, "late", "test -e "+file+".ok"))
	if _, err := do(t.Context(), s, r); err == nil {
		t.Fatal("the last consumer was to fail")
	}
	if err := os.WriteFile(file+".ok", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Stop() // it is not asked again
	event, err := do(t.Context(), s, r)
	if err != nil || event.GetSummary() != "2 consumers restarted; pooler: no login of it has moved" {
		t.Errorf("%q, %v", event.GetSummary(), err)
	}
}

func TestHealthNeverGreenFailsTheStepNamingTheConsumer(t *testing.T) {
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }))
	defer sick.Close()
	file := filepath.Join(t.TempDir(), "turns")
	api := scripted(file, "api", "")
	api.Health = inventory.Health{HTTP: sick.URL, Timeout: 200 * time.Millisecond}
	_, err := do(t.Context(), start(t), rotation(t, forward, time.Now(), api, scripted(file, "next", "")))
	if !saga.IsPermanent(err) || !strings.Contains(err.Error(), "consumer api: after its restart: not healthy within 200ms") || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v", err)
	}
	if got := restarted(t, file); got != "api" {
		t.Errorf("restarted %q", got)
	}
}

func TestConsumerThatWasUnhealthyBeforeIsOnlyAWarning(t *testing.T) {
	c := consumer.New(t).Start(t) // healthy once it has got HUP
	api := inventory.Consumer{Name: "api", Health: inventory.Health{HTTP: c.Health(t), Timeout: 20 * time.Second},
		Restart: inventory.Restart{Process: &inventory.Process{PIDFile: c.PIDFile, Signal: "HUP"}}}
	var recorder effect.Recorder
	event, err := do(effect.With(t.Context(), &recorder), start(t), rotation(t, forward, time.Now(), api))
	if err != nil || event.GetSummary() == "" {
		t.Fatalf("%v, %v", event, err)
	}
	if w := recorder.Warnings(); len(w) != 1 || !strings.Contains(w[0], "api was unhealthy before") || !strings.Contains(w[0], "503") {
		t.Errorf("warnings %q", w)
	}
	var names []string
	for _, op := range recorder.Operations() {
		names = append(names, op.Name+" "+op.Target)
	}
	if !slices.Equal(names, []string{"health before api", "restart api", "health api"}) {
		t.Errorf("effects %q", names)
	}
}

func TestBrokenConsumerDoesNotKeepTheOthersFromTheOldCredential(t *testing.T) {
	dir := t.TempDir()
	file, mended := filepath.Join(dir, "turns"), filepath.Join(dir, "mended")
	r := rotation(t, backward, time.Now(), scripted(file, "a", "test -e "+mended), scripted(file, "b", ""), scripted(file, "c", "test -e "+mended))
	r.Deadline = time.Now().Add(-time.Hour) // stalled long since: it still goes on
	s := start(t)
	_, err := do(t.Context(), s, r)
	if err == nil || saga.IsPermanent(err) || !strings.Contains(err.Error(), "consumer a") || !strings.Contains(err.Error(), "consumer c") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(mended, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := do(t.Context(), s, r); err != nil {
		t.Errorf("retry: %v", err)
	}
	if got := restarted(t, file); got != "a b c a c" {
		t.Errorf("restarted %q: the sound one has no need of a second time", got)
	}
}

func TestCompensationRestartsWhatForwardHadRestarted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "turns")
	s, a := start(t), scripted(file, "a", "")
	for _, events := range [][]saga.Event{forward, backward} {
		if _, err := do(t.Context(), s, rotation(t, events, time.Now(), a)); err != nil {
			t.Fatal(err)
		}
	}
	if got := restarted(t, file); got != "a a" {
		t.Fatalf("restarted %q: it still holds the credential that was taken back", got)
	}
}

func TestShutdownAndDeadlineAreNotTheConsumersFault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "turns")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	s := start(t)
	go func() {
		_, err := do(ctx, s, rotation(t, forward, time.Now(), scripted(file, "a", "sleep 60"), scripted(file, "b", "")))
		ended <- err
	}()
	consumer.Eventually(t, "the first turn", func() bool { return restarted(t, file) == "a" })
	cancel()
	if err := <-ended; err == nil || saga.IsPermanent(err) {
		t.Errorf("shutdown: %v", err)
	}
	late := rotation(t, forward, time.Now(), scripted(file, "late", ""))
	late.Deadline = time.Now().Add(-time.Second)
	if _, err := do(t.Context(), s, late); err == nil || saga.IsPermanent(err) {
		t.Errorf("deadline: %v", err)
	}
	if got := restarted(t, file); got != "a" {
		t.Errorf("restarted %q", got)
	}
}

func TestRotationThatMovedOnIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "turns")
	for _, events := range [][]saga.Event{forward, backward} {
		r := rotation(t, events, time.Now(), scripted(file, "a", ""), scripted(file, "b", ""))
		movedOn := errors.New("moved on")
		r.StillDue = func(context.Context) error { return movedOn }
		if _, err := do(t.Context(), start(t), r); !errors.Is(err, movedOn) || saga.IsPermanent(err) {
			t.Errorf("got %v", err)
		}
	}
	if got := restarted(t, file); got != "" {
		t.Errorf("restarted %q", got)
	}
}

func TestSecondReplicaStartsNoSecondProcess(t *testing.T) {
	c := consumer.New(t).Start(t)
	api := inventory.Consumer{Name: "api", Restart: inventory.Restart{Process: &inventory.Process{
		PIDFile: c.PIDFile, Start: c.Argv(), Dir: c.Dir, Timeout: 20 * time.Second}}}
	since := time.Now()
	var replicas sync.WaitGroup
	for range 2 {
		s, r := start(t), rotation(t, forward, since, api)
		replicas.Go(func() {
			if _, err := do(t.Context(), s, r); err != nil {
				t.Error(err)
			}
		})
	}
	replicas.Wait()
	if n := c.Alive(); n != 1 {
		t.Fatalf("%d are running: %q", n, c.Journal())
	}
	// Redelivered to a third one, which the bus's clock tells that all is done.
	before := c.PID()
	if _, err := do(t.Context(), start(t), rotation(t, forward, since.Add(-time.Minute), api)); err != nil || c.PID() != before {
		t.Fatalf("restarted again, or %v: %q", err, c.Journal())
	}
}

func TestPreflightNamesWhatCannotBeRestartedAndTouchesNothing(t *testing.T) {
	c := consumer.New(t).Start(t)
	sick := inventory.Health{HTTP: c.Health(t), Timeout: time.Minute}
	missing := filepath.Join(c.Dir, "none.pid")
	checks := start(t).Check(t.Context(), &inventory.Credential{Name: "shop", Consumers: []inventory.Consumer{
		{Name: "api", Health: sick, Restart: inventory.Restart{Process: &inventory.Process{PIDFile: c.PIDFile, Signal: "HUP"}}},
		{Name: "gone", Restart: inventory.Restart{Process: &inventory.Process{PIDFile: missing, Signal: "HUP"}}},
		{Name: "typo", Restart: inventory.Restart{Command: &inventory.Command{Argv: []string{"no-such-program"}}}},
		{Name: "none"},
	}})
	var got []string
	for _, line := range checks {
		got = append(got, fmt.Sprintf("%s %t", line.Target, line.Refused))
	}
	if want := []string{"consumer api false", "health of api false", "consumer gone true", "consumer typo true", "consumer none false"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	for i, want := range map[int]string{1: "warning: unhealthy now", 2: missing, 3: "no-such-program"} {
		if !strings.Contains(checks[i].Finding, want) {
			t.Errorf("%s: %s", checks[i].Target, checks[i].Finding)
		}
	}
	if len(c.Journal()) != 1 {
		t.Errorf("touched: %q", c.Journal())
	}
}

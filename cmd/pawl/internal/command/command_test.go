package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestUsageAndConfigurationEndWith2(t *testing.T) {
	s := newSite(t)
	for _, args := range [][]string{
		{"rotat", "app"}, {"rotate"}, {"rotate", "app", "More"}, {"rollback", "app", "more"}, {"rotate", "app", "--wiat"}, {"rotate", "App"}, {"rotate", "app", "--reason", strings.Repeat("x", 1025)},
		{"trace", "a.>"}, {"history", "*"},
	} {
		stdout, stderr := s.want(exitUsage, args...)
		if stdout != "" || !strings.HasPrefix(stderr, "pawl: ") {
			t.Errorf("pawl %v: stdout %q, stderr %q", args, stdout, stderr)
		}
	}
	seed := bus.SeedFile(s.inv, bus.Operator)
	if err := os.Remove(seed); err != nil {
		t.Fatal(err)
	}
	if _, stderr := s.want(exitUsage, "status"); !strings.Contains(stderr, seed) || !strings.Contains(stderr, "pawl init") {
		t.Errorf("stderr %q", stderr)
	}
	write(t, s.config, "natz: {}\n")
	s.want(exitUsage, "status")
	s.config += ".missing"
	s.want(exitUsage, "rotate", "app")
}

func TestUnreachableBusIsOneClearLine(t *testing.T) {
	s := newSite(t)
	for _, command := range []string{"adopt", "plan", "rotate", "rollback", "cancel", "resume", "status", "watch", "history", "trace", "doctor"} {
		stdout, stderr := s.want(exitFailed, command, "app")
		if want := "pawl: no Pawl answers on " + s.inv.NATS.Listen + ": start it with `pawl up`\n"; stdout != "" || stderr != want {
			t.Errorf("pawl %s: stdout %q, stderr %q", command, stdout, stderr)
		}
	}
}

func TestAnotherInstallationsServerIsNamed(t *testing.T) {
	s := newServer(t)
	other := newSite(t)
	write(t, other.config, strings.ReplaceAll(read(t, other.config), other.inv.NATS.Listen, s.inv.NATS.Listen))
	if _, stderr := other.want(exitFailed, "status"); !strings.Contains(stderr, "does not know") {
		t.Errorf("stderr %q", stderr)
	}
}

func TestAcceptedRotationPrintsItsIDAlone(t *testing.T) {
	s := newServer(t)
	requests := s.answer(accepted("r-2"), nil)
	stdout, _ := s.want(exitDone, "rotate", "app", "--reason", "quarterly")
	if stdout != "r-2\n" {
		t.Errorf("stdout %q", stdout)
	}
	r := <-requests
	if r.GetAction() != pawlv1.Action_ACTION_ROTATE || r.GetReason() != "quarterly" || !strings.Contains(r.GetRequestedBy(), "@") {
		t.Errorf("request %v", r)
	}
	stdout, _ = s.want(exitDone, "resume", "app", "--json")
	got := result{}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || got.Outcome != "accepted" || got.Rotation != "r-2" || got.Credential != "app" || !strings.HasPrefix(got.Request, "cli-") {
		t.Errorf("stdout %q (%v)", stdout, err)
	}
}

func TestRejectionEndsWith5AndItsReason(t *testing.T) {
	s := newServer(t)
	s.answer(&pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_REJECTED, Reason: "rotation r-1 of app is still running", Rotation: "r-1",
		Plan: []*pawlv1.Check{{Service: saga.DBRotator, Target: "coordinator", Finding: "is a standby", Refused: true}}}, nil)
	for _, command := range []string{"rotate", "adopt", "rollback", "resume"} {
		stdout, stderr := s.want(exitRejected, command, "app")
		if stdout != "" || stderr != "pawl: rejected: rotation r-1 of app is still running\n" {
			t.Errorf("pawl %s: stdout %q, stderr %q", command, stdout, stderr)
		}
	}
	if stdout, _ := s.want(exitRejected, "rotate", "app", "--json"); !strings.Contains(stdout, `"outcome": "rejected"`) {
		t.Errorf("stdout %q", stdout)
	}
	if stdout, _ := s.want(exitRejected, "plan", "app"); !strings.Contains(stdout, "✗ db-rotator  coordinator  is a standby") {
		t.Errorf("stdout %q", stdout)
	}
}

func TestWaitingEndsWithTheRotationsOutcome(t *testing.T) {
	s, n := newServer(t), 0
	for name, c := range map[string]struct {
		command string
		story   []told
		code    int
		stdout  string
		stderr  string // must contain
	}{
		"adopted":        {"adopt", adoption, exitDone, " completed\n", "matched"},
		"rotated":        {"rotate", rotation, exitDone, " completed\n", "confirmed"},
		"rolled back":    {"rotate", failing, exitRolledBack, " rolled-back\n", `rolled back, since "publish" failed: .env is read-only`},
		"restored":       {"rollback", rollback, exitDone, " rolled-back\n", "reinstated"},
		"adoption fails": {"adopt", []told{adoption[0], {saga.StageFailed, failing[2].body}, {saga.Unstaged, none}, {saga.RolledBack, none}}, exitRolledBack, " rolled-back\n", "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			n++
			id := fmt.Sprintf("r-%d", n)
			s.answer(accepted(id), func() error { return s.tell(id, c.story) })
			stdout, stderr := s.want(c.code, c.command, "app", "--wait")
			if stdout != id+c.stdout || !strings.Contains(stderr, c.stderr) {
				t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
			}
		})
	}
}

func TestStalledRotationEndsTheWaitWith4(t *testing.T) {
	s := newServer(t)
	s.answer(accepted("r-2"), func() error {
		err := s.tell("r-2", rotation[:5])
		for _, r := range []string{"r-1", "r-2"} { // another rotation's stall is none of ours
			note := &pawlv1.Note{Kind: "stalled", Credential: "app", Rotation: r, Step: "retire", Text: r + " waits for api"}
			err = errors.Join(err, s.users[saga.Scheduler].Publish(context.Background(), bus.NoteSubject(saga.Scheduler), note, nil))
		}
		return err
	})
	stdout, stderr := s.want(exitStalled, "rotate", "app", "--wait")
	if stdout != "r-2 stalled\n" || !strings.Contains(stderr, "pawl: rotation r-2 is stalled: r-2 waits for api") {
		t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
	}
}

func TestWaitSurvivesTheServersRestart(t *testing.T) {
	s := newServer(t)
	s.answer(accepted("r-2"), func() error { return s.tell("r-2", rotation[:3]) })
	reader, stderr := io.Pipe()
	var stdout strings.Builder
	code := make(chan int, 1)
	go func() {
		code <- Run(t.Context(), []string{"rotate", "app", "--wait", "-c", s.config}, &stdout, stderr)
		stderr.Close()
	}()
	readUntil(t, reader, "published")
	s.server.Stop()
	s.start()
	s.mustTell("r-2", rotation[3:])
	rest, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-code; got != exitDone || stdout.String() != "r-2 completed\n" || strings.Count(string(rest), "published") > 0 {
		t.Errorf("exit code %d, stdout %q\nstderr after the restart:\n%s", got, stdout.String(), rest)
	}
}

func TestInterruptedWaitLeavesTheRotationRunning(t *testing.T) {
	s := newServer(t)
	ctx, interrupt := context.WithCancel(t.Context())
	s.mustTell("r-1", adoption)
	s.answer(accepted("r-2"), func() error { return s.tell("r-2", rotation[:3]) })
	reader, writer := io.Pipe()
	var stdout strings.Builder
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, []string{"rotate", "app", "--wait", "-c", s.config}, &stdout, writer)
		writer.Close()
	}()
	stderr := readUntil(t, reader, "published")
	interrupt()
	rest, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-code; got != exitFailed || stdout.String() != "r-2 running\n" || !strings.Contains(string(rest), "rotation r-2 goes on") {
		t.Errorf("exit code %d, stdout %q\nstderr:\n%s%s", got, stdout.String(), stderr, rest)
	}
	if stdout, _ := s.want(exitDone, "status", "app", "--json"); !strings.Contains(stdout, `"state": "running"`) || !strings.Contains(stdout, `"step": "restart"`) {
		t.Errorf("status %s", stdout)
	}
}

// up runs everything until the test ends.
func (s *site) up() {
	s.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- embedded.Up(ctx, embedded.UpOptions{Inventory: s.inv, Log: io.Discard, Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-ended:
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
}

func TestServicesRefusalsAreUnderstood(t *testing.T) {
	s := newSite(t) // whose PostgreSQL does not answer
	s.up()
	if _, stderr := s.want(exitRejected, "rotate", "app", "--wait"); !strings.Contains(stderr, "pawl adopt app") {
		t.Errorf("stderr %q", stderr)
	}
	if _, stderr := s.want(exitRejected, "adopt", "app"); !strings.Contains(stderr, "db-rotator: coordinator") || !strings.Contains(stderr, ".env") {
		t.Errorf("stderr %q", stderr)
	}
	if stdout, _ := s.want(exitRejected, "plan", "app"); !strings.Contains(stdout, "✗ db-rotator") || !strings.Contains(stdout, "✗ secret-publisher") {
		t.Errorf("stdout %q", stdout)
	}
	if _, stderr := s.want(exitRejected, "rotate", "other"); !strings.Contains(stderr, "unknown credential") {
		t.Errorf("stderr %q", stderr)
	}
	if stdout, _ := s.want(exitFailed, "doctor"); strings.Contains(stdout, "is not running") || !strings.Contains(stdout, "not adopted") {
		t.Errorf("stdout %q", stdout)
	}
}

// TestWholeLifeOfACredential lets nothing be played: what the services say is
// what the commands read.
func TestWholeLifeOfACredential(t *testing.T) {
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	conn, err := postgres.Login(t.Context(), postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres", User: server.Superuser, Password: server.Password, SSLMode: "disable"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), "CREATE ROLE app LOGIN PASSWORD 'the-first-password'")
	if err = errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, config: filepath.Join(t.TempDir(), "pawl.yaml")}
	env := filepath.Join(filepath.Dir(s.config), ".env")
	write(t, env, "APP_USER=app\nAPP_PASSWORD=the-first-password\n")
	write(t, filepath.Join(filepath.Dir(s.config), "admin"), server.Password.Reveal())
	write(t, s.config, fmt.Sprintf(`nats: {listen: %q}
telemetry: {metrics: "127.0.0.1:0"}
clusters: {main: {admin: {user: postgres, password_file: admin, sslmode: disable}, nodes: {primary: {host: 127.0.0.1, port: %d}}}}
credentials: {app: {cluster: main, role: app, strategy: alternating, drain: 0s, publish: [dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}]}}
`, freeAddress(t), server.Port))
	s.want(exitDone, "init")
	if s.inv, err = inventory.Load(s.config); err != nil {
		t.Fatal(err)
	}
	s.up()

	s.want(exitDone, "adopt", "app")
	before := read(t, env)
	if stdout, _ := s.want(exitDone, "plan", "app"); !strings.Contains(stdout, "  1  stage") {
		t.Errorf("plan:\n%s", stdout)
	}
	rotated := decode[result](t, first(s.want(exitDone, "rotate", "app", "--wait", "--json")))
	after := read(t, env)
	if rotated.Ended.Login != "app_b" || !strings.Contains(after, "APP_USER=app_b") {
		t.Errorf("rotation %+v", rotated.Ended)
	}
	if stdout, _ := s.want(exitDone, "doctor", "app"); !strings.Contains(stdout, "✓ secret-publisher") || !strings.Contains(stdout, "✓ db-rotator") {
		t.Errorf("doctor:\n%s", stdout)
	}
	write(t, env, before)
	if stdout, _ := s.want(exitFailed, "doctor", "app", "--json"); !strings.Contains(stdout, "of app: not the current login") {
		t.Errorf("doctor of a sink with the old login:\n%s", stdout)
	}
	write(t, env, after)
	if stdout, _ := s.want(exitDone, "trace", rotated.Rotation); !strings.Contains(stdout, "✓ publish") || !strings.Contains(stdout, "primary") {
		t.Errorf("trace:\n%s", stdout)
	}
	s.want(exitDone, "rollback", "app")
	if status := decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "--json")))[0]; status.Login != "app" || status.Generation != 3 {
		t.Errorf("status %+v", status)
	}
	s.want(exitDone, "doctor")
	s.want(exitRejected, "rollback", "app")
}

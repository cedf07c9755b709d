// Package docker tests whole rotations of a service on a real Docker Swarm.
package docker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/dockertest"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var full = flag.Bool("full", false, "ten rotations in a row, and every crash point")

const (
	adopt   = pawlv1.Action_ACTION_ADOPT
	rotate  = pawlv1.Action_ACTION_ROTATE
	contain = pawlv1.Action_ACTION_CONTAIN
)

func TestMain(m *testing.M) { os.Exit(site.Run(m)) }

// swarm is an installation whose credentials are those of Swarm services.
type swarm struct {
	*testing.T
	site   *site.Site
	server *pgserver.Server
	fleet  *site.Fleet
	client *site.Client
	prefix string // of services and secrets, before the credential's name
}

// app is one service, and its credential.
type app struct {
	name     string
	replicas int
	crashes  bool // as the second login
}

func (s *swarm) service(name string) string { return s.prefix + "-" + name }
func (s *swarm) secret(name string) string  { return s.prefix + "-dsn-" + name }

// newSwarm starts a PostgreSQL, the six services in two replicas, and the apps.
// All that failed to log in to PostgreSQL is a fault in the end.
func newSwarm(t *testing.T, apps ...app) *swarm {
	t.Helper()
	dockertest.Need(t)
	const image = "pawl-swarm-app"
	dockertest.Image(t, image, "pawl.dev/internal/e2e/docker/app")
	dir, err := site.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	s := &swarm{T: t, prefix: dockertest.Name("e2e")}
	if s.server, err = pgserver.Start(t.Context(), pgserver.Options{NoSync: true, Settings: map[string]string{"log_connections": "on", "max_connections": "300"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	var credentials []site.Credential
	for _, a := range apps {
		credentials = append(credentials, site.Credential{
			Name: a.name, Strategy: "alternating", Consumer: s.service(a.name), Drain: "1s",
			Restart: fmt.Sprintf("{swarm_service: {service: %s, timeout: 1m}}\n        instances: %d", s.service(a.name), a.replicas),
			Publish: fmt.Sprintf("[{dotenv: {path: apps/%s/.env, user: DB_USER, password: DB_PASSWORD}}, {docker_secret: {name: %s, target: dsn, format: dsn, url: %q, services: [%s]}}]",
				a.name, s.secret(a.name), s.url(), s.service(a.name)),
		})
	}
	if s.site, err = site.New(t.Context(), t.TempDir(), s.server, "", credentials); err != nil {
		t.Fatal(err)
	}
	s.reconcileOften()
	for _, a := range apps {
		login, err := s.site.Published(a.name)
		if err != nil {
			t.Fatal(err)
		}
		dockertest.Secret(t, s.secret(a.name), published.ServerDSN(s.url()).With(login))
		args := []string{fmt.Sprintf("--replicas=%d", a.replicas), "--network=host", "--env=APP=" + s.service(a.name), "--secret=source=" + s.secret(a.name) + ",target=dsn,mode=0400",
			"--update-order=start-first", "--update-monitor=1s", "--update-failure-action=rollback", "--rollback-monitor=1s", "--rollback-order=start-first", "--restart-delay=500ms", "--stop-grace-period=2s"}
		if a.crashes {
			args = append(args, "--env=CRASH_AS=_b")
		}
		dockertest.Service(t, s.service(a.name), image, args...)
	}
	if s.fleet, err = s.site.StartFleet(context.Background(), dir, 2, time.Second, 75*time.Second); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.fleet.Stop()
		if t.Failed() {
			s.showLogs()
		}
	})
	s.dial()
	return s
}

// url is how the containers reach the server: they are on the host's network.
func (s *swarm) url() string {
	return fmt.Sprintf("postgres://127.0.0.1:%d/postgres?sslmode=disable", s.server.Port)
}

func (s *swarm) reconcileOften() {
	text, err := os.ReadFile(s.site.File)
	if err == nil {
		err = os.WriteFile(s.site.File, append(text, "reconcile_every: 1s\n"...), 0o600)
	}
	if err != nil {
		s.Fatal(err)
	}
}

func (s *swarm) dial() {
	s.eventually("the bus is up", func(ctx context.Context) (err error) {
		if s.client, err = s.site.Operator(); err == nil {
			if _, err = s.client.Stream(ctx, bus.StreamDead); err != nil {
				s.client.NATS.Close()
			}
		}
		return err
	})
	s.Cleanup(s.client.NATS.Close)
}

// eventually asks until there is no error.
func (s *swarm) eventually(what string, look func(context.Context) error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	for {
		err := look(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			s.Fatalf("%s: not within a minute; last: %v", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// turn asks for the action, waits for its end, and for that of its tail.
func (s *swarm) turn(ctx context.Context, credential string, action pawlv1.Action) (bus.Log, error) {
	log, err := s.client.Do(ctx, credential, action)
	if err == nil && action != adopt {
		log, err = s.client.Await(ctx, credential, log.Rotation, saga.Erased)
	}
	return log, err
}

// must is turn, and the end that it must have.
func (s *swarm) must(credential string, action pawlv1.Action, end saga.Event) bus.Log {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 3*time.Minute)
	defer cancel()
	log, err := s.turn(ctx, credential, action)
	if err != nil || log.Find(end) == nil {
		s.Fatalf("%s of %s: %v %v %s", action, credential, err, site.Events(log), failure(log))
	}
	return log
}

func failure(log bus.Log) string {
	for _, r := range log.Records {
		if f := r.Body.GetFailure(); f != nil {
			return f.GetStep() + ": " + f.GetReason()
		}
	}
	return ""
}

// versions lists the credential's secrets: name, fingerprint.
func (s *swarm) versions(credential string) map[string]string {
	s.Helper()
	found := map[string]string{}
	for line := range strings.Lines(dockertest.Run(s, "secret", "ls", "--filter=label="+published.LabelCredential+"="+credential, "--format={{.Name}} {{.Label \""+published.LabelFingerprint+"\"}}")) {
		if name, print, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(name, s.prefix) {
			found[name] = print
		}
	}
	return found
}

// referred is the secret that the service's spec names.
func (s *swarm) referred(credential string) string {
	s.Helper()
	return dockertest.Run(s, "service", "inspect", "--format={{(index .Spec.TaskTemplate.ContainerSpec.Secrets 0).SecretName}}", s.service(credential))
}

// running lists the secrets that the tasks use which run.
func (s *swarm) running(credential string) (secrets []string) {
	s.Helper()
	for id := range strings.FieldsSeq(dockertest.Run(s, "service", "ps", "-q", "--no-trunc", "--filter=desired-state=running", s.service(credential))) {
		secrets = append(secrets, dockertest.Run(s, "inspect", "--type=task", "--format={{.Status.State}} {{(index .Spec.ContainerSpec.Secrets 0).SecretName}}", id))
	}
	return secrets
}

// settled fails the test unless the service, all of its tasks and what `pawl
// doctor` is told agree with the log.
func (s *swarm) settled(credential string, log bus.Log, replicas int) {
	s.Helper()
	print := log.Find(saga.Staged).Body.GetStaged().GetFingerprint()
	versions, referred := s.versions(credential), s.referred(credential)
	if versions[referred] != print {
		s.Errorf("%s refers to %s, which is %s, want %s; there are %v", s.service(credential), referred, versions[referred], print, versions)
	}
	// One whose session was ended may have crashed, and be about to start anew.
	s.eventually("every task runs on it", func(context.Context) error {
		if want, have := slices.Repeat([]string{"running " + referred}, replicas), s.running(credential); !slices.Equal(have, want) {
			return fmt.Errorf("tasks of %s: %q, want %q", s.service(credential), have, want)
		}
		return nil
	})
	s.eventually("doctor is told", func(ctx context.Context) error { // whoever was killed may be starting
		checks, err := service.Ask(ctx, s.client.Bus, bus.ExamineSubject(saga.SecretPublisher, credential))
		if err == nil && (len(checks) != 2 || !strings.Contains(checks[1].GetFinding(), print)) {
			err = fmt.Errorf("doctor is told %v", checks)
		}
		return err
	})
}

// refusals are the failed logins, by PostgreSQL's own log.
func (s *swarm) refusals() (lines []string) {
	s.Helper()
	text, err := os.ReadFile(s.server.LogFile)
	if err != nil {
		s.Fatal(err)
	}
	if !strings.Contains(string(text), "-again") {
		s.Error("no application has logged in: nothing is shown here")
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "FATAL:") && !strings.Contains(line, "terminating connection") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func (s *swarm) nobodyWasRefused() {
	s.Helper()
	if refused := s.refusals(); len(refused) > 0 {
		s.Errorf("%d failed logins: %q", len(refused), refused[:min(5, len(refused))])
	}
}

func (s *swarm) showLogs() {
	files, _ := filepath.Glob(filepath.Join(s.fleet.Logs, "*.log"))
	for _, file := range files {
		raw, _ := os.ReadFile(file)
		var told []string
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, `"level":"WARN"`) || strings.Contains(line, `"level":"ERROR"`) || !strings.HasPrefix(line, "{") {
				told = append(told, strings.TrimSpace(line))
			}
		}
		s.Logf("%s, the last warnings:\n%s", filepath.Base(file), strings.Join(told[max(0, len(told)-8):], "\n"))
	}
}

// A service of two tasks turns, again and again, and nobody is refused; what a
// person turns back is turned again; what is compromised, nothing turns back to.
func TestServiceTurnsWithoutAFailedLogin(t *testing.T) {
	s := newSwarm(t, app{name: "shop", replicas: 2})
	log := s.must("shop", adopt, saga.Completed)
	if print := log.Find(saga.Adopted).Body.GetStaged().GetFingerprint(); s.versions("shop")[s.secret("shop")] != print {
		t.Errorf("the adopted secret is not marked as %s: %v", print, s.versions("shop"))
	}
	rotations := 3
	if *full {
		rotations = 10
	}
	for range rotations {
		log = s.must("shop", rotate, saga.Completed)
		s.settled("shop", log, 2)
	}
	s.eventually("old versions are removed", func(context.Context) error {
		if left := s.versions("shop"); len(left) != 3 { // what was adopted, the last one, and the one before, which a rollback by hand would name
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	s.nobodyWasRefused()

	dockertest.Run(t, "service", "rollback", "--detach", s.service("shop"))
	print := log.Find(saga.Staged).Body.GetStaged().GetFingerprint()
	s.eventually("what a person turned back is turned again", func(context.Context) error {
		if referred := s.referred("shop"); s.versions("shop")[referred] != print {
			return fmt.Errorf("the service refers to %s", referred)
		}
		if u := dockertest.Run(t, "service", "inspect", "--format={{.UpdateStatus.State}}", s.service("shop")); u != "completed" {
			return fmt.Errorf("its update is %s", u)
		}
		return nil
	})

	log = s.must("shop", contain, saga.Completed)
	s.settled("shop", log, 2)
	s.eventually("compromised versions are removed", func(context.Context) error {
		if left := s.versions("shop"); len(left) != 1 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	now := s.referred("shop")
	dockertest.Run(t, "service", "rollback", "--detach", s.service("shop"))
	if s.referred("shop") != now {
		t.Errorf("a rollback by hand brings %s back", s.referred("shop"))
	}
}

func TestTasksThatCrashEndInTheStateOfBefore(t *testing.T) {
	s := newSwarm(t, app{name: "shop", replicas: 2, crashes: true})
	adopted := s.must("shop", adopt, saga.Completed)
	log := s.must("shop", rotate, saga.RolledBack)
	if reason := failure(log); !strings.HasPrefix(reason, "restart: consumer "+s.service("shop")) || !strings.Contains(reason, "non-zero exit (3)") {
		t.Errorf("failed because %s", reason)
	}
	if s.referred("shop") != s.secret("shop") || !slices.Equal(s.running("shop"), slices.Repeat([]string{"running " + s.secret("shop")}, 2)) {
		t.Errorf("the service refers to %s, its tasks are %q", s.referred("shop"), s.running("shop"))
	}
	if print := adopted.Find(saga.Adopted).Body.GetStaged().GetFingerprint(); s.versions("shop")[s.secret("shop")] != print {
		t.Errorf("%v, want %s", s.versions("shop"), print)
	}
	s.nobodyWasRefused()
}

// The secret-publisher is killed before and after each of its effects: every call
// of the Docker API is one.
func TestPublisherIsKilledBetweenEveryTwoCallsOfDocker(t *testing.T) {
	n := 5
	if *full {
		n = 60
	}
	apps := []app{{name: "first", replicas: 1}}
	for i := range n {
		apps = append(apps, app{name: fmt.Sprintf("drill-%d", i), replicas: 1})
	}
	s := newSwarm(t, apps...)
	s.must("first", adopt, saga.Completed)
	points := crashPoints(s.must("first", rotate, saga.Completed))
	for _, call := range []string{"inspect service", "list secrets", "create secret", "update service"} {
		if !slices.ContainsFunc(points, func(p string) bool { return strings.HasPrefix(p, "publish."+call) }) {
			t.Fatalf("no point at %q: %v", call, points)
		}
	}
	// Those around a change are hit always, the rest is a sample, or all.
	rand.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	slices.SortStableFunc(points, func(a, b string) int { return rank(a) - rank(b) })
	points = points[:min(n, len(points))]
	t.Logf("of each rotation are hit: %q", points)
	slots := make(chan struct{}, 3)
	var wait sync.WaitGroup
	for i, p := range points {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			name := fmt.Sprintf("drill-%d", i)
			if err := s.drill(name, strings.ReplaceAll(p, "first", name)); err != nil {
				t.Errorf("%s killed at %s: %v", name, p, err)
			}
		})
	}
	wait.Wait()
	s.nobodyWasRefused()
}

func rank(point string) int {
	if strings.Contains(point, "create secret") || strings.Contains(point, "update service") {
		return 0
	}
	return 1
}

// crashPoints of the publish step, by its log.
func crashPoints(log bus.Log) (points []string) {
	for _, op := range log.Find(saga.Published).Body.GetOperations() {
		at := fmt.Sprintf("publish.%s(%s)", op.GetName(), op.GetTarget())
		points = append(points, at+".before", at+".after")
	}
	points = append(points, "publish.append.before", "publish.append.after")
	slices.Sort(points)
	return slices.Compact(points)
}

func (s *swarm) drill(name, point string) error {
	ctx, cancel := context.WithTimeout(s.Context(), 3*time.Minute)
	defer cancel()
	if _, err := s.turn(ctx, name, adopt); err != nil {
		return err
	}
	if err := s.fleet.Order(name, point, "KILL"); err != nil {
		return err
	}
	log, err := s.turn(ctx, name, rotate)
	if err != nil {
		return err
	}
	var faults []error
	if !s.fleet.Hit(name, point) {
		faults = append(faults, errors.New("nobody came by"))
	}
	if log.Find(saga.Completed) == nil {
		faults = append(faults, fmt.Errorf("ended %v %s", site.Events(log), failure(log)))
	}
	if v := s.versions(name); len(v) != 2 {
		faults = append(faults, fmt.Errorf("there are secrets %v, want what was adopted and one more", v))
	}
	s.settled(name, log, 1)
	return errors.Join(faults...)
}

// Docker's client is no business of the services that hold an admin's password, or
// nothing at all.
func TestNoOtherServiceHasDockersClient(t *testing.T) {
	for _, name := range saga.Services {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "pawl.dev/services/"+name).Output()
		if err != nil {
			t.Fatal(err)
		}
		has, should := strings.Contains(string(out), "github.com/docker/"), name == saga.SecretPublisher || name == saga.Restarter
		if has != should {
			t.Errorf("%s: %t, want %t", name, has, should)
		}
	}
}

package compose

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/dockertest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
)

// What a team deploys turns the secret of a Swarm service, with no more of Docker's
// API than its proxies let through, and goes on turning it while every service is
// replaced by another version and a server of the bus is lost.
func TestSwarmStackTurnsASecretWhileItIsUpdated(t *testing.T) {
	s := newSwarm(t)
	s.pawl("adopt", Credential)
	s.forgetTheFile()
	s.pawl("rotate", Credential, "--wait")

	replace := func(service string) {
		dockertest.Run(t, "service", "update", "--force", "--quiet", "--detach", "pawl_"+service)
	}
	for _, service := range saga.Services {
		replace(service)
	}
	s.kill("nats-2")
	rotations := 0
	for updated := false; !updated; rotations++ {
		updated = s.updated(replace) // and once more, after the last of them
		s.pawl("rotate", Credential, "--wait")
	}
	t.Logf("%d rotations while every service was replaced", rotations)
	s.nobodyWasRefused()
}

// swarm is deploy/stack as it lies there, on this machine's Swarm, with a server
// of PostgreSQL and an application beside it.
type swarm struct {
	*testing.T
	dir   string // a copy of the folder
	again int    // how often an update was begun again
}

func newSwarm(t *testing.T) *swarm {
	t.Helper()
	dockertest.Need(t)
	s := &swarm{T: t, dir: dockertest.Dir(t)}
	files, err := filepath.Glob(filepath.Join(Root(), "deploy/stack/*.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, filepath.Join(Root(), "deploy/compose/postgres.sh"), "demo-stack.yml") {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(s.dir, filepath.Base(file)), text, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	node := dockertest.Run(t, "info", "--format={{.Swarm.NodeID}}")
	for _, server := range []string{"nats-1", "nats-2", "nats-3"} {
		dockertest.Run(t, "node", "update", "--label-add", "pawl."+server+"=true", node)
	}
	dockertest.Run(t, "run", "--rm", "--user=0:0", "--volume="+s.dir+":/etc/pawl", "pawl/demosetup:dev", "-keys", "/etc/pawl/keys", "-out", "/etc/pawl/demo")
	t.Cleanup(s.remove)
	s.deploy("-c", "adopt.yml")
	s.application()
	s.eventually("everything runs", func() error { return s.running() })
	s.psql("ALTER SYSTEM SET log_connections = on", "SELECT pg_reload_conf()")
	return s
}

// deploy is what a person calls, with the demo beside it.
func (s *swarm) deploy(args ...string) {
	s.Helper()
	cmd := exec.CommandContext(s.Context(), filepath.Join(s.dir, "deploy.sh"), append([]string{"--resolve-image=never", "-c", "demo-stack.yml"}, args...)...)
	cmd.Env = append(os.Environ(), "PAWL_PRESENT="+filepath.Join(s.dir, "demo", "app"))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("deploy.sh: %v\n%s", err, out)
	}
}

// application starts two tasks of one that reads its DSN from a secret.
func (s *swarm) application() {
	s.Helper()
	dockertest.Image(s, "pawl-swarm-app", "pawl.dev/internal/e2e/docker/app")
	login, err := published.Read(inventory.Sink{Dotenv: &inventory.Dotenv{Path: filepath.Join(s.dir, "demo/app/.env"), User: "RUVECTOR_USER", Password: "RUVECTOR_PASSWORD"}})
	if err != nil {
		s.Fatal(err)
	}
	dockertest.Secret(s, "ruvector_dsn", published.ServerDSN("postgres://coordinator:5432/ruvector?sslmode=disable").With(login))
	dockertest.Service(s, "api", "pawl-swarm-app", "--replicas=2", "--network=pawl", "--endpoint-mode=dnsrr", "--env=APP=api", "--secret=source=ruvector_dsn,target=dsn,mode=0400",
		"--update-order=start-first", "--update-monitor=1s", "--update-failure-action=rollback", "--restart-delay=1s", "--stop-grace-period=2s")
}

// pawl runs the command line as the operator.
func (s *swarm) pawl(args ...string) {
	s.Helper()
	keys := filepath.Join(s.dir, "keys", "operator")
	out, err := Docker(s.Context(), append([]string{"run", "--rm", "--user=0:0", "--network=pawl", "--volume=" + filepath.Join(s.dir, "pawl.yaml") + ":/etc/pawl/pawl.yaml:ro",
		"--volume=" + keys + ":/run/pawl:ro", "--volume=" + keys + ":/var/lib/pawl:ro", "pawl/pawl:dev"}, args...)...)
	if err != nil {
		s.Fatalf("%v\n%s", err, out)
	}
}

// forgetTheFile deploys without the file that the adoption was read from.
func (s *swarm) forgetTheFile() {
	s.Helper()
	config := filepath.Join(s.dir, "pawl.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		s.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "- dotenv:") {
			kept.WriteString(line)
		}
	}
	if err := os.WriteFile(config, []byte(kept.String()), 0o600); err != nil {
		s.Fatal(err)
	}
	s.deploy()
	s.eventually("everything is updated, and runs", func() error {
		if !s.updated(func(string) { s.deploy() }) {
			return fmt.Errorf("an update goes on")
		}
		return s.running()
	})
}

// running returns an error while a task is missing, or the bus' streams may be.
func (s *swarm) running() error {
	for line := range strings.Lines(dockertest.Run(s, "stack", "services", "--format={{.Name}} {{.Replicas}}", "pawl")) {
		name, replicas, _ := strings.Cut(strings.TrimSpace(line), " ")
		have, want, _ := strings.Cut(replicas, "/")
		if name != "pawl_provision" && have != want {
			return fmt.Errorf("%s has %s", name, replicas)
		}
	}
	if state := dockertest.Run(s, "service", "ps", "--format={{.CurrentState}}", "pawl_provision"); !strings.HasPrefix(state, "Complete") {
		return fmt.Errorf("provision: %s", state)
	}
	return nil
}

// updated reports whether no service is in an update. One that was turned back fails
// the test, unless Docker had not started the task: then it is begun again.
func (s *swarm) updated(again func(service string)) bool {
	s.Helper()
	for _, service := range saga.Services {
		switch state := dockertest.Run(s, "service", "inspect", "--format={{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}", "pawl_"+service); state {
		case "", "completed":
		case "updating", "rollback_started":
			return false
		default:
			if s.again++; s.again > 3 || !s.startFailed(service) {
				s.Fatalf("the update of %s: %s", service, state)
			}
			s.Logf("the update of %s: %s, since Docker could not start a task; again", service, state)
			again(service)
			return false
		}
	}
	return true
}

// startFailed reports whether every task of a service that failed had met a fault of
// Docker, which closes its files too late to make their mount read-only (moby, issue 48783).
func (s *swarm) startFailed(service string) bool {
	s.Helper()
	faults := dockertest.Run(s, "service", "ps", "--no-trunc", "--format={{.Error}}", "pawl_"+service)
	failed := false
	for fault := range strings.Lines(faults) {
		if fault = strings.TrimSpace(fault); fault == "" {
			continue
		}
		if !strings.Contains(fault, "unable to remount dir as readonly") {
			return false
		}
		failed = true
	}
	return failed
}

func (s *swarm) kill(service string) {
	s.Helper()
	dockertest.Run(s, "kill", s.task(service))
}

// task returns the container of a service's only task.
func (s *swarm) task(service string) string {
	s.Helper()
	return dockertest.Run(s, "ps", "--quiet", "--filter=label=com.docker.swarm.service.name=pawl_"+service)
}

func (s *swarm) psql(statements ...string) {
	s.Helper()
	for _, statement := range statements {
		dockertest.Run(s, "exec", s.task("coordinator"), "psql", "--quiet", "--username=postgres", "--command="+statement)
	}
}

// nobodyWasRefused reads what the server logged.
func (s *swarm) nobodyWasRefused() {
	s.Helper()
	out, err := exec.CommandContext(s.Context(), "docker", "logs", s.task("coordinator")).CombinedOutput()
	if err != nil {
		s.Fatal(err)
	}
	logins := strings.Count(string(out), "application_name=api-again")
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "FATAL:") && !strings.Contains(line, "terminating connection") {
			s.Error(strings.TrimSpace(line))
		}
	}
	if logins == 0 {
		s.Error("the application has not logged in: nothing is shown here")
	}
	s.Logf("%d logins", logins)
}

func (s *swarm) eventually(what string, look func() error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), 3*time.Minute)
	defer cancel()
	for {
		err := look()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			s.Fatalf("%s: not within three minutes; last: %v", what, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// remove takes the stack away, with its secrets and volumes.
func (s *swarm) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if s.Failed() {
		out, err := Docker(ctx, "stack", "ps", "--no-trunc", "--format={{.Name}} {{.DesiredState}} {{.CurrentState}} {{.Error}}", "pawl")
		s.Log(out, err)
		for _, service := range append([]string{"provision", "nats-1"}, saga.Services...) {
			out, err := exec.CommandContext(ctx, "docker", "service", "logs", "--raw", "--tail=15", "pawl_"+service).CombinedOutput()
			s.Logf("%s:\n%s %v", service, out, err)
		}
	}
	if _, err := Docker(ctx, "stack", "rm", "pawl"); err != nil {
		s.Error(err)
	}
	for ctx.Err() == nil { // what is still in use cannot be removed
		left, err := Docker(ctx, "ps", "--all", "--quiet", "--filter=label=com.docker.stack.namespace=pawl")
		if err == nil && left == "" {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	volumes, err := Docker(ctx, "volume", "ls", "--quiet", "--filter=label=com.docker.stack.namespace=pawl")
	if err == nil && volumes != "" {
		_, err = Docker(ctx, append([]string{"volume", "rm"}, strings.Fields(volumes)...)...)
	}
	if err != nil {
		s.Error(err)
	}
}

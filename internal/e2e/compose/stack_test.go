// Package compose runs docker-compose.yml as it is, on a Docker Engine, with the
// images that deploy/images.sh and deploy/images-offline.sh build. It is a package
// of its own, so that the others need no Docker.
package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

const root = "../../.."

// startWithin bounds `up`: keys, four servers of PostgreSQL, the bus and six
// services, on two busy cores.
const startWithin = 6 * time.Minute

// stack is one project of Compose, with ports of its own.
type stack struct {
	t       testing.TB
	project string
	command []string // docker-compose, or docker compose
}

// start runs `up` and waits until the demo's credential is adopted; afterwards
// all is removed, volumes included.
func start(t testing.TB) *stack {
	t.Helper()
	s := &stack{t: t, project: fmt.Sprintf("pawl-compose-%d", os.Getpid()), command: []string{"docker-compose"}}
	if _, err := exec.LookPath("docker-compose"); err != nil {
		s.command = []string{"docker", "compose"}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.try(time.Minute, "ps"))
			t.Log(s.try(time.Minute, "logs", "--no-color", "--tail=25"))
		}
		if out, err := s.run(2*time.Minute, "down", "--volumes", "--remove-orphans", "--timeout", "3"); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	if out, err := s.run(startWithin, "up", "--detach", "--no-build"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	if code := strings.TrimSpace(s.docker(startWithin, "wait", s.container("adopt"))); code != "0" {
		t.Fatalf("adopt ended with %s", code)
	}
	return s
}

func (s *stack) run(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit) // also after the test
	defer cancel()
	args = append(append([]string{}, s.command[1:]...), append([]string{"--project-name", s.project, "--file", filepath.Join(root, "docker-compose.yml")}, args...)...)
	c := exec.CommandContext(ctx, s.command[0], args...)
	c.Env = os.Environ()
	for _, port := range []string{"NATS", "APP", "DASHBOARD", "JAEGER", "PROMETHEUS", "ALERTMANAGER"} {
		c.Env = append(c.Env, "PAWL_"+port+"_PORT=0") // any that is free
	}
	out, err := c.CombinedOutput()
	return string(out), err
}

func (s *stack) try(limit time.Duration, args ...string) string {
	out, err := s.run(limit, args...)
	if err != nil {
		out += err.Error()
	}
	return out
}

func (s *stack) docker(limit time.Duration, args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// container returns the id of a service's, one that has ended included.
func (s *stack) container(service string) string {
	s.t.Helper()
	id := strings.Fields(s.docker(time.Minute, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+s.project,
		"--filter", "label=com.docker.compose.service="+service))
	if len(id) != 1 {
		s.t.Fatalf("%s has the containers %v", service, id)
	}
	return id[0]
}

// address is where a published port is reached.
func (s *stack) address(service, port string) string {
	s.t.Helper()
	return strings.TrimSpace(s.docker(time.Minute, "port", s.container(service), port))
}

// join returns a client's connection, with the keys that the demo dealt to it.
func (s *stack) join(user string) *bus.Bus {
	s.t.Helper()
	keys := filepath.Join(s.t.TempDir(), user)
	s.docker(time.Minute, "cp", s.container("keys")+":/keys/"+user, keys)
	o, err := bus.For(&inventory.Inventory{DataDir: keys, KeysDir: keys, NATS: inventory.NATS{URL: "tls://" + s.address("nats", "4222")}}, user)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := bus.Connect(o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(b.NATS.Close)
	return b
}

// get asks until the answer is what it should be; spans and samples are sent in
// batches, a few seconds late.
func (s *stack) get(url string, into any, enough func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		err := getJSON(ctx, url, into)
		if err == nil && enough() {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("%s: %v; last answer: %+v", url, err, into)
		case <-tick.C:
		}
	}
}

func getJSON(ctx context.Context, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", answer.Status)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

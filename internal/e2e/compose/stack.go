// Package compose runs docker-compose.yml as it is, on a Docker Engine, with the
// images that deploy/images.sh and deploy/images-offline.sh build. It is a package
// of its own, so that others need no Docker.
package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// Credential is the one of the demo.
const Credential = "ruvector-app"

// Files of the two layouts; paths are from the repository's root.
var (
	OneServer    = []string{"docker-compose.yml"}
	ThreeServers = []string{"docker-compose.yml", "deploy/compose/three.yml"}
)

// StartWithin bounds Up: keys, four servers of PostgreSQL, the bus and the
// services, on two busy cores.
const StartWithin = 6 * time.Minute

// Stack is a project of Compose, with ports of its own.
type Stack struct {
	project string
	command []string // docker-compose, or docker compose, and the files
}

// New names a stack; nothing runs yet.
func New(project string, files []string) *Stack {
	s := &Stack{project: fmt.Sprintf("%s-%d", project, os.Getpid()), command: []string{"docker-compose"}}
	if _, err := exec.LookPath("docker-compose"); err != nil {
		s.command = []string{"docker", "compose"}
	}
	s.command = append(s.command, "--project-name", s.project)
	for _, file := range files {
		if !filepath.IsAbs(file) {
			file = filepath.Join(Root(), file)
		}
		s.command = append(s.command, "--file", file)
	}
	return s
}

// Root is the repository's.
func Root() string {
	_, here, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(here), "..", "..", "..")
}

// Up starts it, and returns when the demo's credential is adopted.
func (s *Stack) Up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, StartWithin)
	defer cancel()
	if out, err := s.Compose(ctx, "up", "--detach", "--no-build"); err != nil {
		return fmt.Errorf("up: %w\n%s", err, out)
	}
	adopt, err := s.Container(ctx, "adopt")
	if err != nil {
		return err
	}
	code, err := Docker(ctx, "wait", adopt)
	if err == nil && code != "0" {
		err = fmt.Errorf("adopt ended with %s", code)
	}
	return err
}

// Down removes it, volumes included.
func (s *Stack) Down(ctx context.Context) error {
	out, err := s.Compose(ctx, "down", "--volumes", "--remove-orphans", "--timeout", "3")
	if err != nil {
		err = fmt.Errorf("down: %w\n%s", err, out)
	}
	return err
}

// Compose runs docker-compose, and returns all that it prints.
func (s *Stack) Compose(ctx context.Context, args ...string) (string, error) {
	c := exec.CommandContext(ctx, s.command[0], append(s.command[1:len(s.command):len(s.command)], args...)...)
	c.Env = os.Environ()
	for _, port := range []string{"NATS", "APP", "DASHBOARD", "JAEGER", "PROMETHEUS", "ALERTMANAGER"} {
		c.Env = append(c.Env, "PAWL_"+port+"_PORT=0") // any that is free
	}
	out, err := c.CombinedOutput()
	return string(out), err
}

// Docker runs docker, and returns what it prints, without the last line break.
func Docker(ctx context.Context, args ...string) (string, error) {
	var out, said bytes.Buffer
	c := exec.CommandContext(ctx, "docker", args...)
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return strings.TrimRight(out.String(), "\n"), nil
}

// Containers returns the ids of a service's, those that have ended included.
func (s *Stack) Containers(ctx context.Context, service string) ([]string, error) {
	ids, err := Docker(ctx, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+s.project, "--filter", "label=com.docker.compose.service="+service)
	if err == nil && ids == "" {
		err = fmt.Errorf("%s has no container", service)
	}
	return strings.Fields(ids), err
}

// Container returns one of them.
func (s *Stack) Container(ctx context.Context, service string) (string, error) {
	ids, err := s.Containers(ctx, service)
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

// Address is where a published port is reached.
func (s *Stack) Address(ctx context.Context, service, port string) (string, error) {
	id, err := s.Container(ctx, service)
	if err != nil {
		return "", err
	}
	return Docker(ctx, "port", id, port)
}

// Join connects as a user of the bus, with the keys that the demo dealt to it,
// which it copies to dir.
func (s *Stack) Join(ctx context.Context, user, dir string) (*bus.Bus, error) {
	keys := filepath.Join(dir, user)
	dealer, err := s.Container(ctx, "keys")
	if err != nil {
		return nil, err
	}
	_, copying := Docker(ctx, "cp", dealer+":/keys/"+user, keys)
	address, err := s.Address(ctx, "nats", "4222")
	if err = errors.Join(copying, err); err != nil {
		return nil, err
	}
	o, err := bus.For(&inventory.Inventory{DataDir: keys, KeysDir: keys, NATS: inventory.NATS{URL: "tls://" + address}}, user)
	if err != nil {
		return nil, err
	}
	return bus.Connect(o)
}

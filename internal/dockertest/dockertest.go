// Package dockertest gives tests a real Docker Engine in swarm mode, by Docker's
// own command line: what is tested speaks to the API by itself.
package dockertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// ready sees to the engine, once in a process.
var ready = sync.OnceValue(func() error {
	_, here, _, _ := runtime.Caller(0)
	out, err := exec.Command(filepath.Join(filepath.Dir(here), "..", "..", "deploy", "docker-for-tests.sh")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
})

// Need fails the test where no engine can be had.
func Need(t testing.TB) {
	t.Helper()
	if err := ready(); err != nil {
		t.Fatal(err)
	}
}

// Name is one that nothing else on the engine has.
func Name(what string) string { return "pawl-swarm-" + what + "-" + strings.ToLower(rand.Text()[:8]) }

// Run runs docker and returns its output, without the last line break.
func Run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := Try(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Run with an input, where failing is no fault.
func Try(ctx context.Context, input string, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
	}
	return strings.TrimRight(out.String(), "\n"), nil
}

// Secret makes a secret, which goes with the test, and everything that Pawl makes
// of the same name with it. Labels are KEY=VALUE.
func Secret(t testing.TB, name, content string, labels ...string) {
	t.Helper()
	args := []string{"secret", "create"}
	for _, l := range labels {
		args = append(args, "--label", l)
	}
	if _, err := Try(t.Context(), content, append(args, name, "-")...); err != nil {
		t.Fatal(err)
	}
	cleanup(t, func(ctx context.Context) error {
		left, err := Try(ctx, "", "secret", "ls", "-q", "--filter", "name="+name)
		for id := range strings.FieldsSeq(left) {
			if err == nil {
				_, err = Try(ctx, "", "secret", "rm", id)
			}
		}
		return err
	})
}

// Service makes a service, which goes with the test. args stand between the name
// and the image.
func Service(t testing.TB, name, image string, args ...string) {
	t.Helper()
	all := append([]string{"service", "create", "--detach", "--no-resolve-image", "--name", name}, args...)
	Run(t, append(all, image)...)
	cleanup(t, func(ctx context.Context) error {
		_, err := Try(ctx, "", "service", "rm", name)
		if err != nil && strings.Contains(err.Error(), "not found") {
			err = nil // the test did it
		}
		return err
	})
}

func cleanup(t testing.TB, do func(context.Context) error) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := do(ctx); err != nil {
			t.Error(err)
		}
	})
}

// Image builds an image that holds nothing but the static program of a Go package
// as its entry point, and lines of a Dockerfile. It stays, for the next run.
func Image(t testing.TB, name, pkg string, lines ...string) {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "app"), pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	file := "FROM scratch\nCOPY app /app\nENTRYPOINT [\"/app\"]\n" + strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	build = exec.CommandContext(t.Context(), "docker", "build", "-q", "-t", name, dir)
	build.Env = append(os.Environ(), "DOCKER_BUILDKIT=0") // Debian's has no buildx
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("docker build: %v\n%s", err, out)
	}
}

// Dir is a directory that containers may mount: below a test's own, others may not
// pass.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pawl-docker-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what a container wrote may be another user's
	return dir
}

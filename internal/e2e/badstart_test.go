package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
)

// pawl runs the command line as people do.
type pawl struct {
	binary string
	dir    string // of pawl.yaml
}

func buildPawl(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "pawl")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "pawl.dev/cmd/pawl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// plainYAML is a configuration without a fault. Nothing listens where its
// database should be.
const plainYAML = `nats: {listen: "%s"}
telemetry: {metrics: "127.0.0.1:0"}
environments:
  test: {rotate_every: 90d}
clusters:
  main:
    environment: test
    admin: {user: pawl_admin, password_file: admin.password}
    nodes:
      primary: {host: 127.0.0.1, port: 1}
credentials:
  app:
    cluster: main
    role: app
    strategy: alternating
    publish:
      - dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}
`

func (p pawl) write(t *testing.T, yaml string) {
	t.Helper()
	write(t, filepath.Join(p.dir, "pawl.yaml"), yaml)
}

func (p pawl) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.binary, args...)
	cmd.Dir = p.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// fails runs pawl, and fails the test unless it ends with the code, says all of
// the words in one message, and prints no result.
func (p pawl) fails(t *testing.T, code int, says []string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := p.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) || exit.ExitCode() != code || !holdsAll(stderr.String(), says) || stdout.Len() > 0 {
		t.Errorf("pawl %s: %v, want exit code %d and %q; it printed\n%s%s", strings.Join(args, " "), err, code, says, stdout.String(), stderr.String())
	}
	if n := strings.Count(strings.TrimSpace(stderr.String()), "\n"); n > 0 && code != 2 { // a configuration's faults are all told
		t.Errorf("pawl %s: %d lines instead of one message:\n%s", strings.Join(args, " "), n+1, stderr.String())
	}
}

// up runs `pawl up` until stop, which returns how it ended.
func (p pawl) up(t *testing.T) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.command(ctx, "up")
	out, in := io.Pipe()
	cmd.Stderr = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if cmd.ProcessState.ExitCode() == 0 {
			err = nil // ended because it was told to
		}
		ended <- err
		_ = in.Close() // never fails
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "pawl is up") {
		t.Logf("pawl up: %s", lines.Text())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until it ends
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// tree is every file below dir but those named, with its content.
func tree(t *testing.T, dir string, except ...string) state {
	t.Helper()
	s := state{}
	for _, p := range files("file", dir, func(path string) bool { return slices.Contains(except, filepath.Base(path)) }) {
		content, err := p.read()
		if err != nil {
			t.Fatal(err)
		}
		s.set(p.name, content)
	}
	return s
}

func TestFaultsOfTheConfigurationEndWithExitCodeTwoAndNoFile(t *testing.T) {
	t.Parallel()
	p := pawl{buildPawl(t), t.TempDir()}
	yaml := fmt.Sprintf(plainYAML, "127.0.0.1:1")
	file := filepath.Join(p.dir, "pawl.yaml")
	for name, f := range map[string]struct {
		old, new string // what is replaced
		says     []string
	}{
		"unknown key":                     {"    role: app\n", "    roll: app\n", []string{"pawl.yaml:14: credentials.app.roll: unknown key", `the nearest known key is "role"`}},
		"missing role":                    {"    role: app\n", "", []string{"pawl.yaml:12: credentials.app.role: is missing"}},
		"unknown cluster":                 {"cluster: main", "cluster: mian", []string{"pawl.yaml:13: credentials.app.cluster:", "mian", "main"}},
		"password in the file":            {"password_file: admin.password", "password: secret", []string{"pawl.yaml:8: clusters.main.admin.password: passwords never stand in this file: use password_file or password_env"}},
		"no user beside the new password": {"user: APP_USER, ", "", []string{"pawl.yaml:17: ", "alternating changes the user name too", "add the key user, or dsn, or use strategy in-place"}},
		"a file for a password alone":     {"dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}", "file: {path: password, format: password}", []string{"pawl.yaml:17: ", "this file would hold the password alone: use format dsn or json, or strategy in-place"}},
		"an unknown strategy":             {"alternating", "alternate", []string{"pawl.yaml:15: credentials.app.strategy:", "alternating"}},
		"broken YAML":                     {"environments:", "environments: [", []string{"pawl.yaml:", "is not YAML"}},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(yaml, f.old) {
				t.Fatalf("no %q to replace", f.old)
			}
			p.write(t, strings.Replace(yaml, f.old, f.new, 1))
			p.fails(t, 2, f.says, "up")
			p.fails(t, 2, f.says, "rotate", "app")
			p.fails(t, 2, f.says, "init")
		})
	}
	t.Run("no file", func(t *testing.T) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		p.fails(t, 2, []string{"pawl.yaml: file does not exist: run `pawl init` to write one, or name yours with -c FILE"}, "up")
		p.fails(t, 2, []string{"elsewhere.yaml: file does not exist"}, "-c", "elsewhere.yaml", "plan", "app")
	})
	t.Run("an empty file", func(t *testing.T) {
		p.write(t, "# nothing\n")
		p.fails(t, 2, []string{"pawl.yaml: is empty: run `pawl init` to fill it in"}, "up")
	})
	t.Run("a folder", func(t *testing.T) {
		p.fails(t, 2, []string{"cannot be read: is a directory"}, "-c", p.dir, "up")
	})
	t.Run("no keys", func(t *testing.T) {
		p.write(t, yaml)
		p.fails(t, 2, []string{"NATS key", "`pawl init` makes it"}, "up")
		p.fails(t, 2, []string{"operator.nk", "`pawl init` makes it"}, "rotate", "app")
	})
	t.Run("no such credential", func(t *testing.T) {
		p.fails(t, 2, []string{`"APP" is no credential`}, "rotate", "APP")
	})
	if made := tree(t, p.dir, "pawl.yaml", "lock"); len(made) > 0 {
		t.Errorf("left behind: %v", made)
	}
}

func TestSecondUpLeavesTheStoreAlone(t *testing.T) {
	t.Parallel()
	p := pawl{buildPawl(t), t.TempDir()}
	write(t, filepath.Join(p.dir, "admin.password"), "x")
	write(t, filepath.Join(p.dir, ".env"), "APP_USER=app\nAPP_PASSWORD=x\n")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	p.write(t, fmt.Sprintf(plainYAML, address))
	inv, err := inventory.Load(filepath.Join(p.dir, "pawl.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := embedded.CreateKeys(inv); err != nil {
		t.Fatal(err)
	}
	p.fails(t, 1, []string{"nats.listen", address, "address already in use", "name a free address in pawl.yaml"}, "up")
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	p.fails(t, 1, []string{address}, "rotate", "app") // nobody is there

	stop := p.up(t)
	notAdopted := []string{"app is not adopted: run `pawl adopt app` first"}
	inUse := []string{"data_dir", inv.DataDir, "is in use by another `pawl up`: stop that one, or name another data_dir"}
	p.fails(t, 1, inUse, "up")
	p.fails(t, 5, notAdopted, "rotate", "app")
	p.fails(t, 5, []string{"connection refused"}, "adopt", "app")
	moved := pawl{p.binary, t.TempDir()} // another address, the same data
	moved.write(t, fmt.Sprintf("data_dir: %q\nkeys_dir: %q\n", inv.DataDir, inv.KeysDir)+fmt.Sprintf(plainYAML, "127.0.0.1:1"))
	moved.fails(t, 1, inUse, "up")
	p.fails(t, 5, notAdopted, "rotate", "app")
	if err := stop(); err != nil {
		t.Errorf("pawl up ended by SIGTERM: %v", err)
	}

	stop = p.up(t)
	client, err := (&site.Site{Inventory: inv}).Operator()
	if err != nil {
		t.Fatal(err)
	}
	defer client.NATS.Close()
	answers, err := client.Stream(t.Context(), bus.StreamAnswer)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := answers.Info(t.Context()); err != nil || info.State.Msgs != 3 {
		t.Errorf("of the 3 answers that were stored, there are %+v (%v)", info, err)
	}
	p.fails(t, 5, notAdopted, "rotate", "app")
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// Package consumer is a real application for the tests to restart: the test
// binary, run again. It writes a pid file and a journal, reloads on HUP, ends on
// TERM, and is healthy once it has reloaded.
package consumer

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pawl.dev/services/restarter/internal/health"
)

const mode = "run-as-consumer"

// Main is what TestMain calls: it runs the tests, or is the application.
func Main(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == mode {
		if err := run(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Files of a consumer, in its own folder.
const (
	pidFile = "consumer.pid"
	journal = "journal"
	address = "address"
)

func run(dir string) error {
	// A minute is longer than any test: none is left behind by a failed run.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGTERM)
	log, err := os.OpenFile(filepath.Join(dir, journal), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	var reloaded atomic.Bool
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !reloaded.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	session, _ := syscall.Getpgid(0)
	fmt.Fprintf(log, "start %d leader=%t env=%s\n", os.Getpid(), session == os.Getpid(), strings.Join(os.Environ(), " "))
	if err := write(dir, address, listener.Addr().String()); err != nil {
		return err
	}
	if err := write(dir, pidFile, strconv.Itoa(os.Getpid())+"\n"); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s := <-signals:
			reloaded.Store(s == syscall.SIGHUP)
			fmt.Fprintln(log, s)
			if s == syscall.SIGTERM {
				return os.Remove(filepath.Join(dir, pidFile))
			}
		}
	}
}

func write(dir, name, content string) error {
	temporary := filepath.Join(dir, name+".new")
	if err := os.WriteFile(temporary, []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}

// Consumer is one folder's application, running or not.
type Consumer struct{ Dir, PIDFile string }

// New returns one that does not run yet. Whatever its pid file or journal name
// is ended with the test.
func New(t *testing.T) *Consumer {
	dir := t.TempDir()
	c := &Consumer{Dir: dir, PIDFile: filepath.Join(dir, pidFile)}
	t.Cleanup(func() {
		for _, line := range c.Journal() {
			var pid int
			if n, _ := fmt.Sscanf(line, "start %d", &pid); n == 1 && c.owns(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	return c
}

// Argv starts it.
func (c *Consumer) Argv() []string { return []string{os.Args[0], mode, c.Dir} }

// Start starts it, waits until it is up, and reaps it when it ends.
func (c *Consumer) Start(t *testing.T) *Consumer {
	t.Helper()
	argv := c.Argv()
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	Eventually(t, "the consumer's pid file", func() bool { return c.PID() == cmd.Process.Pid })
	return c
}

// PID is what its pid file says; 0 where there is none.
func (c *Consumer) PID() int {
	content, _ := os.ReadFile(c.PIDFile)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(content)))
	return pid
}

// Health is where it answers 503 until it has reloaded, 200 afterwards.
func (c *Consumer) Health(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(c.Dir, address))
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + string(content) + "/healthz"
}

// Journal is what happened to it: starts and signals.
func (c *Consumer) Journal() []string {
	content, _ := os.ReadFile(filepath.Join(c.Dir, journal))
	return strings.FieldsFunc(string(content), func(r rune) bool { return r == '\n' })
}

// Count counts the journal's lines with that prefix.
func (c *Consumer) Count(prefix string) int {
	n := 0
	for _, line := range c.Journal() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

// Alive counts its processes that are running.
func (c *Consumer) Alive() int {
	n := 0
	for _, line := range c.Journal() {
		var pid int
		if read, _ := fmt.Sscanf(line, "start %d", &pid); read == 1 && c.owns(pid) {
			n++
		}
	}
	return n
}

// owns reports whether pid is still a process of this folder's consumer. The
// command line of one that has exited is empty.
func (c *Consumer) owns(pid int) bool {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.Contains(string(cmdline), c.Dir)
}

// Eventually polls until the condition holds; the test fails where it does not.
func Eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := health.Await(ctx, 5*time.Millisecond, func(context.Context) error {
		if !holds() {
			return fmt.Errorf("not yet: %s", what)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

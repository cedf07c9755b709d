package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"pawl.dev/internal/saga"
)

// Fleet runs the embedded NATS server and N replicas of every service as
// processes of their own, and starts each one again when it dies.
type Fleet struct {
	Logs   string // directory of their output
	Faults string // directory of orders to die, see internal/fault

	ctx       context.Context
	stop      context.CancelFunc
	wait      sync.WaitGroup
	mu        sync.Mutex
	processes map[string]*exec.Cmd
	programs  map[string]string // what each process runs from its next start on
	deaths    int
	metrics   map[string]string // address of /metrics, by process
}

// StartFleet starts the processes. deadline caps every step's deadline.
func (s *Site) StartFleet(ctx context.Context, binaries string, replicas int, ackWait, deadline time.Duration) (*Fleet, error) {
	f := &Fleet{Logs: filepath.Join(s.Dir, "logs"), Faults: filepath.Join(s.Dir, "faults"), processes: map[string]*exec.Cmd{}, programs: map[string]string{}, metrics: map[string]string{}}
	f.ctx, f.stop = context.WithCancel(ctx)
	for _, dir := range []string{f.Logs, f.Faults} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.startBus(f, binaries, ackWait); err != nil {
		f.Stop()
		return nil, err
	}
	environment := []string{"PAWL_FAULTS=" + f.Faults, "PAWL_DEADLINE=" + deadline.String()}
	for _, service := range saga.Services {
		for i := range replicas {
			name := fmt.Sprintf("%s-%d", service, i+1)
			port, err := freePort()
			if err != nil {
				return nil, err
			}
			f.metrics[name] = fmt.Sprintf("127.0.0.1:%d", port)
			f.keep(name, filepath.Join(binaries, service), []string{"-c", s.File, "-metrics", f.metrics[name]}, environment)
		}
	}
	return f, nil
}

// keep starts a process and starts it again whenever it ends.
func (f *Fleet) keep(name, binary string, args, environment []string) {
	f.mu.Lock()
	f.programs[name] = binary
	f.mu.Unlock()
	f.wait.Go(func() {
		for f.ctx.Err() == nil {
			if err := f.once(name, args, environment); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			select { // a process that cannot start must not be started in a tight loop
			case <-f.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}

func (f *Fleet) once(name string, args, environment []string) error {
	log, err := os.OpenFile(filepath.Join(f.Logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	f.mu.Lock()
	binary := f.programs[name]
	f.mu.Unlock()
	cmd := exec.CommandContext(f.ctx, binary, args...)
	cmd.Cancel = func() error { _ = cmd.Process.Signal(syscall.SIGCONT); return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	f.mu.Lock()
	f.processes[name] = cmd
	f.mu.Unlock()
	err = cmd.Wait()
	f.mu.Lock()
	f.deaths++
	f.mu.Unlock()
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() > 0 {
		fmt.Fprintf(log, "exit %d\n", exit.ExitCode())
	}
	return nil
}

// Signal sends a signal to a process by name, such as "natsd" or "verifier-2".
func (f *Fleet) Signal(name string, signal syscall.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	cmd, ok := f.processes[name]
	if !ok {
		return fmt.Errorf("no process %s", name)
	}
	return cmd.Process.Signal(signal)
}

// Metrics is the address of each process's /metrics.
func (f *Fleet) Metrics() map[string]string { return f.metrics }

// Died is how many processes have ended so far.
func (f *Fleet) Died() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.deaths
}

// Names lists the processes.
func (f *Fleet) Names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name := range f.processes {
		names = append(names, name)
	}
	return names
}

// Continue wakes every stopped process.
func (f *Fleet) Continue() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, cmd := range f.processes {
		_ = cmd.Process.Signal(syscall.SIGCONT) // it may have died
	}
}

// Order has the next process that reaches the point of the credential killed
// (what "KILL") or stopped ("STOP").
func (f *Fleet) Order(credential, point, what string) error {
	return os.WriteFile(f.order(credential, point), []byte(what), 0o600)
}

// Withdraw takes an order back, unless somebody has taken it: then Hit reports
// so from now on.
func (f *Fleet) Withdraw(credential, point string) {
	order := f.order(credential, point)
	if os.Remove(order) == nil {
		return
	}
	for range 10_000 { // between taking it and saying so; who is killed there never does
		if _, err := os.Stat(order + ".taken"); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// Hit reports whether the order was carried out.
func (f *Fleet) Hit(credential, point string) bool {
	_, err := os.Stat(f.order(credential, point) + ".hit")
	return err == nil
}

func (f *Fleet) order(credential, point string) string {
	return filepath.Join(f.Faults, credential+"@"+strings.ReplaceAll(point, "/", "_"))
}

// Stop ends all processes and waits for them.
func (f *Fleet) Stop() {
	f.Continue()
	f.stop()
	f.wait.Wait()
}

// Stopped returns the process that carried out an order to stop.
func (f *Fleet) Stopped(credential, point string) (pid int, at time.Time, err error) {
	hit := f.order(credential, point) + ".hit"
	raw, err := os.ReadFile(hit)
	if err != nil {
		return 0, at, fmt.Errorf("nobody came by %s", point)
	}
	info, err := os.Stat(hit)
	if err != nil {
		return 0, at, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(raw)))
	return pid, info.ModTime(), err
}

// Wake continues a process that was stopped at a time, and returns once it has
// logged something later that holds the text: it has seen that the world went
// on without it. Another drill may have woken it before.
func (f *Fleet) Wake(ctx context.Context, pid int, stopped time.Time, text string) error {
	name := ""
	f.mu.Lock()
	for n, cmd := range f.processes {
		if cmd.Process.Pid == pid {
			name = n
		}
	}
	f.mu.Unlock()
	if name == "" {
		return fmt.Errorf("process %d is no longer one of the fleet", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		log, err := os.ReadFile(filepath.Join(f.Logs, name+".log"))
		if err != nil {
			return err
		}
		if saidSince(string(log), stopped, text) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s was woken and says nothing of %s: %w", name, text, ctx.Err())
		case <-tick.C:
		}
	}
}

// saidSince reports whether a JSON line that is later than that holds the text.
func saidSince(log string, since time.Time, text string) bool {
	for line := range strings.Lines(log) {
		var said struct{ Time time.Time }
		if strings.Contains(line, text) && json.Unmarshal([]byte(line), &said) == nil && said.Time.After(since) {
			return true
		}
	}
	return false
}

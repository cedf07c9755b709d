package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
)

// program is what runs as `pawl up`: pawl itself, or, where its CPU is to be
// profiled, this program, since pawl has no profiler built in.
type program struct{ path, profile string }

func profiled(file string) (b program, err error) {
	if b.profile, err = filepath.Abs(file); err == nil {
		b.path, err = os.Executable()
	}
	return b, err
}

func (b program) arguments(file string) []string {
	if b.profile != "" {
		return []string{"-up", file, "-cpuprofile", b.profile}
	}
	return []string{"up", "-c", file}
}

// profiledUp is `pawl up`, profiled from the moment it is up.
func profiledUp(ctx context.Context, file, profile string) error {
	inv, err := inventory.Load(file)
	if err != nil {
		return err
	}
	out, err := os.Create(profile)
	if err != nil {
		return err
	}
	defer out.Close()
	defer pprof.StopCPUProfile()
	var failed error
	err = embedded.Up(ctx, embedded.UpOptions{Inventory: inv, Log: os.Stderr, Level: slog.LevelWarn, Ready: func() {
		failed = pprof.StartCPUProfile(out)
		fmt.Fprintln(os.Stderr, readyLine)
	}})
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, failed)
}

// readyLine begins the line by which `pawl up` says that it is.
const readyLine = "pawl is up"

// process is a running `pawl up`.
type process struct {
	cmd      *exec.Cmd
	took     time.Duration // from the start of the process to readyLine
	warnings atomic.Int64  // lines it has logged
	ended    chan struct{}
	err      error // of Wait; read it after ended
}

// pawlUp starts Pawl, and waits until it is up.
func (p *part) pawlUp(s *site.Site) *process {
	up := &process{cmd: exec.Command(p.path, p.arguments(s.File)...), ended: make(chan struct{})}
	up.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr := must(up.cmd.StderrPipe())
	began := time.Now()
	check(up.cmd.Start())
	p.later(func() error { p.warnings += up.warnings.Load(); return up.stop() })
	ready := make(chan time.Time, 1)
	go func() {
		up.follow(stderr, ready)
		up.err = up.cmd.Wait()
		close(up.ended)
	}()
	select {
	case at := <-ready:
		up.took = at.Sub(began)
	case <-up.ended:
		check(errors.New("pawl ended at its start"))
	case <-p.Done():
		check(p.Err())
	}
	return up
}

// follow reads what pawl says: that it is ready, and then nothing but trouble.
func (p *process) follow(stderr io.Reader, ready chan<- time.Time) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), readyLine) {
			ready <- time.Now()
			continue
		}
		p.warnings.Add(1)
		progress("pawl: %s", lines.Text())
	}
	_, _ = io.Copy(io.Discard, stderr) // a line too long to scan must not block pawl
}

// stop ends the process and waits for it.
func (p *process) stop() error {
	select {
	case <-p.ended:
		return fmt.Errorf("pawl ended by itself: %w", p.err)
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return p.err
	case <-time.After(15 * time.Second):
		err := p.cmd.Process.Kill()
		<-p.ended
		return errors.Join(errors.New("pawl did not end on SIGTERM"), err)
	}
}

// resident is the memory of a process, in bytes.
type resident struct{ Now, Anonymous, Peak int64 }

func residentOf(pid int) (m resident, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		into := map[string]*int64{"VmRSS": &m.Now, "RssAnon": &m.Anonymous, "VmHWM": &m.Peak}[name]
		if into == nil {
			continue
		}
		kilobytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return m, fmt.Errorf("%s of /proc: %w", name, err)
		}
		*into = kilobytes << 10
	}
	return m, nil
}

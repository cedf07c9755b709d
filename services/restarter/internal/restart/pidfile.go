package restart

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/inventory"
)

// clockSlack is by how much two clocks that should agree may not: file system
// and kernel, or the bus's host and this one.
const clockSlack = time.Second

// errNotRunning is wrapped where the pid file names no process of the consumer.
var errNotRunning = errors.New("not running: start it, or correct pid_file")

// process is a live process. Its handle is a pidfd: whatever becomes of the
// number, no other process can be signalled through it.
type process struct {
	pid     int
	started time.Time
	handle  *os.Process
}

// fromPIDFile finds the process that wrote the pid file. A process that started
// after the file was written is a stranger with a reused number, and not it. Nor is
// one of another user: see mayName.
func fromPIDFile(of inventory.Process) (*process, error) {
	path := of.PIDFile
	n, err := readNote(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("pid file %s is missing: %w", path, errNotRunning)
	case err != nil:
		return nil, fmt.Errorf("pid file %s: %w", path, err)
	}
	pid, err := parsePID(n.content)
	if err != nil {
		return nil, fmt.Errorf("pid file %s: %w", path, err)
	}
	p, err := open(pid)
	if err != nil {
		return nil, fmt.Errorf("pid file %s: process %d: %w", path, pid, err)
	}
	if err := n.mayName(p, of.User); err != nil {
		p.release()
		return nil, fmt.Errorf("pid file %s: %w", path, err)
	}
	if written := time.Unix(n.info.Mtim.Unix()); p.started.After(written.Add(clockSlack)) {
		p.release()
		return nil, fmt.Errorf("pid file %s is stale: process %d started at %s, after the file was written at %s: %w",
			path, pid, p.started.Format(time.RFC3339), written.Format(time.RFC3339), errNotRunning)
	}
	return p, nil
}

// parsePID reads the first line, as postmaster.pid has more of them. Numbers
// that would signal groups, init or Pawl itself are refused; 1 is what an
// application writes that runs in a container of its own.
func parsePID(content string) (int, error) {
	first, _, _ := strings.Cut(strings.TrimSpace(content), "\n")
	if first == "" {
		return 0, errors.New("empty")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	switch {
	case err != nil:
		return 0, errors.New("its first line is not a number")
	case pid <= 1:
		return 0, fmt.Errorf("%d is no application's process id on this host", pid)
	case pid == os.Getpid():
		return 0, fmt.Errorf("%d is Pawl itself", pid)
	}
	return pid, nil
}

// open pins the process first and looks at it afterwards, so that what is
// looked at is what will be signalled.
func open(pid int) (*process, error) {
	handle, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, handle: handle}
	if err = p.signal(0); err == nil {
		err = p.look()
	}
	if err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

// signal sends one; 0 sends none and reports whether one could be sent.
func (p *process) signal(s syscall.Signal) error {
	err := p.handle.Signal(s)
	switch {
	case errors.Is(err, os.ErrProcessDone):
		return fmt.Errorf("no such process: %w", errNotRunning)
	case errors.Is(err, os.ErrPermission):
		return errors.New("not permitted to signal it: run the restarter as the same user, or give it CAP_KILL")
	}
	return err
}

// look reads when the process started. One that has exited and only waits for
// its parent to notice counts as gone.
func (p *process) look() error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return fmt.Errorf("cannot tell when it started: %w", err)
	}
	// proc(5): pid (name) state … ; the name may hold anything, so from its end.
	_, rest, _ := strings.Cut(string(stat[max(strings.LastIndexByte(string(stat), ')'), 0):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return errors.New("cannot tell when it started: /proc/PID/stat is not as proc(5) says")
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return fmt.Errorf("has exited: %w", errNotRunning)
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64) // field 22, starttime
	if err != nil {
		return fmt.Errorf("cannot tell when it started: %w", err)
	}
	// Not /proc/uptime: LXC shows a container its own there, but not in stat.
	var sinceBoot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &sinceBoot); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	const tick = time.Second / 100 // USER_HZ, 100 wherever Go runs on Linux
	p.started = time.Now().Add(time.Duration(ticks)*tick - time.Duration(sinceBoot.Nano()))
	return nil
}

// gone reports whether the process has exited.
func (p *process) gone() bool {
	return errors.Is(p.signal(0), errNotRunning) || errors.Is(p.look(), errNotRunning)
}

func (p *process) release() { _ = p.handle.Release() }

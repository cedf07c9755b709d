package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/pgserver"
)

// processes are those whose work is compared. What CPU a rotation needs bounds
// how many there can be, and depends less than they do on what else the machine
// does.
type processes struct{ postgres, pawl int }

// cpu is what CPU time the processes have had.
type cpu struct{ postgres, pawl, bench time.Duration }

// postmaster returns the server's process id, of its own pid file.
func postmaster(server *pgserver.Server) (int, error) {
	raw, err := os.ReadFile(filepath.Join(server.Dir, "data", "postmaster.pid"))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	return strconv.Atoi(strings.TrimSpace(first))
}

func (p processes) cpu() (c cpu, err error) {
	if c.pawl, err = used(p.pawl); err != nil {
		return c, err
	}
	if c.postgres, err = used(p.postgres); err != nil {
		return c, err
	}
	backends, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.postgres))
	if err != nil {
		return c, err
	}
	for field := range strings.FieldsSeq(string(backends)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return c, err
		}
		backend, err := used(pid)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it may have ended
			return c, err
		}
		c.postgres += backend
	}
	var self unix.Rusage
	err = unix.Getrusage(unix.RUSAGE_SELF, &self)
	c.bench = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return c, err
}

// used is a process's own CPU time and that of its children that have ended.
func used(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// pid (name) state parent …: the name may hold anything, so from its end.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	const first, last = 11, 14 // utime stime cutime cstime
	const tick = 10 * time.Millisecond
	var all time.Duration
	for _, field := range fields[first : last+1] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		all += time.Duration(ticks) * tick
	}
	return all, nil
}

func (c cpu) minus(b cpu) cpu {
	return cpu{c.postgres - b.postgres, c.pawl - b.pawl, c.bench - b.bench}
}

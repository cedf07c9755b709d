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
type processes struct {
	postgres []int // postmasters
	pawl     int
}

// cpu is what CPU time the processes have had.
type cpu struct{ postgres, pawl, bench time.Duration }

// postmaster returns the server's process id, of its own pid file.
func postmaster(server *pgserver.Server) (pid int, err error) {
	raw, err := os.ReadFile(filepath.Join(server.Dir, "data", "postmaster.pid"))
	if err == nil {
		_, err = fmt.Sscan(string(raw), &pid) // its first line
	}
	return pid, err
}

func (p processes) cpu() cpu {
	c := cpu{pawl: must(used(p.pawl))}
	for _, pid := range p.postgres {
		c.postgres += must(usedByServer(pid))
	}
	var self unix.Rusage
	check(unix.Getrusage(unix.RUSAGE_SELF, &self))
	c.bench = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return c
}

// usedByServer is the CPU time of a postmaster and all its processes.
func usedByServer(postmaster int) (time.Duration, error) {
	all, err := used(postmaster)
	if err != nil {
		return 0, err
	}
	backends, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", postmaster))
	if err != nil {
		return 0, err
	}
	for field := range strings.FieldsSeq(string(backends)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return 0, err
		}
		backend, err := used(pid)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it may have ended
			return 0, err
		}
		all += backend
	}
	return all, nil
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

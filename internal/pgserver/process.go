package pgserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// process is a child that ends with us.
type process struct {
	pid   int
	ended chan struct{} // closed after the process was waited for
	err   error         // of Wait; read it after ended
}

// startProcess starts cmd from a thread of its own that lives as long as the
// child: Pdeathsig is sent when the thread ends, not the process.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.ended)
		}
	}()
	return p, <-started
}

func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// gone reports whether all have ended; who reaps them does not matter.
func gone(pids []int) bool {
	for _, pid := range pids {
		if state, _ := stateOf(pid); state != "" && state != "Z" {
			return false
		}
	}
	return true
}

// stateOf returns a process's state, as in ps, and its parent; "" if there is none.
func stateOf(pid int) (state string, parent int) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0 // ended meanwhile
	}
	// pid (name) state parent …; the name may hold anything, so read from its end.
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(fields) < 2 {
		return "", 0
	}
	parent, _ = strconv.Atoi(fields[1])
	return fields[0], parent
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) []int {
	var children []int
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		if child, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			if _, parent := stateOf(child); parent == pid {
				children = append(children, child)
			}
		}
	}
	return children
}

// account is whom PostgreSQL runs as. It refuses to run as root.
type account struct {
	uid, gid int
	switched bool
}

func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return &account{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL refuses to run as root, and there is no user postgres or nobody: %w", err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return &account{uid: uid, gid: gid, switched: true}, errors.Join(err1, err2)
}

func (a *account) attributes() *syscall.SysProcAttr {
	// SIGQUIT is PostgreSQL's immediate shutdown: the postmaster takes its
	// children along. A group of its own keeps a terminal's Ctrl-C from it.
	attributes := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	if a.switched {
		attributes.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return attributes
}

// own gives path and everything below it to the account.
func (a *account) own(path string) error {
	if !a.switched {
		return nil
	}
	return filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, a.uid, a.gid)
	})
}

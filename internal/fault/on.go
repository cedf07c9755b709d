//go:build faults

// Package fault marks the points at which the crash tests kill a service. This
// build, made with the tag `faults`, can die at any of them.
package fault

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Point ends the process with SIGKILL, or stops it with SIGSTOP, if the file
// CREDENTIAL@NAME exists in the directory named by PAWL_FAULTS. The file holds
// the signal: "KILL" or "STOP". It is renamed to CREDENTIAL@NAME.taken first, so
// that each order is carried out once, by one process, whose id is then in
// CREDENTIAL@NAME.hit.
func Point(credential, name string) {
	dir := os.Getenv("PAWL_FAULTS")
	if dir == "" {
		return
	}
	order := filepath.Join(dir, credential+"@"+strings.ReplaceAll(name, "/", "_"))
	what, err := os.ReadFile(order)
	if err != nil {
		return
	}
	taken := order + ".taken"
	if os.Rename(order, taken) != nil {
		return // another replica took it
	}
	_ = os.WriteFile(taken, []byte(strconv.Itoa(os.Getpid())), 0o600) // tells the test whom to wake
	_ = os.Rename(taken, order+".hit")
	if strings.TrimSpace(string(what)) == "STOP" {
		stop()
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // never reached the next line alive
}

// stop stops the process before the next line runs. A signal to the process
// would go to any thread, and this one run on until that one is scheduled: see
// tgkill(2) and signal(7).
func stop() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_, _, _ = syscall.Syscall(syscall.SYS_TGKILL, uintptr(syscall.Getpid()), uintptr(syscall.Gettid()), uintptr(syscall.SIGSTOP))
}

// Deadline returns d, or the duration in PAWL_DEADLINE where that is shorter:
// a test cannot wait for minutes.
func Deadline(d time.Duration) time.Duration {
	if limit, err := time.ParseDuration(os.Getenv("PAWL_DEADLINE")); err == nil {
		return min(d, limit)
	}
	return d
}

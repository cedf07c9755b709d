//go:build faults

// Package fault marks the points at which the crash tests kill a service. This
// build, made with the tag `faults`, can die at any of them.
package fault

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Point ends the process with SIGKILL, or stops it with SIGSTOP, if the file
// CREDENTIAL@NAME exists in the directory named by PAWL_FAULTS. The file holds
// the signal: "KILL" or "STOP". It is renamed to CREDENTIAL@NAME.hit first, so
// that each order is carried out once, by one process.
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
	if os.Rename(order, order+".hit") != nil {
		return // another replica took it
	}
	signal := syscall.SIGKILL
	if strings.TrimSpace(string(what)) == "STOP" {
		signal = syscall.SIGSTOP
	}
	_ = syscall.Kill(os.Getpid(), signal)
	if signal == syscall.SIGKILL {
		select {} // never reached the next line alive
	}
}

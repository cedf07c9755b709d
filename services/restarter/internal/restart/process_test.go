package restart

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/consumer"
)

func writePID(t *testing.T, content string, written time.Time) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.pid")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, written, written); err != nil {
		t.Fatal(err)
	}
	return path
}

// endedPID is the number of a process that has run and was reaped.
func endedPID(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(cmd.Process.Pid)
}

func TestStalePIDFileDoesNotSignalAStranger(t *testing.T) {
	stranger := consumer.New(t).Start(t)
	pid := stranger.PID()
	path := writePID(t, strconv.Itoa(pid), time.Now().Add(-time.Hour))

	err := For(inventory.Restart{Process: &inventory.Process{PIDFile: path, Signal: "HUP"}}).Restart(t.Context(), cause())
	if !errors.Is(err, errNotRunning) || !strings.Contains(err.Error(), "stale") {
		t.Errorf("got %v", err)
	}
	// Started anew without the stranger being stopped for it.
	p := &inventory.Process{PIDFile: path, Start: []string{"sh", "-c", "echo $$ > " + path + "; exec sleep 60"}, Timeout: 20 * time.Second}
	if err := For(inventory.Restart{Process: p}).Restart(t.Context(), cause()); err != nil {
		t.Error(err)
	}
	ours, err := fromPIDFile(inventory.Process{PIDFile: path})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.release()
	defer ours.handle.Kill()

	_ = syscall.Kill(pid, syscall.SIGUSR1) // arrives after whatever was sent before
	consumer.Eventually(t, "the stranger's own signal", func() bool { return stranger.Count("user") == 1 })
	if n := stranger.Count("hangup") + stranger.Count("terminated"); n != 0 || ours.pid == pid {
		t.Fatalf("the stranger was signalled: %q", stranger.Journal())
	}
}

func TestUselessPIDFilesAreClearErrors(t *testing.T) {
	now := time.Now()
	for want, path := range map[string]string{
		"is missing":      filepath.Join(t.TempDir(), "none.pid"),
		"not a number":    writePID(t, "api\n", now),
		"empty":           writePID(t, "\n", now),
		"no such process": writePID(t, endedPID(t), now),
		"-1 is no app":    writePID(t, "-1", now), // kill(-1) would signal everything
		" 1 is no app":    writePID(t, "1\n", now),
		"0 is no app":     writePID(t, "0", now),
		"Pawl itself":     writePID(t, strconv.Itoa(os.Getpid()), now),
	} {
		kind := For(inventory.Restart{Process: &inventory.Process{PIDFile: path, Signal: "HUP"}})
		_, checked := kind.Check(t.Context())
		for _, err := range []error{checked, kind.Restart(t.Context(), cause())} {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("want %q and the file's name, got: %v", want, err)
			}
		}
	}
}

func TestUnknownSignalIsRefused(t *testing.T) {
	kind := For(inventory.Restart{Process: &inventory.Process{Signal: "RELOAD"}})
	if _, err := kind.Check(t.Context()); err == nil || !strings.Contains(err.Error(), `"RELOAD"`) {
		t.Fatalf("got %v", err)
	}
}

func TestExitedProcessThatNobodyReapsCountsAsGone(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	p, err := open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	if p.gone() {
		t.Fatal("gone while it runs")
	}
	_ = stdin.Close()
	consumer.Eventually(t, "cat to end", p.gone)
}

// foreignPID is a process of another user: our own child where we may make
// one, else any that the machine has.
func foreignPID(t *testing.T) int {
	t.Helper()
	if os.Geteuid() == 0 {
		foreign := exec.Command("sleep", "60")
		foreign.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := foreign.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = foreign.Process.Kill(); _ = foreign.Wait() })
		return foreign.Process.Pid
	}
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		var stat unix.Stat_t
		pid, _ := strconv.Atoi(filepath.Base(folder))
		if unix.Stat(folder, &stat) == nil && pid > 1 && int(stat.Uid) != os.Geteuid() {
			return pid
		}
	}
	t.Fatal("no process of another user here: run this test as root")
	return 0
}

func TestForeignProcessIsNotPermitted(t *testing.T) {
	path := writePID(t, strconv.Itoa(foreignPID(t)), time.Now())
	answer := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with what it lost
		if err := dropCapabilities(); err != nil {
			answer <- err
			return
		}
		_, err := For(inventory.Restart{Process: &inventory.Process{PIDFile: path, Signal: "HUP"}}).Check(t.Context())
		answer <- err
	}()
	if err := <-answer; err == nil || !strings.Contains(err.Error(), "not permitted") {
		t.Fatalf("got %v", err)
	}
}

// dropCapabilities takes CAP_KILL and all others from this thread alone.
func dropCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData // version 3 takes two
	return unix.Capset(&header, &none[0])
}

func TestReplacedProcessIsDetachedAndKnowsNoSecretOfPawl(t *testing.T) {
	t.Setenv("PAWL_ADMIN", canary)
	c := consumer.New(t).Start(t)
	old := c.PID()
	p := &inventory.Process{PIDFile: c.PIDFile, Start: c.Argv(), Dir: c.Dir, Timeout: 20 * time.Second}
	if err := For(inventory.Restart{Process: p}).Restart(t.Context(), cause()); err != nil {
		t.Fatal(err)
	}
	started := c.Journal()[len(c.Journal())-1]
	if c.PID() == old || c.Count("terminated") != 1 || c.Alive() != 1 {
		t.Errorf("not replaced: %q", c.Journal())
	}
	if !strings.Contains(started, "leader=true") || !strings.Contains(started, "PAWL_ROTATION=r1") || strings.Contains(started, canary) {
		t.Errorf("journal: %q", started)
	}
	for fd := range 3 {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.PID(), fd)); to != "/dev/null" {
			t.Errorf("descriptor %d is %s", fd, to)
		}
	}
}

func TestProcessThatCrashLeftStoppedIsStartedOnce(t *testing.T) {
	c := consumer.New(t)
	p := &inventory.Process{PIDFile: c.PIDFile, Start: c.Argv(), Dir: c.Dir, Timeout: 20 * time.Second}
	why := cause()
	why.At = time.Now().Add(-time.Minute)
	for range 2 { // the second is a redelivery after the start
		if err := For(inventory.Restart{Process: p}).Restart(t.Context(), why); err != nil {
			t.Fatal(err)
		}
	}
	if c.Count("start") != 1 || c.Count("terminated") != 0 {
		t.Fatalf("journal: %q", c.Journal())
	}
}

func TestProcessThatIgnoresTermIsNotStartedTwice(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "app.pid")
	stubborn := exec.Command("sh", "-c", "trap '' TERM; echo $$ > "+path+".new; mv "+path+".new "+path+"; exec sleep 60")
	if err := stubborn.Start(); err != nil {
		t.Fatal(err)
	}
	defer stubborn.Wait()
	defer stubborn.Process.Kill()
	consumer.Eventually(t, "the pid file", func() bool { _, err := os.Stat(path); return err == nil })

	started := filepath.Join(dir, "started")
	p := &inventory.Process{PIDFile: path, Start: []string{"touch", started}, Timeout: 200 * time.Millisecond}
	err := For(inventory.Restart{Process: p}).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "still running after TERM") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(started); err == nil {
		t.Error("a second one was started beside it")
	}
}

func TestTwoRestartersDoNotStartTheSameProcess(t *testing.T) {
	c := consumer.New(t)
	p := inventory.Process{PIDFile: c.PIDFile, Start: c.Argv(), Dir: c.Dir, Timeout: 100 * time.Millisecond}
	unlock, err := replaced{p}.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	err = For(inventory.Restart{Process: &p}).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "another restarter is at work") {
		t.Errorf("got %v", err)
	}
	if n := c.Count("start"); n != 0 {
		t.Errorf("started %d", n)
	}
}

func TestStartThatDoesNotComeUpIsReportedAndNotLeftBehind(t *testing.T) {
	dir := t.TempDir()
	p := &inventory.Process{PIDFile: filepath.Join(dir, "app.pid"), Timeout: 20 * time.Second,
		Start: []string{"sh", "-c", "exit 3"}}
	err := For(inventory.Restart{Process: p}).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	p.Start, p.Dir, p.Timeout = []string{"sh", "-c", "echo $$ > other; exec sleep 60"}, dir, 500*time.Millisecond
	err = For(inventory.Restart{Process: p}).Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "app.pid is missing") {
		t.Errorf("got %v", err)
	}
	consumer.Eventually(t, "the failed start to be gone", func() bool {
		_, err := fromPIDFile(inventory.Process{PIDFile: filepath.Join(dir, "other")})
		return errors.Is(err, errNotRunning)
	})
}

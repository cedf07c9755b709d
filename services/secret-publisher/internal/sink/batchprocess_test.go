package sink

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// dieTogether is the process of the next test: it is killed at the last look of a
// replacement for all but number 0.
func dieTogether(path string) {
	const n = 6
	c := &crowd{T: new(testing.T), shared: sharings[0], path: path, release: make(chan struct{})}
	for i := range n {
		m := newMember(context.Background(), i)
		m.guard.Backup = func(_ context.Context, old []byte) error { return keep(path, i, old) }
		m.guard.StillDue = func(context.Context) error {
			if i == n-1 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			return nil
		}
		c.members = append(c.members, m)
	}
	c.start()
	c.finish()
}

// keep is a backup beside the file's folder, the first of its number only.
func keep(path string, i int, old []byte) error {
	name := filepath.Dir(path) + "-backup-" + strconv.Itoa(i)
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	return os.WriteFile(name, old, 0o600)
}

func TestKillBeforeTheOneReplacementLosesNoCredentialAndNoBackup(t *testing.T) {
	c := newCrowd(t, sharings[0], 6)
	original := get(t, c.path)
	cmd, _ := process(t, "together", c.path)
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatal(err)
	}
	first := c.after(func(i int) bool { return i == 0 })
	if get(t, c.path) != first || c.replaced() != 1 {
		t.Fatalf("the kill left\n%s", get(t, c.path))
	}
	for i, m := range c.members { // all are delivered again
		m.guard.Backup = func(_ context.Context, old []byte) error { return keep(c.path, i, old) }
	}
	c.members[0].guard.Backup = func(context.Context, []byte) error { t.Error("written once more"); return nil }
	release := lockOf(t, c.path)
	for i := range c.members {
		c.write(i)
	}
	awaitWaiting(c.path, len(c.members))
	release()
	c.finish()
	if m := c.members[0]; m.changed || m.err != nil {
		t.Errorf("what was in the file: changed %v, %v", m.changed, m.err)
	}
	c.members[0].changed = true // by the first process
	c.check(1, none)
	for i := range c.members {
		want := first
		if i == 0 {
			want = original
		}
		if got := get(t, filepath.Dir(c.path)+"-backup-"+strconv.Itoa(i)); got != want {
			t.Errorf("backup %d holds\n%s", i, got)
		}
	}
	// And once more, as if no acknowledgement had got through.
	for i, m := range c.members {
		if changed, err := c.sink(i).Write(t.Context(), m.want, Guard{}); changed || err != nil {
			t.Errorf("%d: changed %v, %v", i, changed, err)
		}
	}
	if n := c.replaced(); n != 0 {
		t.Errorf("replaced %d times for nothing", n)
	}
}

// lockOf locks the file's folder as another process would.
func lockOf(t *testing.T, path string) (release func()) {
	t.Helper()
	rival, err := openTarget(path)
	if err == nil {
		err = rival.lock(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return rival.close
}

// TestTwoProcessesUndoNothingOfEachOther: both write parts of one file, each for several
// credentials at the same time.
func TestTwoProcessesUndoNothingOfEachOther(t *testing.T) {
	c := newCrowd(t, sharings[0], 8)
	release := lockOf(t, c.path)
	cmd, out := process(t, "half", c.path)
	if !out.Scan() || out.Text() != "waiting" {
		t.Fatal(out.Text())
	}
	for i := range 4 {
		c.write(i)
	}
	awaitWaiting(c.path, 4)
	release()
	c.finish()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for i := 4; i < 8; i++ {
		c.members[i].changed = true // by the other process
	}
	c.check(2, none)
}

// writeHalf is the other process of that test.
func writeHalf(path string) {
	c := &crowd{T: new(testing.T), shared: sharings[0], path: path, release: make(chan struct{})}
	for i := range 8 {
		c.members = append(c.members, newMember(context.Background(), i))
	}
	for i := 4; i < 8; i++ {
		c.write(i)
	}
	awaitWaiting(path, 4)
	fmt.Println("waiting")
	c.finish()
	for _, m := range c.members[4:] {
		if m.err != nil || !m.changed {
			os.Exit(1)
		}
	}
	os.Exit(0)
}

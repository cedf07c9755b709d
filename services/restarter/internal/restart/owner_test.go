package restart

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/inventory"
)

const nobody = 65534

// processOf is a process of that user, which any signal ends.
func processOf(t *testing.T, uid uint32) (pid string) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("a process of another user (these tests run as root): %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return strconv.Itoa(cmd.Process.Pid)
}

// TestOwnerOfAPIDFileSignalsNobodyElsesProcess: an application that was broken into
// writes another's number, or has the path lead elsewhere.
func TestOwnerOfAPIDFileSignalsNobodyElsesProcess(t *testing.T) {
	roots, theirs := processOf(t, 0), processOf(t, nobody)
	folder := func(owner int) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "run")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	written := func(dir, pid string, owner int) string {
		t.Helper()
		path := filepath.Join(dir, "app.pid")
		if err := os.WriteFile(path, []byte(pid+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
		return path
	}
	linked := func(to string) string {
		t.Helper()
		path := filepath.Join(folder(nobody), "app.pid")
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const another = 1234
	others := filepath.Dir(written(folder(another), processOf(t, another), another))
	theirLink := folder(nobody) // in which a link leads to another application's folder
	if err := os.Symlink(others, filepath.Join(theirLink, "run")); err != nil {
		t.Fatal(err)
	}
	theirFolder := folder(nobody) // in which a link leads to a folder of root's
	if err := os.Symlink(filepath.Dir(written(folder(0), roots, 0)), filepath.Join(theirFolder, "run")); err != nil {
		t.Fatal(err)
	}
	rootsLink := filepath.Join(folder(0), "app") // root's, through their folder
	if err := os.Symlink(filepath.Join(theirFolder, "run"), rootsLink); err != nil {
		t.Fatal(err)
	}
	second := written(folder(nobody), roots, 0)
	if err := os.Link(second, filepath.Join(folder(0), "second")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path, user, want string
	}{
		"their own":                               {written(folder(nobody), theirs, nobody), "", ""},
		"root's":                                  {written(folder(nobody), roots, nobody), "", "belongs to nobody, and names process " + roots + " of root"},
		"root's, by a link to root's file":        {linked(written(folder(0), roots, 0)), "", "can put another's file in its place"},
		"root's, by a link in the path":           {filepath.Join(theirFolder, "run", "app.pid"), "", "can put another's file in its place"},
		"root's, by a second name":                {second, "", "can put another's file in its place"},
		"root's, by root's link through theirs":   {filepath.Join(rootsLink, "app.pid"), "", "can put another's file in its place"},
		"another application's, by a link":        {filepath.Join(theirLink, "run", "app.pid"), "", "can put another's file in its place"},
		"what root wrote where root alone writes": {written(folder(0), theirs, 0), "", ""},
		"what root wrote where they write":        {written(folder(nobody), theirs, 0), "", "process: {user: nobody, …}"},
		"the same, where pawl.yaml says whose":    {written(folder(nobody), theirs, 0), "nobody", ""},
		"root's, where pawl.yaml says whose":      {written(folder(nobody), roots, 0), "nobody", "belongs to root, not to user nobody"},
		"a user that is none":                     {written(folder(nobody), theirs, nobody), "no-such-user", "unknown user no-such-user: correct restart.process.user"},
	} {
		p, err := fromPIDFile(inventory.Process{PIDFile: c.path, User: c.user})
		if err == nil {
			p.release()
		}
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestPIDFileThatIsNoneStopsNobody: neither a pipe that nobody writes into, nor a
// file without end.
func TestPIDFileThatIsNoneStopsNobody(t *testing.T) {
	dir := t.TempDir()
	pipe, large := filepath.Join(dir, "pipe"), filepath.Join(dir, "large")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 1<<40); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{pipe: "is no file", dir: "is no file", "/dev/zero": "is no file", large: "larger than"} {
		if p, err := fromPIDFile(inventory.Process{PIDFile: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", path, p, err)
		}
	}
}

// TestPipeInPlaceOfTheFolderStopsNobody: it is locked before anything is bounded.
func TestPipeInPlaceOfTheFolderStopsNobody(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "run")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	r := replaced{inventory.Process{PIDFile: filepath.Join(pipe, "app.pid"), Start: []string{"true"}, Timeout: time.Second}}
	if err := r.Restart(t.Context(), cause()); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
}

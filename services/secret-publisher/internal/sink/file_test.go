package sink

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/inventory"
)

// The tests start this binary again as another process.
const roleVariable = "PAWL_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role, path, _ := strings.Cut(os.Getenv(roleVariable), ":"); role {
	case "locker":
		t, err := openTarget(path)
		if err == nil {
			err = t.lock(context.Background())
		}
		fmt.Println("locked", err)
		select {}
	case "together":
		dieTogether(path)
	case "half":
		writeHalf(path)
	case "writer":
		s := kinds[0].at(path)
		for i := 1; ; i++ {
			if _, err := s.Write(context.Background(), login(1+i%2), open); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("wrote")
		}
	}
	os.Exit(m.Run())
}

// process starts this binary in a role and returns its output, line by line.
func process(t *testing.T, role, path string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role+":"+path)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, bufio.NewScanner(out)
}

func TestLockOfAnotherProcessBlocksAndDiesWithIt(t *testing.T) {
	s, path := kinds[0].fresh(t)
	other, out := process(t, "locker", path)
	if !out.Scan() || out.Text() != "locked <nil>" {
		t.Fatal(out.Text())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockInterval)
	defer cancel()
	if _, err := s.Write(ctx, login(1), open); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "locked by another process") {
		t.Fatal(err)
	}
	if get(t, path) != kinds[0].content {
		t.Fatal("written without the lock")
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(t.Context(), login(1), open); err != nil {
		t.Fatal(err)
	}
	holds(t, s, login(1))
}

func TestLockIsHeldUntilTheGuardIsDone(t *testing.T) {
	s, path := kinds[0].fresh(t)
	guard := open
	guard.StillDue = func(context.Context) error {
		rival, err := openTarget(path)
		if err != nil {
			return err
		}
		defer rival.close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if rival.lock(ctx) == nil {
			return errors.New("another writer got in between the look and the rename")
		}
		return nil
	}
	if _, err := s.Write(t.Context(), login(1), guard); err != nil {
		t.Fatal(err)
	}
}

func TestKilledWriterLeavesOneLoginWhole(t *testing.T) {
	s, path := kinds[0].fresh(t)
	put(t, filepath.Join(filepath.Dir(path), ".pawl-left.tmp"), "half")
	for round := range 5 {
		writer, out := process(t, "writer", path)
		for range 1 + round*5 {
			if !out.Scan() || out.Text() != "wrote" {
				t.Fatal(out.Text())
			}
		}
		if err := writer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = writer.Wait() // killed
		got, err := s.Read(t.Context())
		if err != nil || login(1).in(got) != nil && login(2).in(got) != nil {
			t.Fatalf("round %d: torn: %v", round, err)
		}
	}
	put(t, filepath.Join(filepath.Dir(path), ".pawl-left.tmp"), "half")
	put(t, filepath.Join(filepath.Dir(path), ".pawl-notes"), "a person's own")
	if _, err := s.Write(t.Context(), login(3), open); err != nil {
		t.Fatal(err)
	}
	if got := list(t, filepath.Dir(path)); !slices.Equal(got, []string{".env", ".pawl-notes"}) {
		t.Fatalf("left: %v", got)
	}
}

func TestModeOwnerAndAttributesAreKept(t *testing.T) {
	s, path := kinds[0].fresh(t)
	// user:1:r-- beside the usual three; the mask is the group's bits.
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x01\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")
	for _, err := range []error{
		os.Chown(path, 12345, 54321),
		os.Chmod(path, 0o640),
		unix.Setxattr(path, "user.note", []byte("keep"), 0),
		unix.Setxattr(path, "system.posix_acl_access", acl, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Write(t.Context(), login(1), open); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 12345 || stat.Gid != 54321 || info.Mode() != 0o640 {
		t.Errorf("%d:%d %v", stat.Uid, stat.Gid, info.Mode())
	}
	for name, want := range map[string]string{"user.note": "keep", "system.posix_acl_access": string(acl)} {
		value := make([]byte, 100)
		if n, err := unix.Getxattr(path, name, value); err != nil || string(value[:n]) != want {
			t.Errorf("%s: %q, %v", name, value[:max(n, 0)], err)
		}
	}
}

func TestDefaultACLOfTheDirectoryOpensNothing(t *testing.T) {
	s, path := kinds[0].fresh(t)
	everybody := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\x01\x00\x00\x00" +
		"\x04\x00\x06\x00\xff\xff\xff\xff" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x06\x00\xff\xff\xff\xff")
	if err := unix.Setxattr(filepath.Dir(path), "system.posix_acl_default", everybody, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(t.Context(), login(1), open); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Getxattr(path, "system.posix_acl_access", nil); !errors.Is(err, unix.ENODATA) {
		t.Fatalf("an ACL of %d bytes was inherited: %v", n, err)
	}
}

func TestSymbolicLinkIsWrittenThrough(t *testing.T) {
	s, path := kinds[0].fresh(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := kinds[0].at(link).Write(t.Context(), login(1), open); err != nil {
		t.Fatal(err)
	}
	holds(t, s, login(1))
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink || len(list(t, filepath.Dir(link))) != 1 {
		t.Fatalf("the link is now %v, %v", info.Mode(), err)
	}
}

func TestEntriesOfOneFileAreOneSinkAndOthersTheirOwn(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	put(t, a, "")
	if err := os.Symlink(a, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	sinks := Of(&inventory.Credential{Publish: []inventory.Sink{
		{Dotenv: &inventory.Dotenv{Path: a, User: "U"}},
		{File: &inventory.File{Path: b}},
		{Dotenv: &inventory.Dotenv{Path: filepath.Join(dir, "link"), Password: "P"}},
	}})
	if len(sinks) != 2 || sinks[0].Name() != "dotenv:"+a || sinks[1].Name() != "file:"+b {
		t.Fatal(sinks)
	}
}

func TestMissingFileIsMadeWithItsMode(t *testing.T) {
	for _, k := range kinds[4:7] {
		path := filepath.Join(t.TempDir(), "new")
		s := k.at(path)
		if _, err := s.Check(t.Context(), login(1)); err != nil {
			t.Fatal(err)
		}
		if changed, err := s.Write(t.Context(), login(1), open); err != nil || !changed {
			t.Fatal(changed, err)
		}
		holds(t, s, login(1))
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
			t.Errorf("%s: %v, %v", k.name, info.Mode(), err)
		}
	}
	if text := get(t, func() string {
		path := filepath.Join(t.TempDir(), "new")
		if _, err := kinds[4].at(path).Write(t.Context(), login(1), open); err != nil {
			t.Fatal(err)
		}
		return path
	}()); text != "postgres://app_1:password1@127.0.0.1:5432/db" {
		t.Error(text)
	}
}

func TestMissingKeysAreAppendedOnlyWhereAllowed(t *testing.T) {
	k := kind{content: "A=1", entries: dotenvs(inventory.Dotenv{User: "U", Password: "P", DSN: "D", MissingKeysOK: true})}
	s, path := k.fresh(t)
	if _, err := s.Write(t.Context(), login(1), open); err != nil {
		t.Fatal(err)
	}
	if got := get(t, path); got != "A=1\nD=postgres://app_1:password1@127.0.0.1:5432/db\nU=app_1\nP=password1" {
		t.Fatalf("%q", got)
	}
	k.entries = dotenvs(inventory.Dotenv{User: "U", Password: "P"})
	s, path = k.fresh(t)
	if _, err := s.Write(t.Context(), login(1), open); !IsRefusal(err) || !strings.Contains(err.Error(), "U: no such key") || get(t, path) != k.content {
		t.Fatal(err)
	}
}

func TestEditorThatKnowsNoLockIsNotOverwritten(t *testing.T) {
	s, path := kinds[0].fresh(t)
	guard := open
	guard.StillDue = func(context.Context) error { put(t, path, "U=app\nP=before\nEDITED=1\n"); return nil }
	if _, err := s.Write(t.Context(), login(1), guard); err == nil || IsRefusal(err) {
		t.Fatal(err)
	}
	if _, err := s.Write(t.Context(), login(1), open); err != nil || !strings.Contains(get(t, path), "EDITED=1") {
		t.Fatal(err)
	}
}

func TestTrackedFileIsWarnedOf(t *testing.T) {
	s, path := kinds[0].fresh(t)
	git := func(args ...string) {
		cmd := exec.Command("git", append([]string{"-C", filepath.Dir(path)}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	warned := func(s Sink) bool {
		warnings, err := s.Check(t.Context(), login(1))
		if err != nil {
			t.Fatal(err)
		}
		return len(warnings) > 0
	}
	git("init", "-q")
	if warned(s) {
		t.Fatal("warned of a file that git does not track")
	}
	git("add", ".env")
	if !warned(s) {
		t.Fatal("no warning")
	}
	quiet := kind{entries: dotenvs(inventory.Dotenv{User: "U", Password: "P", AllowTracked: true})}
	if warned(quiet.at(path)) {
		t.Fatal("warned where it is allowed")
	}
}

// unprivileged runs f as nobody. The whole process is, until f returns: a file is written
// by another goroutine than the caller's.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	const keep, root, nobody = -1, 0, 65534
	if err := syscall.Setresuid(keep, nobody, keep); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setresuid(keep, root, keep); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

func TestFaultsOfTheFileAreRefusedBeforeAnythingIsTouched(t *testing.T) {
	for _, c := range []struct {
		name, says string
		nobody     bool
		spoil      func(path string) error
	}{
		{"missing", "does not exist", false, os.Remove},
		{"directory", "not a regular file", false, func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }},
		{"pipe", "not a regular file", false, func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) }},
		{"link to nothing", "link to nothing", false, func(p string) error { return errors.Join(os.Remove(p), os.Symlink(p+"x", p)) }},
		{"missing directory", "no such file", false, func(p string) error { return os.RemoveAll(filepath.Dir(p)) }},
		{"hard links", "2 hard links", false, func(p string) error { return os.Link(p, filepath.Join(filepath.Dir(p), "other")) }},
		{"unclosed quote", "line 1: opens a quote", false, func(p string) error { return os.WriteFile(p, []byte("X='\nU=a\nP=b\n"), 0o600) }},
		{"too large", "larger than", false, func(p string) error { return os.Truncate(p, 2<<20) }},
		{"unreadable", "permission denied", true, func(p string) error { return os.Chmod(filepath.Dir(p), 0o777) }},
		{"directory that cannot be written", "cannot write the directory", true, func(p string) error { return os.Chmod(p, 0o644) }},
		{"somebody else's", "belongs to user 0", true, func(p string) error { return errors.Join(os.Chmod(p, 0o644), os.Chmod(filepath.Dir(p), 0o777)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "pawl")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, ".env")
			put(t, path, kinds[0].content)
			if err := c.spoil(path); err != nil {
				t.Fatal(err)
			}
			s := kinds[0].at(path)
			guard := Guard{Backup: func(context.Context, []byte) error { return errors.New("backed up") }}
			var checked, written error
			try := func() {
				_, checked = s.Check(context.Background(), login(1))
				_, written = s.Write(context.Background(), login(1), guard)
			}
			if c.nobody {
				unprivileged(t, try)
			} else {
				try()
			}
			for _, err := range []error{checked, written} {
				if !IsRefusal(err) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "password1") {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

// inNamespace runs the calling test again in mount and user namespaces of its
// own, where it may mount, and where mounts end with it; true: this is there.
func inNamespace(t *testing.T) bool {
	if os.Getenv(roleVariable) == "namespace" {
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), roleVariable+"=namespace")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

func unmount(t *testing.T, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

func TestFullDiskFailsBeforeAnythingIsHalfWritten(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, dir)
	path := filepath.Join(dir, ".env")
	put(t, path, kinds[0].content)
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling: %v", err)
	}
	s := kinds[0].at(path)
	if _, err := s.Write(t.Context(), login(1), open); !errors.Is(err, unix.ENOSPC) || !IsRefusal(err) {
		t.Errorf("Write: %v", err)
	}
	// And where the space goes between the look and the write.
	target, err := openTarget(path)
	if err != nil {
		t.Fatal(err)
	}
	defer target.close()
	old, err := target.read()
	if err != nil {
		t.Fatal(err)
	}
	err = target.replace(append(old, "\nU=x\nP=y\n"...), 0, func() error { t.Error("half a file was about to be renamed"); return nil })
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("replace: %v", err)
	}
	if got := list(t, dir); get(t, path) != kinds[0].content || !slices.Equal(got, []string{".env", "ballast"}) {
		t.Errorf("left: %v", got)
	}
}

func TestMountsThatCannotBeReplacedAreRefused(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	_, path := kinds[0].fresh(t)
	inside := filepath.Join(t.TempDir(), "inside")
	put(t, inside, kinds[0].content)
	if err := unix.Mount(path, inside, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, inside)
	mounted := kinds[0].at(inside)
	if _, err := mounted.Write(t.Context(), login(1), open); !IsRefusal(err) || !strings.Contains(err.Error(), "mount the directory") {
		t.Errorf("bind-mounted file: %v", err)
	}
	// And on a kernel that does not tell beforehand.
	target, err := openTarget(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer target.close()
	if _, err := target.read(); err != nil {
		t.Fatal(err)
	}
	if err := target.replace([]byte("x"), 0, func() error { return nil }); !IsRefusal(err) || !strings.Contains(err.Error(), "mount the directory") {
		t.Errorf("rename over a mount: %v", err)
	}
	dir := filepath.Dir(path)
	if err := errors.Join(unix.Mount(dir, dir, "", unix.MS_BIND, ""), unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	defer unmount(t, dir)
	s := kinds[0].at(path)
	if _, err := s.Write(t.Context(), login(1), open); !IsRefusal(err) || !errors.Is(err, unix.EROFS) {
		t.Errorf("read-only mount: %v", err)
	}
	holds(t, s, before)
}

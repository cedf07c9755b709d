package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// ordinary tells a child of the test which installation it is to use.
const ordinary = "PAWL_E2E_ORDINARY"

// capSysAdmin lets a process mount, here in a namespace of its own.
const capSysAdmin = 21

// asOrdinaryUser runs the calling test again as a user whom file modes bind,
// also where the tests run as root, and who may mount, in namespaces that end
// with it. There it returns the installation, with no PostgreSQL of its own;
// here nil.
func asOrdinaryUser(t *testing.T, credentials []site.Credential) *site.Site {
	t.Helper()
	if file := os.Getenv(ordinary); file != "" {
		inv, err := inventory.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		node := inv.Clusters["main"].Nodes["primary"]
		password := strings.TrimSpace(text(t, filepath.Join(filepath.Dir(file), "admin.password")))
		return &site.Site{Dir: filepath.Dir(file), File: file, Inventory: inv,
			Postgres: &pgserver.Server{Host: node.Host, Port: node.Port, Superuser: "postgres", Password: secret.New(password)}}
	}
	s, err := site.New(t.Context(), t.TempDir(), startPostgres(t), "", credentials)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), ordinary+"="+s.File)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getegid(), Size: 1}},
		AmbientCaps: []uintptr{capSysAdmin}, Pdeathsig: syscall.SIGKILL,
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%v\n%s", err, out)
	}
	return nil
}

// chmod returns what gives a file a mode, below the credential's folder.
func chmod(name string, mode os.FileMode) func(*testing.T, *house, string) {
	return func(t *testing.T, h *house, c string) {
		t.Helper()
		if err := os.Chmod(filepath.Join(filepath.Dir(h.site.Env(c)), name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesThatCannotBeReadOrWrittenAreRefused(t *testing.T) {
	t.Parallel()
	faults := []fault{
		{name: "unreadable", says: []string{"secret-publisher: dotenv:", "unreadable/.env: ", "permission denied"}, spoil: chmod(".env", 0), mend: chmod(".env", 0o600)},
		{name: "folder-closed", says: []string{"folder-closed", "permission denied"}, spoil: chmod(".", 0), mend: chmod(".", 0o700)},
		{name: "folder-read-only", says: []string{"folder-read-only: files are replaced by renaming a new one over them, and Pawl cannot write the directory"}, spoil: chmod(".", 0o500), mend: chmod(".", 0o700)},
		{name: "disk-read-only", says: []string{"disk-read-only", "Pawl cannot write the directory: read-only file system"}, spoil: readOnly(true), mend: readOnly(false)},
		{name: "disk-full", says: []string{"disk-full: no space: ", " bytes free, "}, spoil: fill, mend: empty},
	}
	var credentials []site.Credential
	for _, f := range faults {
		credentials = append(credentials, site.Credential{Name: f.name, Strategy: "alternating"})
	}
	for _, name := range []string{"full-later", "read-only-later", "closed-later", "read-only-file"} {
		credentials = append(credentials, site.Credential{Name: name, Strategy: "in-place"})
	}
	s := asOrdinaryUser(t, credentials)
	if s == nil {
		return
	}
	for _, name := range []string{"disk-read-only", "disk-full", "full-later", "read-only-later"} {
		ownDisk(t, filepath.Dir(s.Env(name)))
	}
	h := openHouse(t, s)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			for _, action := range []pawlv1.Action{adopt, rotate} {
				h.refusedUntilMended(t, f, action)
			}
		})
	}
	for _, f := range []midway{
		{name: "full-later", says: []string{"publish", "full-later: no space"}, between: fill, mend: empty},
		{name: "read-only-later", says: []string{"publish", "read-only-later", "read-only file system"}, between: readOnly(true), mend: readOnly(false)},
		{name: "closed-later", says: []string{"publish", "closed-later", "cannot write the directory: permission denied"}, between: chmod(".", 0o500), mend: chmod(".", 0o700)},
	} {
		t.Run(f.name, func(t *testing.T) {
			h.do(t, f.name, adopt)
			h.fails(t, f)
			h.do(t, f.name, rotate)
		})
	}
	// A file is replaced, not written into, and keeps its mode.
	t.Run("read-only-file", func(t *testing.T) {
		h.do(t, "read-only-file", adopt)
		chmod(".env", 0o400)(t, h, "read-only-file")
		h.do(t, "read-only-file", rotate)
		if info, err := os.Stat(s.Env("read-only-file")); err != nil || info.Mode() != 0o400 {
			t.Errorf("the mode is %v now (%v)", info.Mode(), err)
		}
	})
}

// ownDisk puts a folder's files on a small file system of its own.
func ownDisk(t *testing.T, dir string) {
	t.Helper()
	env, err := os.ReadFile(filepath.Join(dir, ".env"))
	if err == nil {
		err = syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128k,mode=700")
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ".env"), env, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }) // it ends with the namespace anyway
}

func readOnly(yes bool) func(*testing.T, *house, string) {
	flags := uintptr(syscall.MS_REMOUNT)
	if yes {
		flags |= syscall.MS_RDONLY
	}
	return func(t *testing.T, h *house, c string) {
		t.Helper()
		if err := syscall.Mount("", filepath.Dir(h.site.Env(c)), "", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func ballast(h *house, c string) string { return filepath.Join(filepath.Dir(h.site.Env(c)), "ballast") }

func fill(t *testing.T, h *house, c string) {
	t.Helper()
	if err := os.WriteFile(ballast(h, c), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling: %v", err)
	}
}

func empty(t *testing.T, h *house, c string) {
	t.Helper()
	if err := os.Remove(ballast(h, c)); err != nil {
		t.Fatal(err)
	}
}

// refusedUntilMended spoils a credential, sees that refused and nothing
// touched, mends it and sees it done.
func (h *house) refusedUntilMended(t *testing.T, f fault, action pawlv1.Action) {
	t.Helper()
	right := h.look(t, f.name)
	f.spoil(t, h, f.name)
	spoiled := h.look(t, f.name)
	h.refused(t, f.name, action, f.says...)
	if d := spoiled.diff(h.look(t, f.name)); d != nil {
		t.Errorf("a refused %v changed %v", action, d)
	}
	f.mend(t, h, f.name)
	if d := right.diff(h.look(t, f.name)); d != nil {
		t.Errorf("a refused %v changed %v", action, d)
	}
	h.do(t, f.name, action)
}

// TestFullDiskUnderTheBusLosesNothing fills the store's disk in the middle of a
// rotation.
func TestFullDiskUnderTheBusLosesNothing(t *testing.T) {
	t.Parallel()
	s := asOrdinaryUser(t, []site.Credential{{Name: "app", Strategy: "alternating"}})
	if s == nil {
		return
	}
	store := filepath.Join(s.Inventory.DataDir, "nats")
	if err := errors.Join(os.MkdirAll(store, 0o700), syscall.Mount("tmpfs", store, "tmpfs", 0, "size=64m,mode=700")); err != nil {
		t.Fatal(err)
	}
	h := openHouse(t, s)
	h.do(t, "app", adopt)
	h.do(t, "app", rotate)
	release := hold(t, filepath.Dir(s.Env("app")))
	defer release()
	answer := h.ask(t, "app", rotate)
	h.await(t, answer, saga.Staged)
	full := filepath.Join(store, "ballast")
	if err := os.WriteFile(full, make([]byte, 128<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling: %v", err)
	}
	release()
	h.log.await(t, "no space left on device")
	h.works(t, "app")
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	h.await(t, answer, saga.Completed)
	h.works(t, "app")
	h.restart(t) // what is on the disk is whole
	h.do(t, "app", rotate)
}

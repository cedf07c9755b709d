package command

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInitDoesNotFailOnAFileThatItCannotWrite: in a container pawl.yaml is mounted so,
// and what a newer version knows is missing in it.
func TestInitDoesNotFailOnAFileThatItCannotWrite(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pawl.yaml")
	if err := os.WriteFile(file, []byte("data_dir: data\nkeys_dir: keys\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, file, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("%v (this test runs as root)", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(file, unix.MNT_DETACH) })
	if err := unix.Mount("", file, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	if code := Run(t.Context(), []string{"-c", file, "init"}, &stdout, &stderr); code != exitDone || !strings.Contains(stderr.String(), "cannot be written and lacks") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "keys", "nats", "backup.nk")); err != nil {
		t.Error(err)
	}
}

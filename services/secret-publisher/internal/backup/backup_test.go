package backup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func store(t *testing.T) Store {
	return Store{Dir: filepath.Join(t.TempDir(), "backups"), Seal: func(b []byte) ([]byte, error) { return bytes.ToUpper(b), nil }}
}

func TestRetryDoesNotOverwriteTheBackup(t *testing.T) {
	s := store(t)
	for _, content := range []string{"first", "second"} {
		if err := s.Keep("c", "r", "/a/.env", []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Keep("c", "r", "/b/.env", []byte("another file of that name")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.file("c", "r", "/a/.env")); err != nil || string(got) != "FIRST" {
		t.Fatalf("%q, %v", got, err)
	}
	if entries, err := os.ReadDir(filepath.Join(s.Dir, "c", "r")); err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
}

func TestCrashInABackupIsNoBackup(t *testing.T) {
	s := store(t)
	failed := s
	failed.Seal = func([]byte) ([]byte, error) { return nil, errors.New("no key") }
	if err := failed.Keep("c", "r", "/a", nil); err == nil || s.Has("c", "r", "/a") {
		t.Fatal(err)
	}
	half := s.file("c", "r", "/a") + ".tmp"
	if err := errors.Join(os.MkdirAll(filepath.Dir(half), 0o700), os.WriteFile(half, []byte("half of it, and longer"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if s.Has("c", "r", "/a") {
		t.Fatal("half a backup counts")
	}
	if err := s.Keep("c", "r", "/a", []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(s.file("c", "r", "/a")); err != nil || string(got) != "WHOLE" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestPruneKeepsTheNewestFiveAndTheCurrentOne(t *testing.T) {
	s := store(t)
	if err := s.Prune("c", "r0"); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		rotation := fmt.Sprintf("r%d", i)
		if err := s.Keep("c", rotation, "/a", nil); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(filepath.Join(s.Dir, "c", rotation), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Keep("other", "r", "/a", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Prune("c", "r0"); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(filepath.Join(s.Dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, []string{"r0", "r4", "r5", "r6", "r7"}) || !s.Has("other", "r", "/a") {
		t.Fatal(left)
	}
}

func TestBackupsThatCannotBeKeptAreToldBefore(t *testing.T) {
	dir := t.TempDir()
	s := Store{Dir: filepath.Join(dir, "data", "backups")}
	if err := s.Check("app"); err != nil {
		t.Errorf("what is missing will be made: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Check("app"); err == nil || !strings.Contains(err.Error(), "let Pawl write there, or move data_dir") {
		t.Errorf("a file in the way: %v", err)
	}
}

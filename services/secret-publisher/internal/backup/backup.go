// Package backup keeps what sinks held before a rotation first wrote them,
// sealed: DIR/CREDENTIAL/ROTATION/NAME-HASH.age.
package backup

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/newfile"
)

// keep is how many rotations of a credential Prune leaves.
const keep = 5

// spare is how many bytes the file system must have free.
const spare = 64 << 10

// Store is a directory of backups.
type Store struct {
	Dir  string
	Seal func(plaintext []byte) ([]byte, error)
}

func (s Store) file(credential, rotation, path string) string {
	sum := sha256.Sum256([]byte(path))
	base := filepath.Base(path)
	return filepath.Join(s.Dir, credential, rotation, base[:min(len(base), 200)]+"-"+hex.EncodeToString(sum[:4])+".age")
}

// Has reports whether the rotation has a backup of path, and so may have
// written it.
func (s Store) Has(credential, rotation, path string) bool {
	_, err := os.Lstat(s.file(credential, rotation, path))
	return err == nil
}

// Keep stores what path holds, durably and sealed, unless the rotation has a
// backup of it: a retry would store its own earlier write. Callers exclude each
// other by their lock on path.
func (s Store) Keep(credential, rotation, path string, content []byte) error {
	if s.Has(credential, rotation, path) {
		return nil
	}
	name := s.file(credential, rotation, path)
	box, err := s.Seal(content)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := newfile.Write(name, box); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	for _, d := range []string{dir, filepath.Dir(dir), s.Dir} {
		if err := syncDir(d); err != nil {
			return fmt.Errorf("backup: %w", err)
		}
	}
	return nil
}

// Check returns why Keep would now fail for a credential; it touches nothing.
func (s Store) Check(credential string) error {
	dir := filepath.Join(s.Dir, credential)
	for {
		err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		if errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir {
			dir = filepath.Dir(dir) // Keep will make what is missing
			continue
		}
		if info, stat := os.Stat(dir); err == nil && (stat != nil || !info.IsDir()) {
			err = unix.ENOTDIR
		}
		var volume unix.Statfs_t
		if err == nil {
			err = unix.Statfs(dir, &volume)
		}
		if err == nil && volume.Blocks > 0 && volume.Bavail*uint64(volume.Bsize) < spare {
			err = unix.ENOSPC
		}
		if err != nil {
			return fmt.Errorf("no backup can be kept in %s, and without one no sink is written: %s: %w: let Pawl write there, or move data_dir", s.Dir, dir, err)
		}
		return nil
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Prune deletes the backups of all but a credential's newest rotations, and
// never those of current.
func (s Store) Prune(credential, current string) error {
	dir := filepath.Join(s.Dir, credential)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prune backups: %w", err)
	}
	var old []fs.FileInfo
	others := keep
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case err != nil || !e.IsDir():
		case e.Name() == current:
			others--
		default:
			old = append(old, info)
		}
	}
	slices.SortFunc(old, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(b.Name(), a.Name()))
	})
	for _, info := range old[min(len(old), others):] {
		if err := os.RemoveAll(filepath.Join(dir, info.Name())); err != nil {
			return fmt.Errorf("prune backups: %w", err)
		}
	}
	return nil
}

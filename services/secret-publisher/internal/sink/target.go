package sink

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/pathowner"
	"pawl.dev/internal/published"
)

// target is the file behind a path, symbolic links followed, held by its
// directory: what is locked, read and replaced is in that one directory, even
// where the path comes to mean another meanwhile.
type target struct {
	root *os.Root
	dir  *os.File // the same directory, to lock and sync
	// folder is its path, as it was resolved.
	folder, name string
	stat         *unix.Statx_t // of the file when it was read; nil: it did not exist
}

const (
	leftover     = ".pawl-*.tmp"
	lockInterval = 20 * time.Millisecond
)

func openTarget(path string) (*target, error) {
	place, err := pathowner.Resolve(path)
	if errors.Is(err, pathowner.ErrDangling) {
		return nil, refuse("%s %w", path, err)
	}
	if err != nil {
		return nil, Refusal{err}
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", place.Folder.Fd()))
	if err == nil {
		if err = owned(path, place); err != nil {
			root.Close()
		}
	}
	if err != nil {
		place.Folder.Close()
		return nil, Refusal{err}
	}
	return &target{root: root, dir: place.Folder, folder: place.Dir, name: place.Name}, nil
}

// owned refuses a folder that belongs to another than who could have led the path there:
// Pawl would write with its own rights where he may not.
func owned(path string, place *pathowner.Place) error {
	owner, err := place.Owner()
	if err != nil {
		return err
	}
	for uid, where := range place.Steerers {
		if uid != owner {
			return fmt.Errorf("%s leads to %s, which belongs to user %d; user %d, by the folder %s, could have it lead anywhere: give that user the folder, or name a path that only root, Pawl's user or the folder's owner can change",
				path, place.Dir, owner, uid, where)
		}
	}
	return nil
}

func (t *target) path() string { return filepath.Join(t.folder, t.name) }

// close also releases the lock. Idempotent.
func (t *target) close() {
	t.dir.Close()
	t.root.Close()
}

// lock takes the directory for this process until close; the kernel releases
// it when the process dies. Nothing lies about: it is the directory itself.
func (t *target) lock(ctx context.Context) error {
	for {
		err := unix.Flock(int(t.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock %s: %w", t.folder, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is locked by another process: %w", t.folder, ctx.Err())
		case <-time.After(lockInterval):
		}
	}
}

// clean removes what crashed attempts left. Only under the lock: nobody else's
// attempt can be under way.
func (t *target) clean() error {
	entries, err := t.dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ours, _ := filepath.Match(leftover, e.Name()); ours && e.Type().IsRegular() {
			if err := t.root.Remove(e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *target) statx() (*unix.Statx_t, error) {
	var s unix.Statx_t
	err := unix.Statx(int(t.dir.Fd()), t.name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &s)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", t.path(), err)
	}
	return &s, nil
}

// read returns the content, or nil where there is no file.
func (t *target) read() ([]byte, error) {
	var err error
	if t.stat, err = t.statx(); err != nil || t.stat == nil {
		return nil, err
	}
	if t.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, refuse("%s is not a regular file", t.path())
	}
	// What was looked at may be a pipe by now, which would be waited for.
	f, err := t.root.OpenFile(t.name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, refuse("%s: %w", t.path(), err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(refuse("%s is not a regular file", t.path()), err)
	}
	content, err := io.ReadAll(io.LimitReader(f, published.MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(content) > published.MaxSize {
		return nil, refuse("%s is larger than %d bytes", t.path(), published.MaxSize)
	}
	return content, nil
}

// replace puts a file with this content in the place of the one that was read,
// with its mode, owner and extended attributes, if last returns no error.
func (t *target) replace(content []byte, mode uint32, last func() error) error {
	temporary := strings.Replace(leftover, "*", strings.ToLower(rand.Text()), 1)
	err := t.write(temporary, content, mode)
	if err == nil {
		err = last()
	}
	if err == nil {
		err = t.unchanged()
	}
	if err == nil {
		err = t.root.Rename(temporary, t.name)
	}
	if err != nil {
		_ = t.root.Remove(temporary) // the next attempt does it otherwise
		if errors.Is(err, unix.EBUSY) {
			return t.mounted()
		}
		return fmt.Errorf("%s: %w", t.path(), err)
	}
	return t.dir.Sync()
}

func (t *target) write(name string, content []byte, mode uint32) error {
	f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && t.stat != nil {
		mode = uint32(t.stat.Mode) &^ unix.S_IFMT
		err = t.resemble(f)
	}
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), mode) // after chown, which clears bits
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// unchanged guards against an editor that knows nothing of the lock.
func (t *target) unchanged() error {
	now, err := t.statx()
	if err != nil {
		return err
	}
	if (now == nil) != (t.stat == nil) || now != nil && (now.Ino != t.stat.Ino || now.Size != t.stat.Size || now.Mtime != t.stat.Mtime || now.Ctime != t.stat.Ctime) {
		return errors.New("was changed by somebody else while being rewritten: nothing was written")
	}
	return nil
}

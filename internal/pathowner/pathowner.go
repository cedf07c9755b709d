// Package pathowner resolves a path as the kernel does, and tells who could have had it
// lead elsewhere: whoever does something there by Pawl's rights would otherwise do it
// where that user wants.
package pathowner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	maxLinks = 40    // as the kernel follows
	overflow = 65534 // how the kernel shows users that a user namespace does not have
)

// ErrDangling means that the path ends in a symbolic link to nothing.
var ErrDangling = errors.New("is a symbolic link to nothing: create what it points to")

// Place is where a path leads.
type Place struct {
	Folder *os.File // in which the file lies, or would; the caller closes it
	Dir    string   // the path of Folder, without links
	Name   string   // of the file in Folder, which is no link
	// Steerers are the users who could have had the path lead to another folder, or by
	// its last link to another file, each with the folder that lets him. Root and
	// Pawl's own user are not among them. What lies in Folder is not considered.
	Steerers map[uint32]string
}

// Resolve follows the path. The file need not exist. Each folder is held open until the
// next, so that what was looked at is what is used, however the path changes meanwhile.
// An error is ErrDangling or an *os.PathError.
func Resolve(path string) (*Place, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	wrong := func(err error) error { return &os.PathError{Op: "resolve", Path: path, Err: err} }
	w := &walk{at: -1, rest: split(path), steer: map[uint32]string{}}
	defer func() { _ = unix.Close(w.at) }()
	if err := w.enter(unix.AT_FDCWD, "/"); err != nil {
		return nil, wrong(err)
	}
	for done := false; !done; {
		if len(w.rest) == 0 {
			return nil, wrong(unix.EISDIR)
		}
		if done, err = w.step(); err != nil {
			return nil, wrong(err)
		}
	}
	if _, err := w.look(w.rest[0]); errors.Is(err, fs.ErrNotExist) && w.fromLink {
		return nil, ErrDangling
	}
	folder, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", w.at))
	if err != nil {
		return nil, wrong(errors.Unwrap(err))
	}
	return &Place{folder, w.dir(), w.rest[0], w.steer}, nil
}

// Owner is the user that Folder belongs to.
func (p *Place) Owner() (uint32, error) {
	var info unix.Stat_t
	err := unix.Fstat(int(p.Folder.Fd()), &info)
	return info.Uid, err
}

// walk resolves a path as the kernel does, one name after the other, and remembers who
// could have had it lead elsewhere. Each folder is held open, so that what was looked
// at is what is used, however the path changes meanwhile.
type walk struct {
	at       int      // the folder reached, O_PATH
	names    []string // its path
	rest     []string // still to go
	links    int
	fromLink bool              // the last name was put there by a link
	steer    map[uint32]string // who may have led it here, beside root and Pawl, and where
}

func (w *walk) dir() string { return "/" + filepath.Join(w.names...) }

func split(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}

// step takes the next name; done: it is the last one, and no link.
func (w *walk) step() (done bool, err error) {
	name := w.rest[0]
	if name == ".." {
		w.rest, w.names = w.rest[1:], w.names[:max(0, len(w.names)-1)]
		return false, w.enter(w.at, "..")
	}
	info, err := w.look(name)
	last := len(w.rest) == 1
	if errors.Is(err, fs.ErrNotExist) && last {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode&unix.S_IFMT == unix.S_IFLNK {
		if err := w.steered(info); err != nil {
			return false, err
		}
		return false, w.follow(name)
	}
	if last {
		return true, nil
	}
	if err := w.steered(info); err != nil {
		return false, err
	}
	w.rest, w.names = w.rest[1:], append(w.names, name)
	return false, w.enter(w.at, name)
}

func (w *walk) look(name string) (info unix.Stat_t, err error) {
	return info, unix.Fstatat(w.at, name, &info, unix.AT_SYMLINK_NOFOLLOW)
}

func (w *walk) enter(from int, name string) error {
	fd, err := unix.Openat(from, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if w.at >= 0 {
		_ = unix.Close(w.at) // O_PATH: nothing was written
	}
	w.at = fd
	return nil
}

func (w *walk) follow(name string) error {
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	buffer := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(w.at, name, buffer)
	if err != nil {
		return err
	}
	to := string(buffer[:n])
	w.fromLink = w.fromLink || len(w.rest) == 1
	w.rest = slices.Concat(split(to), w.rest[1:])
	if strings.HasPrefix(to, "/") {
		w.names = nil
		return w.enter(unix.AT_FDCWD, "/")
	}
	return nil
}

// steered notes who could have put another thing at the name that was looked up: the
// owner of the folder; where a group or everybody may write, the owner of the thing;
// and refuses where everybody may put anything.
func (w *walk) steered(what unix.Stat_t) error {
	var folder unix.Stat_t
	if err := unix.Fstat(w.at, &folder); err != nil {
		return err
	}
	by := []uint32{folder.Uid}
	if folder.Mode&0o002 != 0 && folder.Mode&unix.S_ISVTX == 0 {
		return fmt.Errorf("everybody may write %s, and have it lead elsewhere", w.dir())
	}
	if folder.Mode&0o022 != 0 {
		by = append(by, what.Uid)
	}
	for _, uid := range by {
		if !Trusted(uid) {
			w.steer[uid] = w.dir()
		}
	}
	return nil
}

// Trusted reports whether the user is root, or Pawl's own: he needs no path of Pawl's.
func Trusted(uid uint32) bool {
	return uid == 0 || int(uid) == os.Geteuid() || uid == overflow && inUserNamespace()
}

// inUserNamespace reports whether there are users that this process cannot tell apart:
// those outside its user namespace, root among them.
var inUserNamespace = sync.OnceValue(func() bool {
	raw, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !slices.Equal(strings.Fields(string(raw)), []string{"0", "0", "4294967295"})
})

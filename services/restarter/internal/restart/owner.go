package restart

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"pawl.dev/internal/pathowner"
)

// pidFileLimit is far above what a pid file holds, postmaster.pid included.
const pidFileLimit = 4 << 10

// note is what a pid file says, and who says so.
type note struct {
	content string
	info    unix.Stat_t
	folder  unix.Stat_t
	place   *pathowner.Place // its folder is closed
}

// readNote reads a pid file, which its owner may have put there for another reason:
// never from what is no file, and never more than a few lines.
func readNote(path string) (note, error) {
	place, err := pathowner.Resolve(path)
	if err != nil {
		return note{}, err
	}
	defer place.Folder.Close()
	n := note{place: place}
	if err := unix.Fstat(int(place.Folder.Fd()), &n.folder); err != nil {
		return note{}, err
	}
	// Without NONBLOCK a pipe would be waited for.
	fd, err := unix.Openat(int(place.Folder.Fd()), place.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return note{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := unix.Fstat(fd, &n.info); err != nil {
		return note{}, err
	}
	if n.info.Mode&unix.S_IFMT != unix.S_IFREG {
		return note{}, errors.New("is no file")
	}
	content, err := io.ReadAll(io.LimitReader(f, pidFileLimit+1))
	if err != nil {
		return note{}, err
	}
	if len(content) > pidFileLimit {
		return note{}, fmt.Errorf("is larger than %d bytes: that is no pid file", pidFileLimit)
	}
	n.content = string(content)
	return n, nil
}

// mayName refuses a process that is another's than the pid file's owner, or than the
// user named in pawl.yaml: who can write the file would otherwise choose whom Pawl
// signals, with Pawl's rights. Root's word counts for any process. It counts for none
// whose file it is if another user can have put it there.
func (n note) mayName(p *process, configured string) error {
	uid, err := p.owner()
	if err != nil {
		return err
	}
	if configured != "" {
		want, err := user.Lookup(configured)
		if err != nil {
			return fmt.Errorf("%w: correct restart.process.user", err)
		}
		if want.Uid != strconv.FormatUint(uint64(uid), 10) {
			return fmt.Errorf("process %d belongs to %s, not to user %s", p.pid, name(uid), configured)
		}
		return nil
	}
	if by := n.planters(); by != "" {
		return fmt.Errorf("belongs to %s, and %s can put another's file in its place: have the process's own user write it in a folder of his, or name that user: process: {user: %s, …}", name(n.info.Uid), by, name(uid))
	}
	if n.info.Uid != 0 && n.info.Uid != uid {
		return fmt.Errorf("belongs to %s, and names process %d of %s: name the process's user, process: {user: %s, …}, if that is right", name(n.info.Uid), p.pid, name(uid), name(uid))
	}
	return nil
}

// planters says who beside the file's owner, root and Pawl could have had the path lead
// to this file; empty: nobody. A folder that more may write is of no help to them,
// since what they make is theirs, but where the file is root's.
func (n note) planters() string {
	for uid, where := range n.place.Steerers {
		if uid != n.info.Uid {
			return fmt.Sprintf("%s, by the folder %s,", name(uid), where)
		}
	}
	switch roots := n.info.Uid == 0; {
	case n.info.Nlink > 1:
		return "whoever made the second name of it"
	case n.folder.Uid != n.info.Uid && !pathowner.Trusted(n.folder.Uid):
		return fmt.Sprintf("%s, the owner of %s,", name(n.folder.Uid), n.place.Dir)
	case roots && n.info.Mode&0o022 != 0:
		return "whoever may write it"
	case roots && n.folder.Mode&0o022 != 0 && n.folder.Mode&unix.S_ISVTX == 0:
		return "whoever may write " + n.place.Dir
	}
	return ""
}

// owner is the user that the process runs as, by proc(5). One that is root in any of
// its roles is root's: a setuid program, say.
func (p *process) owner() (uint32, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, fmt.Errorf("cannot tell whose it is: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		if ids, found := strings.CutPrefix(lines.Text(), "Uid:"); found {
			fields := strings.Fields(ids) // real, effective, saved, of the file system
			if slices.Contains(fields, "0") {
				return 0, nil
			}
			uid, err := strconv.ParseUint(fields[1], 10, 32)
			return uint32(uid), err
		}
	}
	return 0, errors.New("cannot tell whose it is: /proc/PID/status is not as proc(5) says")
}

// name is the user's, or its number where it has none.
func name(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return number
}

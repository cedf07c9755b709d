package sink

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// spare is how many free bytes a file system must have beyond the new file.
const spare = 16 << 10

// refusal tells why the file that was read cannot be replaced by one of size
// bytes.
func (t *target) refusal(size int) error {
	if err := unix.Faccessat(int(t.dir.Fd()), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return refuse("%s: files are replaced by renaming a new one over them, and Pawl cannot write the directory: %w", t.folder, err)
	}
	var volume unix.Statfs_t
	if err := unix.Fstatfs(int(t.dir.Fd()), &volume); err != nil {
		return err
	}
	if free := volume.Bavail * uint64(volume.Bsize); volume.Blocks > 0 && free < uint64(size)+spare {
		return refuse("%s: no space: %d bytes free, %d needed: %w", t.folder, free, size+spare, unix.ENOSPC)
	}
	if volume.Files > 0 && volume.Ffree == 0 {
		return refuse("%s: no inode is free: %w", t.folder, unix.ENOSPC)
	}
	if t.stat == nil {
		return nil
	}
	switch owner := int(t.stat.Uid); {
	case t.stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return t.mounted()
	case t.stat.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
		return refuse("%s is immutable or append-only: chattr -ia it", t.path())
	case t.stat.Nlink > 1:
		return refuse("%s has %d hard links: replacing it would leave the other names with the old login: make them symbolic links", t.path(), t.stat.Nlink)
	case os.Geteuid() != 0 && owner != os.Geteuid():
		return refuse("%s belongs to user %d, and only root could keep it so: run Pawl as that user, or give it the file", t.path(), owner)
	case os.Geteuid() != 0 && !inGroup(int(t.stat.Gid)):
		return refuse("%s belongs to group %d, of which Pawl is no member, and so could not keep it", t.path(), t.stat.Gid)
	}
	return nil
}

// mounted: a rename cannot replace a mount, and writing into the file would not
// be atomic.
func (t *target) mounted() error {
	return refuse("%s is a single bind-mounted file, which cannot be replaced: mount the directory", t.path())
}

func inGroup(gid int) bool {
	groups, err := os.Getgroups()
	return os.Getegid() == gid || err == nil && slices.Contains(groups, gid)
}

// resemble gives f the owner and the extended attributes (ACLs and labels among
// them) of the file that was read.
func (t *target) resemble(f *os.File) error {
	var made unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &made); err != nil {
		return err
	}
	// Only where that changes something: under systemd it may not be permitted at all.
	if made.Uid != t.stat.Uid || made.Gid != t.stat.Gid {
		if err := f.Chown(int(t.stat.Uid), int(t.stat.Gid)); err != nil {
			return err
		}
	}
	old, err := t.root.OpenFile(t.name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer old.Close()
	want, err := attributes(old)
	if err != nil {
		return err
	}
	have, err := attributes(f)
	if err != nil {
		return err
	}
	for name := range have {
		if _, ok := want[name]; !ok { // such as a directory's default ACL
			if err := unix.Fremovexattr(int(f.Fd()), name); err != nil {
				return &os.PathError{Op: "remove attribute " + name, Path: t.path(), Err: err}
			}
		}
	}
	for name, value := range want {
		if bytes.Equal(have[name], value) {
			continue
		}
		if err := unix.Fsetxattr(int(f.Fd()), name, value, 0); err != nil {
			return &os.PathError{Op: "keep attribute " + name, Path: t.path(), Err: err}
		}
	}
	return nil
}

func attributes(f *os.File) (map[string][]byte, error) {
	names := make([]byte, 64<<10) // the kernel's limits, for both
	n, err := unix.Flistxattr(int(f.Fd()), names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for name := range bytes.SplitSeq(names[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(int(f.Fd()), string(name), value)
		if err != nil {
			return nil, err
		}
		found[string(name)] = value[:n]
	}
	return found, nil
}

// tracked reports whether git tracks the file. Without git, or an answer in
// time, it says no: this is for a warning alone.
func tracked(ctx context.Context, path string) bool {
	if !inWorkTree(filepath.Dir(path)) {
		return false // the usual case, without starting a process
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	// A repository may name a program as its file system monitor: not run here.
	cmd := exec.CommandContext(ctx, "git", "-c", "core.fsmonitor=false", "-C", filepath.Dir(path), "ls-files", "--error-unmatch", "--", filepath.Base(path))
	cmd.WaitDelay = time.Second
	return cmd.Run() == nil
}

// inWorkTree reports whether the directory or one above it holds a .git.
func inWorkTree(dir string) bool {
	for {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		above := filepath.Dir(dir)
		if above == dir {
			return false
		}
		dir = above
	}
}

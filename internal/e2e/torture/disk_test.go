package torture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// disk plays what a journaling file system (ext4, xfs) leaves after a power cut:
//
//   - changes of names (create, rename, link, unlink, mkdir) get there in the order in
//     which they were made: a beginning of them, of random length, that ends no
//     earlier than the last fsync, of whatever file or folder;
//   - the content of a file is what it was at its last fsync (or after the last write,
//     if it was opened with O_SYNC), and a random beginning of what was written after,
//     the last write of it torn at a random byte.
//
// A file system that loses the name of a file that was synced itself is not played.
type disk struct {
	names    []change
	synced   int // so many of names are on the disk
	now      map[string]*inode
	position map[string]int64 // of each descriptor
}

// change is one of a name; a folder has no inode.
type change struct {
	path string
	file *inode // nil: gone, or a folder
	dir  bool
}

// inode is a file under whatever names.
type inode struct {
	writes []written
	synced int  // so many of writes are on the disk
	osync  bool // it was opened with O_SYNC
}

type written struct {
	offset int64
	data   []byte // nil: the file was cut off at offset
}

// play does the calls that had ended by then. It must know all that concern dir.
func play(all []call, dir string, until time.Time) (*disk, error) {
	d := &disk{now: map[string]*inode{}, position: map[string]int64{}}
	for _, c := range all {
		if c.end.After(until) {
			continue
		}
		a, err := c.arguments()
		if err != nil {
			return nil, err
		}
		// A file may be made elsewhere and renamed into dir.
		if len(a.paths) == 0 {
			continue
		}
		if err := d.do(c, a); err != nil && slices.ContainsFunc(a.paths, func(p string) bool { return strings.HasPrefix(p, dir+"/") }) {
			return nil, err
		}
	}
	return d, nil
}

func (d *disk) do(c call, a arguments) error {
	path := a.paths[0]
	switch c.name {
	case "openat":
		d.open(c, path, a.rest)
	case "write", "pwrite64":
		return d.write(c, path, a)
	case "fsync", "fdatasync":
		if f := d.now[path]; f != nil {
			f.synced = len(f.writes)
		}
		d.synced = len(d.names)
	case "ftruncate", "fallocate": // which the reserve, a new file, is made by: mode, offset, length
		numbers := strings.Fields(a.rest)
		size, err := strconv.ParseInt(numbers[len(numbers)-1], 10, 64)
		if f := d.now[path]; f != nil {
			f.writes = append(f.writes, written{offset: size})
		}
		return err
	case "mkdir", "mkdirat":
		d.names = append(d.names, change{path: path, dir: true})
	case "unlink", "unlinkat":
		d.name(path, nil)
	case "link", "linkat":
		d.name(a.paths[1], d.now[path])
	case "rename", "renameat", "renameat2":
		d.rename(path, a.paths[1])
	default:
		return fmt.Errorf("%s of %s: this test does not know it", c.name, path)
	}
	return nil
}

func (d *disk) open(c call, path, flags string) {
	descriptor, _, _ := strings.Cut(c.result, "<")
	d.position[descriptor] = 0
	f := d.now[path]
	if f == nil && strings.Contains(flags, "O_CREAT") {
		f = &inode{}
		d.name(path, f)
	}
	if f == nil {
		return
	}
	f.osync = strings.Contains(flags, "O_SYNC")
	if strings.Contains(flags, "O_TRUNC") && len(f.writes) > 0 {
		f.writes = append(f.writes, written{})
	}
}

func (d *disk) write(c call, path string, a arguments) error {
	f := d.now[path]
	if f == nil {
		return nil // it has no name any more
	}
	descriptor, _, _ := strings.Cut(c.args, "<")
	numbers := strings.Fields(a.rest)
	w := written{offset: d.position[descriptor], data: a.content}
	if c.name == "pwrite64" {
		offset, err := strconv.ParseInt(numbers[1], 10, 64)
		if err != nil {
			return err
		}
		w.offset = offset
	} else {
		d.position[descriptor] += int64(len(a.content))
	}
	f.writes = append(f.writes, w)
	if f.osync {
		f.synced, d.synced = len(f.writes), len(d.names)
	}
	return nil
}

func (d *disk) name(path string, f *inode) {
	if f == nil {
		delete(d.now, path)
	} else {
		d.now[path] = f
	}
	d.names = append(d.names, change{path: path, file: f})
}

// rename moves a file or a folder, which is one change: it is recorded as the last of
// several, so that no beginning of the changes holds half of it.
func (d *disk) rename(from, to string) {
	var moved []change
	for path, f := range d.now {
		if path == from || strings.HasPrefix(path, from+"/") {
			moved = append(moved, change{path: path, file: f})
		}
	}
	for _, m := range moved {
		delete(d.now, m.path)
		d.now[to+strings.TrimPrefix(m.path, from)] = m.file
	}
	d.names = append(d.names, change{path: from + "\x00" + to})
}

// rebuild writes what a power cut leaves, with dir replaced by to.
func (d *disk) rebuild(dir, to string, r *rand.Rand) error {
	n := d.synced + r.IntN(len(d.names)-d.synced+1)
	files, folders := map[string]*inode{}, map[string]bool{}
	for _, c := range d.names[:n] {
		from, target, renamed := strings.Cut(c.path, "\x00")
		switch {
		case renamed:
			move(files, from, target)
			move(folders, from, target)
		case c.dir:
			folders[c.path] = true
		case c.file == nil:
			delete(files, c.path)
			delete(folders, c.path)
		default:
			files[c.path] = c.file
		}
	}
	below := func(path string) bool { return strings.HasPrefix(path, dir+"/") }
	for path := range folders {
		if !below(path) {
			continue
		}
		if err := os.MkdirAll(filepath.Join(to, strings.TrimPrefix(path, dir)), 0o700); err != nil {
			return err
		}
	}
	for path, f := range files {
		if !below(path) {
			continue
		}
		at := filepath.Join(to, strings.TrimPrefix(path, dir))
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(at, f.content(r), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func move[V any](all map[string]V, from, to string) {
	for path, v := range all {
		if path == from || strings.HasPrefix(path, from+"/") {
			delete(all, path)
			all[to+strings.TrimPrefix(path, from)] = v
		}
	}
}

// content is what is on the disk of a file.
func (f *inode) content(r *rand.Rand) (content []byte) {
	n := f.synced + r.IntN(len(f.writes)-f.synced+1)
	for i, w := range f.writes[:n] {
		data := w.data
		if i >= f.synced && i == n-1 && len(data) > 0 {
			data = data[:r.IntN(len(data)+1)]
		}
		end := int(w.offset) + len(data)
		if end > len(content) {
			content = append(content, make([]byte, end-len(content))...)
		}
		if w.data == nil {
			content = content[:end]
		}
		copy(content[w.offset:], data)
	}
	return content
}

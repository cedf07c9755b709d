package pglog

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Position is how far a log directory was read. A file is known by its first
// bytes, which hold the time, process and session of its first record: so it may
// be renamed or copied and is the same, and truncated, written over or another
// under an old inode's number, and is a new one.
type Position struct {
	// Since: what was logged earlier, in files that are not known, is left out.
	Since time.Time `json:"since"`
	// Files by the hash of their first bytes.
	Files map[string]Place `json:"files"`
}

// Place is how far one file was read.
type Place struct {
	Name    string    `json:"name"`   // when it was last seen, for people
	Offset  int64     `json:"offset"` // of the first record that was not read
	Inside  bool      `json:"inside"` // Offset is inside a record, which is left out
	Written time.Time `json:"written"`
	Seen    time.Time `json:"seen"`
}

// Clone returns a copy that shares nothing.
func (p Position) Clone() Position {
	files := make(map[string]Place, len(p.Files))
	for head, place := range p.Files {
		files[head] = place
	}
	return Position{p.Since, files}
}

// positionTTL is how long the position in a file is kept after the file has
// disappeared from the directory.
const positionTTL = time.Hour

// Follower reads a log directory on and on. It is for one goroutine.
type Follower struct {
	// Position is where reading goes on; a copy of it, taken between two calls
	// of Read, resumes there.
	Position Position
	// Wanted says whether a record, unparsed, is worth it. It is cheap, and may
	// be true of too many.
	Wanted func(raw []byte) bool
	// Record is called for each record that is wanted.
	Record func(Record)
	// Skipped is called for each that could not be read; the error quotes nothing.
	Skipped func(file string, err error)
	// Limit is how many bytes Read reads before it comes up for air; default 8 MiB.
	Limit int64

	dir    string
	format string
	looked map[string]fs.FileInfo // by name: files that were read to their end, as they were then
	heads  map[string]string      // by name: what the file was known by then
	newest *os.File               // kept open, lest it be deleted before it is read to the end
	chunk  []byte
	left   int64
	behind int64
}

// Follow prepares to read a log directory, from a position on.
func Follow(dir string, from Position) *Follower {
	if from.Files == nil {
		from.Files = map[string]Place{}
	}
	return &Follower{Position: from, Limit: 8 << 20, dir: dir, looked: map[string]fs.FileInfo{}, heads: map[string]string{}, chunk: make([]byte, 128<<10)}
}

// Close closes what is open.
func (f *Follower) Close() {
	if f.newest != nil {
		_ = f.newest.Close() // only read
	}
}

// Format is what the server writes now: JSON or CSV; empty: nothing yet.
func (f *Follower) Format() string { return f.format }

// Behind is how many bytes the last Read left unread.
func (f *Follower) Behind() int64 { return f.behind }

// Read reads what was written since the last time, oldest file first, up to
// Limit bytes. It reports whether there is more. A record that is not complete
// yet is left for the next time.
func (f *Follower) Read() (more bool, err error) {
	now := time.Now()
	files, err := f.list()
	if err != nil {
		return false, err
	}
	f.left, f.behind = f.Limit, 0
	if f.newest != nil {
		info, err := f.newest.Stat()
		if err == nil {
			err = f.readOpen(f.newest, info)
		}
		if err != nil {
			return false, err
		}
	}
	for i, info := range files {
		if was := f.looked[info.Name()]; was != nil && i < len(files)-1 && os.SameFile(was, info) && was.Size() == info.Size() && was.ModTime().Equal(info.ModTime()) {
			continue
		}
		if err := f.readNamed(info, i == len(files)-1); err != nil {
			return false, err
		}
	}
	f.forget(now, files)
	return f.left <= 0, nil
}

// list returns the files of the format in use, the one written last at the end.
// After a change of format, those of the former as well, so that its last
// records are not lost.
func (f *Follower) list() ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, fmt.Errorf("log directory: %w", err)
	}
	var all []fs.FileInfo
	newest := map[string]time.Time{}
	for _, e := range entries {
		format := filepath.Ext(e.Name())
		if format != JSON && format != CSV || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("log directory: %w", err)
		}
		all = append(all, info)
		if info.ModTime().After(newest[format]) {
			newest[format] = info.ModTime()
		}
	}
	former := f.format
	switch {
	case len(all) == 0:
	case newest[CSV].After(newest[JSON].Add(10 * time.Second)): // both are written at once where both are on
		f.format = CSV
	default:
		f.format = JSON
	}
	all = slices.DeleteFunc(all, func(info fs.FileInfo) bool {
		format := filepath.Ext(info.Name())
		return format != f.format && format != former
	})
	slices.SortFunc(all, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	return all, nil
}

func (f *Follower) readNamed(info fs.FileInfo, last bool) error {
	file, err := os.Open(filepath.Join(f.dir, info.Name()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // renamed or deleted meanwhile: the next Read finds it, or nobody does
	}
	if err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	if err = f.readOpen(file, info); err != nil || !last {
		return errors.Join(err, file.Close())
	}
	f.Close()
	f.newest = file
	return nil
}

// headLength is how many bytes know a file; no record is shorter.
const headLength = 100

func (f *Follower) readOpen(file *os.File, info fs.FileInfo) error {
	first := make([]byte, headLength)
	switch _, err := file.ReadAt(first, 0); {
	case errors.Is(err, io.EOF):
		return nil // not even one record
	case err != nil:
		return fmt.Errorf("log file: %w", err)
	}
	sum := sha256.Sum256(first)
	head := hex.EncodeToString(sum[:12])
	f.heads[info.Name()] = head
	place, known := f.Position.Files[head]
	if !known && info.ModTime().Before(f.Position.Since) {
		f.looked[info.Name()] = info
		return nil
	}
	place.Name, place.Written, place.Seen = filepath.Base(file.Name()), info.ModTime(), time.Now()
	err := f.drain(file, &place)
	f.Position.Files[head] = place
	if size := info.Size() - place.Offset; size > 0 {
		f.behind += size
	}
	if err == nil && f.left > 0 {
		f.looked[info.Name()] = info
	}
	return err
}

// drain reads records from place on, to the end of the file or of what is left
// of the limit.
func (f *Follower) drain(file *os.File, place *Place) error {
	format := filepath.Ext(place.Name)
	var buf []byte // from place.Offset on
	for f.left > 0 {
		n, err := file.ReadAt(f.chunk, place.Offset+int64(len(buf)))
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("log file: %w", err)
		}
		if n == 0 {
			return nil
		}
		f.left -= int64(n)
		buf = append(buf, f.chunk[:n]...)
		used := f.consume(format, buf, place)
		place.Offset += int64(used)
		buf = append(buf[:0], buf[used:]...)
	}
	return nil
}

// consume hands on the complete records of buf, and returns how long they are.
func (f *Follower) consume(format string, buf []byte, place *Place) (used int) {
	for {
		if place.Inside {
			at, found := resume(format, buf[used:])
			used += at
			if !found {
				return used
			}
			place.Inside = false
		}
		end, torn := next(format, buf[used:])
		if end == 0 && len(buf)-used > maxRecord {
			f.Skipped(place.Name, errTooLong)
			place.Inside = true
			continue
		}
		if end == 0 {
			return used
		}
		f.hand(format, bytes.TrimRight(buf[used:used+end], "\r\n"), torn, place.Name)
		used += end
	}
}

var (
	errTooLong = errors.New("is longer than 1 MiB")
	errTorn    = errors.New("is cut short")
)

// TooLong reports whether a record was skipped for its length, which is no
// fault of the log's.
func TooLong(err error) bool { return errors.Is(err, errTooLong) }

func (f *Follower) hand(format string, raw []byte, torn bool, name string) {
	if torn {
		f.Skipped(name, errTorn)
		return
	}
	if !f.Wanted(raw) {
		return
	}
	record, err := Parse(format, raw)
	if err != nil {
		f.Skipped(name, err)
		return
	}
	if !record.Time.Before(f.Position.Since) {
		f.Record(record)
	}
}

// forget drops files that have long been gone. Should one come back, what was
// written until then is not read anew.
func (f *Follower) forget(now time.Time, files []fs.FileInfo) {
	present := map[string]bool{}
	for _, info := range files {
		present[info.Name()] = true
	}
	for head, place := range f.Position.Files {
		if present[place.Name] && f.heads[place.Name] == head {
			place.Seen = now
			f.Position.Files[head] = place
		}
		if now.Sub(place.Seen) > positionTTL {
			delete(f.Position.Files, head)
			if place.Written.After(f.Position.Since) {
				f.Position.Since = place.Written
			}
		}
	}
	for name := range f.heads {
		if !present[name] {
			delete(f.heads, name)
			delete(f.looked, name)
		}
	}
}

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// Stream is what a stream's folder holds.
type Stream struct {
	Name     string
	Messages uint64 // records that were neither erased nor removed
	Last     uint64 // highest sequence, of whatever record
	// Keeps means that nothing is ever removed from the stream, so that each missing
	// sequence is a lost message.
	Keeps bool
}

// Of is a stream as a running server has it.
func Of(d server.StreamDetail) Stream {
	return Stream{Name: d.Name, Messages: d.State.Msgs, Last: d.State.LastSeq, Keeps: d.Config != nil && keeps(d.Config)}
}

// Missing is how many messages the stream has lost, if it keeps all.
func (s Stream) Missing() uint64 {
	if !s.Keeps {
		return 0
	}
	return s.Last - min(s.Last, s.Messages)
}

// Damage is what no kill leaves.
type Damage struct{ Stream, What string }

func (d Damage) String() string { return d.Stream + ": " + d.What }

// Leftover is what a kill leaves, and how it is put in order.
type Leftover struct {
	Path, What string
	Mend       func() error
}

// Report is what Examine found.
type Report struct {
	Streams   []Stream
	Damage    []Damage
	Leftovers []Leftover
	Bytes     int64 // of records
}

// Stream returns the named stream.
func (r *Report) Stream(name string) (Stream, bool) {
	i := slices.IndexFunc(r.Streams, func(s Stream) bool { return s.Name == name })
	if i < 0 {
		return Stream{}, false
	}
	return r.Streams[i], true
}

func (r *Report) damage(stream, format string, args ...any) {
	r.Damage = append(r.Damage, Damage{stream, fmt.Sprintf(format, args...)})
}

func (r *Report) leftover(path, what string, mend func() error) {
	r.Leftovers = append(r.Leftovers, Leftover{path, what, mend})
}

// Examine reads the streams of an account, changes nothing, and compares them with
// the manifest. An error means that something could not be read, which says nothing
// about the store.
func Examine(dir, account string, known Manifest) (*Report, error) {
	r := &Report{}
	folders, err := os.ReadDir(streamsIn(dir, account))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, folder := range folders {
		path := filepath.Join(streamsIn(dir, account), folder.Name())
		if err := r.examineFolder(path, folder.Name(), known); err != nil {
			return nil, err
		}
	}
	for _, want := range known {
		have, found := r.Stream(want.Name)
		switch {
		case slices.ContainsFunc(r.Damage, func(d Damage) bool { return d.Stream == want.Name }):
		case !found && want.Last == 0 && r.mends(want.Name):
		case !found:
			r.damage(want.Name, "the stream was made here and is missing")
		default:
			r.compare(have, want)
		}
	}
	return r, nil
}

// compare looks for what a stream had when the manifest was written.
func (r *Report) compare(have Stream, want Known) {
	if have.Last < want.Last {
		r.damage(have.Name, "message %d was acknowledged, and the last one on disk is %d", want.Last, have.Last)
	} else if lost := have.Missing(); have.Keeps && want.Counted && lost > want.missing() {
		r.damage(have.Name, "%d of %d messages are missing", lost-want.missing(), have.Last)
	}
}

// mends reports whether a leftover of the stream is removed, which leaves nothing.
func (r *Report) mends(stream string) bool {
	return slices.ContainsFunc(r.Leftovers, func(l Leftover) bool { return filepath.Base(l.Path) == stream })
}

func (r *Report) examineFolder(path, name string, known Manifest) error {
	holds, err := holdsRecords(path)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, ".") { // the server removes it, at its next start
		if holds {
			r.damage(name[1:], "nats-server was deleting the stream")
		}
		return nil
	}
	config, err := r.examineMeta(path, name, holds, known)
	if err != nil || config == nil {
		return err
	}
	if err := r.examineTemporaries(path); err != nil {
		return err
	}
	if err := r.examineConsumers(path, name); err != nil {
		return err
	}
	s := Stream{Name: name, Keeps: keeps(config)}
	if err := r.examineBlocks(path, &s); err != nil {
		return err
	}
	r.Streams = append(r.Streams, s)
	return nil
}

// keeps reports whether nothing ever leaves the stream.
func keeps(c *server.StreamConfig) bool {
	limited := c.MaxMsgs > 0 || c.MaxBytes > 0 || c.MaxMsgsPer > 0
	return c.Retention == server.LimitsPolicy && c.DenyDelete && c.DenyPurge && !c.AllowMsgTTL && c.MaxAge == 0 &&
		(!limited || c.Discard == server.DiscardNew)
}

// holdsRecords reports whether any block of the stream has content.
func holdsRecords(stream string) (bool, error) {
	blocks, err := blocksOf(stream)
	if err != nil {
		return false, err
	}
	for _, b := range blocks {
		info, err := os.Stat(b.path)
		if err != nil {
			return false, err
		}
		if info.Size() > 0 {
			return true, nil
		}
	}
	return false, nil
}

// examineBlocks reads every record.
func (r *Report) examineBlocks(path string, s *Stream) error {
	blocks, err := blocksOf(path)
	if err != nil {
		return err
	}
	read := newReader()
	for i, b := range blocks {
		content, err := read.file(b.path)
		if err != nil {
			return err
		}
		r.Bytes += int64(len(content))
		if len(content) == 0 {
			// The last one was just begun, as that of an empty stream always is. And the
			// server empties a block of which no record counts any more before it deletes it.
			if s.Keeps && i < len(blocks)-1 {
				r.damage(s.Name, "%s is empty, and is not the last block", filepath.Base(b.path))
			}
			continue
		}
		h := blockHash(s.Name, b.index)
		live := s.Last
		whole := scan(content, h, func(one record) {
			if !one.removed && one.sequence > live {
				s.Messages, live = s.Messages+1, one.sequence
			}
			s.Last = max(s.Last, one.sequence)
		})
		if whole == len(content) {
			continue
		}
		if next, at, found := findRecord(content[whole:], h, s.Last); found {
			r.damage(s.Name, "%s: a record at byte %d, after message %d, is broken, and message %d follows at byte %d", filepath.Base(b.path), whole, s.Last, next.sequence, whole+at)
		} else if i < len(blocks)-1 {
			r.damage(s.Name, "%s: the record at byte %d, after message %d, is broken, and is not the end of the stream", filepath.Base(b.path), whole, s.Last)
		} else {
			r.leftover(b.path, fmt.Sprintf("%d bytes of a write that was cut off, which nats-server cuts off", len(content)-whole), func() error { return nil })
		}
	}
	return nil
}

// reader reads one file after another into the same memory.
type reader struct{ buf []byte }

func newReader() *reader { return &reader{} }

func (r *reader) file(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r.buf = slices.Grow(r.buf[:0], int(info.Size()))[:info.Size()]
	n, err := f.ReadAt(r.buf, 0)
	if n == len(r.buf) {
		err = nil
	}
	return r.buf[:n], err
}

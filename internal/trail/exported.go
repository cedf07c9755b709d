package trail

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// ExportedKeys reads the keys that lie in an export. They prove that it is whole,
// not whose it is.
func ExportedKeys(dir string) (note.Verifiers, error) { return LoadKeys(filepath.Join(dir, keysFile)) }

// Exported reads an export, as Live reads the live trail: each checkpoint comes
// after the records that it covers.
func Exported(dir string, keys note.Verifiers) Entries {
	return func(yield func(Entry, error) bool) {
		e := &exported{dir: dir, keys: keys, yield: yield}
		if err := e.read(); err != nil && !errors.Is(err, errEnough) {
			yield(Entry{}, err)
		}
	}
}

var errEnough = errors.New("the reader has read enough")

type exported struct {
	dir   string
	keys  note.Verifiers
	yield func(Entry, error) bool
}

// read ends with a Fault where records come after the last checkpoint, or where
// that is not the one that has a file of its own.
func (e *exported) read() error {
	newest, err := os.ReadFile(filepath.Join(e.dir, checkpointFile))
	if err != nil {
		return fmt.Errorf("%w: is %s a whole export?", err, e.dir)
	}
	files := map[string]*bufio.Reader{}
	for _, name := range []string{recordsFile, checkpointsFile} {
		f, err := os.Open(filepath.Join(e.dir, name))
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		defer f.Close()
		files[name] = bufio.NewReaderSize(f, 1<<16)
	}
	index, last := int64(0), ""
	for {
		c, err := e.checkpoint(files[checkpointsFile])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		last = c.Note
		for ; index < c.Size; index++ {
			r, hash, err := record(index, files[recordsFile])
			if errors.Is(err, io.EOF) {
				break // the chain names the first that is gone
			}
			if err != nil {
				return err
			}
			c.Leaves = append(c.Leaves, hash)
			if !e.yield(Entry{Record: r}, nil) {
				return errEnough
			}
		}
		if !e.yield(Entry{Checkpoint: c}, nil) {
			return errEnough
		}
	}
	if string(newest) != last {
		return fmt.Errorf("%s is not the last one in %s: an older one, or another's, was put there", filepath.Join(e.dir, checkpointFile), checkpointsFile)
	}
	if _, _, err := record(index, files[recordsFile]); !errors.Is(err, io.EOF) {
		return &Fault{index, "", "is covered by no checkpoint: it was put in, or an older checkpoint was put back"}
	}
	return nil
}

// checkpoint reads the next one; io.EOF after the last.
func (e *exported) checkpoint(from *bufio.Reader) (*Checkpoint, error) {
	var s signed
	if err := next(from, &s); errors.Is(err, io.EOF) {
		return nil, err
	} else if err != nil {
		return nil, fmt.Errorf("%s: a line is not a checkpoint: %w", filepath.Join(e.dir, checkpointsFile), err)
	}
	c, err := OpenCheckpoint(s.Note, e.keys)
	if err != nil {
		return nil, &Fault{s.Size, CheckpointSubject(strconv.FormatInt(s.Size, 10)), err.Error()}
	}
	if c.Size != s.Size {
		return nil, c.fault("stands in the place of the one of %d", s.Size)
	}
	return c, nil
}

// record reads the next record, and the hash that its line says it has; io.EOF
// after the last.
func record(index int64, from *bufio.Reader) (*Record, tlog.Hash, error) {
	var l line
	if err := next(from, &l); errors.Is(err, io.EOF) {
		return nil, l.Hash, err
	} else if err != nil {
		return nil, l.Hash, &Fault{index, "", "its line is not a record: " + err.Error()}
	}
	if l.Index != index {
		return nil, l.Hash, &Fault{index, "", fmt.Sprintf("is not there: the line in its place says that it is record %d (%s)", l.Index, l.Subject)}
	}
	r, err := readRecord(index, l.Subject, l.Body)
	if err != nil {
		return nil, l.Hash, err
	}
	shown := &pawlv1.AuditRecord{}
	if err := protojson.Unmarshal(l.Record, shown); err != nil {
		return nil, l.Hash, &Fault{index, l.Subject, "its readable part is not a record"}
	}
	if !proto.Equal(shown, r.AuditRecord) {
		return nil, l.Hash, &Fault{index, l.Subject, "its readable part is not what was hashed: it was changed"}
	}
	return r, l.Hash, nil
}

// next decodes one line, which has the fields of into and no others.
func next(from *bufio.Reader, into any) error {
	text, err := from.ReadBytes('\n')
	if err != nil && len(bytes.TrimSpace(text)) == 0 {
		return err
	}
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(into); err != nil {
		return errors.New("not JSON of its form")
	}
	if strict.More() {
		return errors.New("holds more than one thing")
	}
	return nil
}

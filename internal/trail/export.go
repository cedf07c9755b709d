package trail

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"pawl.dev/internal/newfile"
	"pawl.dev/internal/words"
)

// Files of an export. The newest checkpoint is written last: an export without
// it is not complete.
const (
	recordsFile     = "records.jsonl"
	tableFile       = "records.csv"
	checkpointsFile = "checkpoints.jsonl"
	checkpointFile  = "checkpoint"
	keysFile        = "auditor.pub"
	readmeFile      = "README.txt"
)

// line is one record in records.jsonl.
type line struct {
	Index   int64           `json:"index"`
	Subject string          `json:"subject"`
	Hash    tlog.Hash       `json:"hash"`   // the leaf, base64
	Body    []byte          `json:"body"`   // what was hashed, base64: a protobuf pawl.v1.AuditRecord
	Record  json.RawMessage `json:"record"` // the same, to read
}

// signed is one checkpoint in checkpoints.jsonl.
type signed struct {
	Size int64  `json:"size"`
	Note string `json:"note"`
}

// Export writes the entries into dir, which it makes, up to the newest
// checkpoint, and the keys that verify it. It proves nothing: verify what it
// wrote. Nothing is overwritten; what failed leaves no files.
func Export(entries Entries, keys []byte, dir string) (newest *Checkpoint, err error) {
	w, err := create(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err = errors.Join(err, w.close()); err != nil {
			w.remove()
		}
	}()
	var waiting []*Record
	covered := int64(0)
	for e, err := range entries {
		if err != nil {
			return nil, err
		}
		if e.Record != nil {
			waiting = append(waiting, e.Record)
			continue
		}
		newest = e.Checkpoint
		for len(waiting) > 0 && covered < newest.Size {
			if err := w.record(waiting[0]); err != nil {
				return nil, err
			}
			waiting, covered = waiting[1:], covered+1
		}
		if err := w.json(checkpointsFile, signed{newest.Size, newest.Note}); err != nil {
			return nil, err
		}
	}
	if newest == nil {
		return nil, errors.New("the auditor has signed nothing yet: is it running?")
	}
	if err := w.flush(); err != nil {
		return nil, err
	}
	for _, f := range []struct{ name, text string }{{readmeFile, readme}, {keysFile, string(keys)}, {checkpointFile, newest.Note}} {
		if err := newfile.Write(filepath.Join(dir, f.name), []byte(f.text)); err != nil {
			return nil, fmt.Errorf("export: %w", err)
		}
	}
	return newest, nil
}

type writer struct {
	files map[string]*os.File
	to    map[string]*bufio.Writer
	table *csv.Writer
}

func create(dir string) (*writer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	w := &writer{files: map[string]*os.File{}, to: map[string]*bufio.Writer{}}
	for _, name := range []string{recordsFile, tableFile, checkpointsFile} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return nil, errors.Join(fmt.Errorf("%s holds an export already: name another folder", dir), w.close())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("export: %w", err), w.close())
		}
		w.files[name], w.to[name] = f, bufio.NewWriterSize(f, 1<<16)
	}
	w.table = csv.NewWriter(w.to[tableFile])
	return w, w.table.Write(columns)
}

func (w *writer) json(file string, v any) error {
	text, err := json.Marshal(v)
	if err == nil {
		_, err = w.to[file].Write(append(text, '\n'))
	}
	return err
}

var columns = []string{"index", "at", "service", "event", "credential", "rotation", "actor", "authenticated as", "reason", "summary", "trace", "recorded", "sequence", "subject"}

func (w *writer) record(r *Record) error {
	text, err := protojson.Marshal(r.AuditRecord)
	if err != nil {
		return fmt.Errorf("record %d: %w", r.Index, err)
	}
	if err := w.json(recordsFile, line{r.Index, r.Subject, r.Hash(), r.Body, text}); err != nil {
		return err
	}
	cells := []string{strconv.FormatInt(r.Index, 10), r.GetAt().AsTime().Format(time.RFC3339Nano), r.GetService(), r.GetEvent(), r.GetCredential(), r.GetRotation(),
		r.GetActor(), r.GetAuthenticatedAs(), r.GetReason(), r.GetSummary(), r.GetTraceId(), r.GetStream(), strconv.FormatUint(r.GetSequence(), 10), r.GetSubject()}
	for i, cell := range cells {
		cells[i] = words.Cell(cell)
	}
	return w.table.Write(cells)
}

func (w *writer) flush() error {
	w.table.Flush()
	err := w.table.Error()
	for name, f := range w.files {
		err = errors.Join(err, w.to[name].Flush(), f.Sync())
	}
	return err
}

func (w *writer) close() (err error) {
	for _, f := range w.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

func (w *writer) remove() {
	for _, f := range w.files {
		_ = os.Remove(f.Name()) // what stays is in the way of the next export, and is named by it
	}
}

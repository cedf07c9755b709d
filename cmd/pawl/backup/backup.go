// Package backup writes the streams of Pawl to one sealed file while Pawl runs, and
// makes them again from it.
package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/google/renameio/v2"
	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/service"
)

// Options of Write.
type Options struct {
	Inventory *inventory.Inventory
	Out       string // the file; default: a new one in backup.to, where old ones are then deleted
	WithKeys  bool   // the keys that open what is sealed in the streams, too
	Server    nats.InProcessConnProvider
}

// Written is a backup that was made.
type Written struct {
	File     string        `json:"file"`
	Bytes    int64         `json:"bytes"`
	Took     time.Duration `json:"took_ns"`
	Messages uint64        `json:"messages"`
	Unpacked int64         `json:"unpacked_bytes"` // what the streams and keys take before compression
	At       time.Time     `json:"at"`
}

// Write makes a backup. The file is there whole, or not at all.
func Write(ctx context.Context, o Options) (w Written, err error) {
	began := time.Now()
	w.At = began.UTC()
	recipients, err := recipients(o.Inventory, o.WithKeys)
	if err != nil {
		return w, err
	}
	keys, err := keyFiles(o)
	if err != nil {
		return w, err
	}
	if w.File = o.Out; w.File == "" {
		w.File = filepath.Join(o.Inventory.Backup.To, fileName(w.At))
		if err := os.MkdirAll(o.Inventory.Backup.To, 0o700); err != nil {
			return w, fmt.Errorf("backup.to: %w", err)
		}
	} else if _, err := os.Lstat(w.File); err == nil {
		return w, fmt.Errorf("%s is there already: a backup overwrites nothing", w.File)
	}
	connect, err := bus.For(o.Inventory, bus.Backup)
	if err != nil {
		return w, err
	}
	connect.Server = o.Server
	b, err := bus.Connect(connect)
	if err != nil {
		return w, err
	}
	defer b.NATS.Close()
	pending, err := renameio.NewPendingFile(w.File, renameio.WithPermissions(0o600))
	if err != nil {
		return w, err
	}
	defer pending.Cleanup()
	sum := sha256.New()
	head := Head{Format: Format, At: w.At, Version: service.Version(), Config: o.Inventory.Digest()}
	manifest, err := archive(ctx, b, io.MultiWriter(pending, sum), head, recipients, keys)
	if err != nil {
		return w, err
	}
	if w.Bytes, err = readBack(pending.File, sum.Sum(nil)); err != nil {
		return w, fmt.Errorf("%s: %w", w.File, err)
	}
	if err := pending.CloseAtomicallyReplace(); err != nil { // it syncs
		return w, err
	}
	for _, s := range manifest.Streams {
		w.Messages, w.Unpacked = w.Messages+s.Messages, w.Unpacked+s.Bytes
	}
	w.Took = time.Since(began)
	if o.Out == "" {
		err = prune(o.Inventory.Backup, w.At)
	}
	return w, err
}

// archive writes the parts, in the order of bus.BackedUp.
func archive(ctx context.Context, b *bus.Bus, to io.Writer, head Head, recipients []age.Recipient, keys []keyFile) (*Manifest, error) {
	a, err := newArchiver(to, head, recipients)
	if err != nil {
		return nil, err
	}
	for _, name := range bus.BackedUp {
		s, err := a.stream(ctx, b, name)
		if err != nil {
			return nil, fmt.Errorf("snapshot of %s: %w", name, err)
		}
		a.manifest.Streams = append(a.manifest.Streams, s)
	}
	if len(keys) > 0 {
		part, err := a.keys(keys)
		if err != nil {
			return nil, fmt.Errorf("keys: %w", err)
		}
		a.manifest.Keys = &part
	}
	return &a.manifest, a.close()
}

func (a *archiver) stream(ctx context.Context, b *bus.Bus, name string) (Stream, error) {
	out, in := io.Pipe()
	taken := make(chan error, 1)
	var s Stream
	go func() {
		var err error
		s.Described, err = snapshot(ctx, b, name, in)
		in.CloseWithError(err) // nil is the end
		taken <- err
	}()
	plain, packed, err := unpacked(out)
	var part Part
	if err == nil {
		part, err = a.part(name, plain)
	}
	out.CloseWithError(err) // where the archive cannot be written, the snapshot ends
	if taken := <-taken; err == nil {
		err = taken
	}
	if err != nil {
		return s, err
	}
	s.Part, s.Packed = part, packed
	s.Messages, s.Last, err = lastSeq(s.State)
	return s, err
}

// readBack proves that what the disk holds is what was written.
func readBack(f *os.File, want []byte) (bytes int64, err error) {
	if err := f.Sync(); err != nil {
		return 0, err
	}
	written, err := os.Open(f.Name())
	if err != nil {
		return 0, err
	}
	defer written.Close()
	sum := sha256.New()
	if bytes, err = io.Copy(sum, written); err != nil {
		return 0, err
	}
	if hex.EncodeToString(sum.Sum(nil)) != hex.EncodeToString(want) {
		return 0, errors.New("what was written cannot be read back: the disk is not to be trusted")
	}
	return bytes, nil
}

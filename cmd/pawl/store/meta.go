package store

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/nats-io/nats-server/v2/server"
)

// examineMeta reads a stream's description. It is nil if the stream cannot be
// recovered: then the report says why.
func (r *Report) examineMeta(path, name string, holds bool, known Manifest) (*server.StreamConfig, error) {
	if _, err := os.Stat(filepath.Join(path, keyFile)); err == nil {
		r.damage(name, "is encrypted, among streams that are not")
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(path, metaFile))
	if errors.Is(err, fs.ErrNotExist) {
		if holds || known.find(name).Last > 0 {
			r.damage(name, "%s is missing", metaFile)
		} else {
			r.leftover(path, "a stream that was just being made", func() error { return os.RemoveAll(path) })
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var info server.FileStreamInfo
	if err := json.Unmarshal(text, &info); err != nil || info.Name != name {
		r.damage(name, "%s cannot be read: %v", metaFile, err)
		return nil, nil
	}
	return &info.StreamConfig, r.examineSum(path, name, text)
}

// examineSum compares a description with its checksum, which the server writes
// after it: a kill in between leaves a whole description with the checksum of the one
// before, or none.
func (r *Report) examineSum(path, hashed string, meta []byte) error {
	want := sumOf(hashed, meta)
	have, err := os.ReadFile(filepath.Join(path, sumFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(have) != want {
		r.leftover(path, "a description whose checksum was not written yet", func() error {
			return renameio.WriteFile(filepath.Join(path, sumFile), []byte(want), 0o600)
		})
	}
	return nil
}

func sumOf(hashed string, meta []byte) string {
	h := newHash(hashed)
	h.Write(meta)
	return hex.EncodeToString(h.Sum(nil))
}

// examineConsumers reads what consumers have acknowledged. One without a
// description is made again with the position that lies there.
func (r *Report) examineConsumers(path, stream string) error {
	folders, err := os.ReadDir(filepath.Join(path, consumers))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, folder := range folders {
		at := filepath.Join(path, consumers, folder.Name())
		if err := r.examineTemporaries(at); err != nil {
			return err
		}
		state, err := os.ReadFile(filepath.Join(at, consumerState))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && !readableState(state) {
			r.damage(stream, "%s of the consumer %s cannot be read", consumerState, folder.Name())
		}
		meta, err := os.ReadFile(filepath.Join(at, metaFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !json.Valid(meta) {
			r.damage(stream, "%s of the consumer %s cannot be read", metaFile, folder.Name())
			continue
		}
		if err := r.examineSum(at, stream+"/"+folder.Name(), meta); err != nil {
			return err
		}
	}
	return nil
}

// readableState reports whether a consumer's position begins as nats-server's do.
func readableState(state []byte) bool {
	return len(state) > 2 && state[0] == 22 && (state[1] == 1 || state[1] == 2)
}

// examineTemporaries finds files that were to be renamed, in a folder of a stream or
// of a consumer.
func (r *Report) examineTemporaries(path string) error {
	for _, folder := range []string{path, filepath.Join(path, messages)} {
		files, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, f := range files {
			if name := f.Name(); f.Type().IsRegular() && (strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".new") || strings.HasPrefix(name, "_test_")) {
				r.leftover(filepath.Join(folder, name), "a file that was just being written", func() error { return os.Remove(filepath.Join(folder, name)) })
			}
		}
	}
	return nil
}

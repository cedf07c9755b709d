package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Encrypted reports whether nats-server has encrypted the store.
func (s Store) Encrypted() (bool, error) {
	if _, err := os.Stat(s.fingerprint()); err == nil {
		return true, nil
	}
	keys, err := filepath.Glob(filepath.Join(escape(streamsIn(s.Dir, s.Account)), "*", keyFile))
	return len(keys) > 0, err
}

// fingerprint is what Pawl kept beside an encrypted store, to know its key.
func (s Store) fingerprint() string { return filepath.Join(s.Dir, "key.fingerprint") }

// Old lists the encrypted stores that Decrypt has kept.
func (s Store) Old() ([]string, error) { return filepath.Glob(escape(s.Dir) + ".encrypted-*") }

// verified is a file beside a decrypted store that was read again and is whole.
const verified = "verified"

func (s Store) migrating() string { return s.Dir + ".migrating" }

// FinishMigration puts the decrypted store in its place, if a kill left it between
// the two renames, and removes a decrypted store that was not finished.
func (s Store) FinishMigration() error {
	_, none := os.Stat(s.Dir)
	_, whole := os.Stat(filepath.Join(s.migrating(), verified))
	made := filepath.Join(s.migrating(), "store")
	_, waits := os.Stat(made)
	if errors.Is(none, fs.ErrNotExist) && whole == nil && waits == nil {
		if err := errors.Join(os.Rename(made, s.Dir), syncPath(filepath.Dir(s.Dir))); err != nil {
			return err
		}
	}
	return os.RemoveAll(s.migrating())
}

// Decrypt replaces an encrypted store by one that is not, with the same messages,
// sequences, times and positions of consumers, and returns where the encrypted one is
// kept. Nothing is written to the encrypted one, and no server opens it: it would
// delete what it cannot read. If Decrypt fails, the encrypted store stays as it is.
func (s Store) Decrypt(key string) (kept string, err error) {
	if err := s.FinishMigration(); err != nil {
		return "", err
	}
	if !holdsStreams(s.Dir, s.Account) {
		return "", os.Remove(s.fingerprint()) // nothing was ever stored
	}
	began, made := time.Now(), filepath.Join(s.migrating(), "store")
	r, err := s.decrypt(key, made)
	if err != nil {
		return "", fmt.Errorf("decrypt %s: %w; the encrypted store was not changed", s.Dir, errors.Join(err, os.RemoveAll(s.migrating())))
	}
	if err := write(filepath.Join(s.migrating(), verified), nil); err != nil {
		return "", err
	}
	if err := SyncAll(s.migrating()); err != nil {
		return "", err
	}
	var total uint64
	for _, stream := range r.Streams {
		total += stream.Messages
	}
	kept = s.Dir + ".encrypted-" + time.Now().UTC().Format("20060102T150405.000Z")
	if err := errors.Join(os.Rename(s.Dir, kept), syncPath(filepath.Dir(s.Dir))); err != nil {
		return "", err
	}
	if err := s.FinishMigration(); err != nil {
		return "", err
	}
	s.Log.Warn("the store is no longer encrypted by NATS: each message was decrypted and verified. Delete the encrypted store, and store.key, if everything works",
		"encrypted", kept, "streams", len(r.Streams), "messages", total, "bytes", r.Bytes, "took", time.Since(began).Round(time.Millisecond).String())
	return kept, nil
}

// decrypt makes the decrypted store and reads it again, record by record.
func (s Store) decrypt(key, made string) (*Report, error) {
	folders, err := os.ReadDir(streamsIn(s.Dir, s.Account))
	if err != nil {
		return nil, err
	}
	d := decryption{key, s.Account}
	for _, folder := range folders {
		from, to := filepath.Join(streamsIn(s.Dir, s.Account), folder.Name()), filepath.Join(streamsIn(made, s.Account), folder.Name())
		began, err := s.began(from)
		if err != nil {
			return nil, err
		}
		if !began {
			s.Log.Warn("left out a stream that a kill left half made", "path", from)
			continue
		}
		if err := d.stream(from, to, folder.Name()); err != nil {
			return nil, err
		}
		if err := s.decryptBatches(d, from, to); err != nil {
			return nil, err
		}
	}
	known, err := ReadManifest(s.Manifest)
	if err != nil {
		return nil, err
	}
	r, err := Examine(made, s.Account, known)
	if err != nil {
		return nil, err
	}
	if len(r.Damage) > 0 {
		return nil, &DamagedError{Dir: s.Dir, Damage: r.Damage, Manifest: s.Manifest}
	}
	return r, nil
}

// began reports whether the folder holds a stream, and not only its beginning.
func (s Store) began(stream string) (bool, error) {
	if _, err := os.Stat(filepath.Join(stream, metaFile)); err == nil {
		return true, nil
	}
	return holdsRecords(stream)
}

// decryptBatches copies what the server needs to end a batch that it was storing.
func (s Store) decryptBatches(d decryption, from, to string) error {
	folders, err := os.ReadDir(filepath.Join(from, batches))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, folder := range folders {
		from := filepath.Join(from, batches, folder.Name())
		if began, err := s.began(from); err != nil {
			return err
		} else if !began {
			continue
		}
		if err := d.stream(from, filepath.Join(to, batches, folder.Name()), folder.Name()); err != nil {
			return err
		}
	}
	return nil
}

// SyncAll has every file and folder below, and so each name in it, on the disk.
func SyncAll(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(path)
	})
}

// CheckKey compares a key with the fingerprint that Pawl kept beside the store.
func (s Store) CheckKey(fingerprint string) error {
	have, err := os.ReadFile(s.fingerprint())
	if err == nil && strings.TrimSpace(string(have)) != fingerprint {
		return errors.New("it is another one")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // decryption tells
	}
	return err
}

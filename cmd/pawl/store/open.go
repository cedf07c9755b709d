package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Store is where one server keeps the streams of one account.
type Store struct {
	Dir      string // the server's store_dir
	Account  string
	Manifest string // the manifest's file
	// Spare names streams whose content is made again all the time: the store is not
	// given up for one of them.
	Spare []string
	Log   *slog.Logger
}

// Opened is a store that was in order before the server opened it.
type Opened struct {
	store  Store
	known  Manifest
	before *Report
}

// Open examines the store and puts in order what a kill leaves. What looks damaged
// is set aside as it is, and the error is a *DamagedError. No server may run.
func (s Store) Open() (*Opened, error) {
	known, err := ReadManifest(s.Manifest)
	if err != nil {
		return nil, err
	}
	if err := s.finishLinks(); err != nil {
		return nil, err
	}
	interrupted, err := s.interrupted()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	r, err := Examine(s.Dir, s.Account, known.With(interrupted.Streams))
	if err != nil {
		return nil, fmt.Errorf("examine the store: %w", err)
	}
	r.Damage = append(r.Damage, interrupted.Damage...)
	if known, err = s.discardSpare(r, known); err != nil {
		return nil, err
	}
	if len(r.Damage) > 0 {
		return nil, s.setAside(known.With(interrupted.Streams).With(r.Streams), r.Damage)
	}
	s.Log.Info("the store is in order", "streams", len(r.Streams), "bytes", r.Bytes, "took", time.Since(began).Round(time.Millisecond).String())
	for _, l := range r.Leftovers {
		s.Log.Warn("put in order what a kill left in the store", "path", l.Path, "what", l.What)
		if err := l.Mend(); err != nil {
			return nil, fmt.Errorf("mend %s (%s): %w", l.Path, l.What, err)
		}
	}
	if err := s.unlink(); err != nil {
		return nil, err
	}
	if err := s.link(); err != nil {
		s.Log.Warn("what nats-server deletes while it starts cannot be kept", "error", err)
	}
	return &Opened{s, known, r}, nil
}

// interrupted examines what was kept while a server started, if it was not confirmed
// what that server recovered.
func (s Store) interrupted() (*Report, error) {
	if _, err := os.Stat(s.starting()); errors.Is(err, fs.ErrNotExist) {
		return &Report{}, nil
	}
	r, err := Examine(s.starting(), s.Account, nil)
	if err != nil {
		return nil, fmt.Errorf("examine what was kept of the store: %w", err)
	}
	return r, nil
}

// Compare tells what the server did not recover.
func (o *Opened) Compare(found []server.StreamDetail) (lost []Damage) {
	r := &Report{}
	for _, before := range o.before.Streams {
		i := slices.IndexFunc(found, func(d server.StreamDetail) bool { return d.Name == before.Name })
		if i < 0 {
			r.damage(before.Name, "nats-server did not recover the stream, which had %d messages", before.Messages)
			continue
		}
		state := found[i].State
		r.compare(Stream{before.Name, state.Msgs, state.LastSeq, before.Keeps}, Known{before.Name, before.Last, before.Messages, true})
		if state.Lost != nil && len(state.Lost.Msgs) > 0 {
			r.damage(before.Name, "nats-server lost the messages %v", state.Lost.Msgs)
		}
	}
	return r.Damage
}

// Confirm says that the server recovered all.
func (o *Opened) Confirm() error { return o.store.unlink() }

// Reject sets the store aside as it was before the server opened it. The server must
// have stopped.
func (o *Opened) Reject(lost []Damage) error {
	return o.store.setAside(o.known.With(o.before.Streams), lost)
}

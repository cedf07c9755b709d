package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DamagedError is the refusal to start on a store that has lost something.
type DamagedError struct {
	Dir      string
	Damage   []Damage
	Aside    []string // where what is left of the store lies
	Manifest string
}

func (e *DamagedError) Error() string {
	var what []string
	for _, d := range e.Damage[:min(3, len(e.Damage))] {
		what = append(what, d.String())
	}
	if more := len(e.Damage) - len(what); more > 0 {
		what = append(what, fmt.Sprintf("and %d more", more))
	}
	where := "nothing was changed"
	if len(e.Aside) > 0 {
		where = "the store was set aside, unchanged, in " + strings.Join(e.Aside, " and ")
	}
	return fmt.Sprintf("the store in %s is damaged: %s; %s. Fix: `pawl restore FILE` restores a backup. Without a backup, delete %s to begin again with an empty store, and adopt every credential again",
		e.Dir, strings.Join(what, "; "), where, e.Manifest)
}

// setAside records what was there, so that the next start does not come up empty,
// and moves the store away. If it cannot be moved, it stays, and the next start
// finds the damage again.
func (s Store) setAside(known Manifest, damage []Damage) error {
	for _, d := range damage {
		if !slices.ContainsFunc(known, func(k Known) bool { return k.Name == d.Stream }) {
			known = append(known, Known{Name: d.Stream})
		}
	}
	if err := known.Write(s.Manifest); err != nil {
		return err
	}
	to := s.Dir + ".damaged-" + time.Now().UTC().Format("20060102T150405.000Z")
	if holdsStreams(s.starting(), s.Account) {
		s.move(s.starting(), to)
		to += "-after-the-start" // what nats-server left of it
	}
	if holdsStreams(s.Dir, s.Account) {
		s.move(s.Dir, to)
	}
	aside, err := filepath.Glob(escape(s.Dir) + ".damaged-*")
	if err != nil {
		return err
	}
	slices.SortFunc(damage, func(a, b Damage) int { return cmp.Compare(a.Stream, b.Stream) })
	return &DamagedError{s.Dir, damage, aside, s.Manifest}
}

// discardSpare moves spare streams that are damaged out of the store, and has the
// manifest forget them, so that they are made anew. It does nothing if another stream
// is damaged, too.
func (s Store) discardSpare(r *Report, known Manifest) (Manifest, error) {
	for _, d := range r.Damage {
		if !slices.Contains(s.Spare, d.Stream) {
			return known, nil
		}
	}
	for _, d := range r.Damage {
		s.Log.Warn("a stream that is made anew by itself was damaged", "damage", d.String())
		from, to := filepath.Join(streamsIn(s.Dir, s.Account), d.Stream), s.Dir+".discarded-"+d.Stream+"-"+time.Now().UTC().Format("20060102T150405.000Z")
		if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return known, fmt.Errorf("discard %s: %w", d.Stream, err)
		}
		known = slices.DeleteFunc(slices.Clone(known), func(k Known) bool { return k.Name == d.Stream })
		r.Streams = slices.DeleteFunc(r.Streams, func(have Stream) bool { return have.Name == d.Stream })
		r.Leftovers = slices.DeleteFunc(r.Leftovers, func(l Leftover) bool { return strings.HasPrefix(l.Path, from) })
	}
	if len(r.Damage) == 0 {
		return known, nil
	}
	r.Damage = nil
	return known, known.Write(s.Manifest)
}

func (s Store) move(from, to string) {
	if err := errors.Join(os.Rename(from, to), syncPath(filepath.Dir(to))); err != nil {
		s.Log.Error("the damaged store stays where it is", "path", from, "error", err)
	}
}

func holdsStreams(dir, account string) bool {
	streams, err := os.ReadDir(streamsIn(dir, account))
	return err == nil && len(streams) > 0
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// starting is where hard links keep what nats-server may delete while it starts.
func (s Store) starting() string { return s.Dir + ".starting" }

// link keeps every file of the store by a second name. A file that is cut off or
// appended to in place is so under both.
func (s Store) link() error {
	making := s.starting() + ".new"
	err := filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(making, strings.TrimPrefix(path, s.Dir))
		if d.IsDir() {
			return os.Mkdir(to, 0o700)
		}
		return os.Link(path, to)
	})
	if errors.Is(err, fs.ErrNotExist) && !holdsStreams(s.Dir, s.Account) {
		return nil // a new store
	}
	if err == nil {
		err = os.Rename(making, s.starting())
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(making))
	}
	return err
}

// unlink gives up the second names. What is half given up is not looked at again.
func (s Store) unlink() error {
	if err := os.Rename(s.starting(), s.starting()+".done"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.finishLinks()
}

// finishLinks removes what a kill left of link and unlink.
func (s Store) finishLinks() error {
	return errors.Join(os.RemoveAll(s.starting()+".new"), os.RemoveAll(s.starting()+".done"))
}

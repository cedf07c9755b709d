package saga

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A step ends in one of four ways, and its handler says which by what it
// returns: nil (done), Permanent (failed: trying again cannot help), NotYet
// (the world is not ready; ask again, this was no attempt), or any other error
// (try again; failed once the deadline is near).

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that trying again cannot mend. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// Permanentf is Permanent(fmt.Errorf(…)).
func Permanentf(format string, args ...any) error { return permanent{fmt.Errorf(format, args...)} }

// IsPermanent reports whether err, or one it wraps, was marked so.
func IsPermanent(err error) bool { return errors.As(err, new(permanent)) }

// NotYet is returned by a step that has to wait for the world.
type NotYet struct {
	Again    time.Duration // ask again after this
	Why      string        // for people; empty: too short a wait to tell them of
	Laggards []string      // who is waited for
}

func (n *NotYet) Error() string { return "not yet: " + n.Why }

// Join is errors.Join on one line, for work done in several places at once. What
// waits gives way to what fails: waiting would hide it.
func Join(errs []error) error {
	var failed, waits []error
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.As(err, new(*NotYet)):
			waits = append(waits, err)
		default:
			failed = append(failed, err)
		}
	}
	switch {
	case len(failed) == 1:
		return failed[0]
	case len(failed) > 1:
		return &several{failed}
	case len(waits) > 0:
		return waiting(waits)
	}
	return nil
}

type several struct{ errs []error }

func (s *several) Unwrap() []error { return s.errs }

func (s *several) Error() string {
	texts := make([]string, len(s.errs))
	for i, err := range s.errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// waiting is one wait for all: as long as the shortest, for everybody. Whoever
// comes first, it says the same thing, once: a changed text is told to people.
func waiting(errs []error) error {
	all := &NotYet{}
	var why []string
	for _, err := range errs {
		one := new(NotYet)
		errors.As(err, &one)
		if all.Again == 0 || one.Again < all.Again {
			all.Again = one.Again
		}
		why = append(why, one.Why)
		all.Laggards = append(all.Laggards, one.Laggards...)
	}
	slices.Sort(why)
	slices.Sort(all.Laggards)
	all.Laggards = slices.Compact(all.Laggards)
	all.Why = strings.Join(slices.Compact(why), "; ")
	return all
}

package saga

import (
	"errors"
	"fmt"
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

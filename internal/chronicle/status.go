package chronicle

import (
	"fmt"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/words"
)

// States of a credential.
const (
	NotAdopted = "not-adopted"
	Idle       = "idle"
	Locked     = "locked"
	Stalled    = "stalled" // and Running
	Held       = "held"    // after a restore: see Status.Held
)

// Status of one credential.
type Status struct {
	Credential string     `json:"credential"`
	State      string     `json:"state"`
	Step       string     `json:"step,omitempty"`  // that is due, while running or stalled
	Owner      string     `json:"owner,omitempty"` // of that step
	Since      *time.Time `json:"since,omitempty"` // when it began to be due
	Login      string     `json:"login,omitempty"` // that is published
	Generation uint64     `json:"generation,omitempty"`
	AgeSeconds float64    `json:"age_seconds,omitempty"` // of the credential: since its rotation ended
	NextDue    *time.Time `json:"next_due,omitempty"`
	KeptUntil  *time.Time `json:"kept_until,omitempty"` // the predecessor, for `pawl rollback`
	Last       *Rotation  `json:"last_rotation,omitempty"`
	Note       *Note      `json:"note,omitempty"`    // the newest about what an open rotation waits for
	Drift      []Note     `json:"drift,omitempty"`   // what is not as it should be, and Pawl did not do
	Lock       *Lock      `json:"lock,omitempty"`    // nobody logs in until it is unlocked
	Held       string     `json:"held,omitempty"`    // why nothing is done with it after a restore, and what to do
	Waiting    []Waiting  `json:"waiting,omitempty"` // requests that wait for their time

	Now  time.Time `json:"-"` // when it was looked at
	Made time.Time `json:"-"` // when the rotation ended under which the current credential was made

	adopted, locked, open bool
	step                  *saga.Step // that is due
	due                   time.Time  // when it began to be
	late                  time.Time  // from when on it is stalled; zero: never
	keeps                 bool       // it erases a predecessor that can be restored until then
}

// Lock is why nobody may log in, and since when.
type Lock struct {
	Since  time.Time `json:"since"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
}

// NewStatus reads the newest rotation's log. madeAt returns when the rotation
// ended under which the current credential was made.
func NewStatus(c *inventory.Credential, log bus.Log, madeAt func(rotation string) (time.Time, error), now time.Time) (Status, error) {
	s := Status{Credential: c.Name, State: NotAdopted}
	newest, err := rotation.Of(log, nil)
	if err != nil {
		return s, err
	}
	if newest.Empty() {
		return s.At(now), nil
	}
	last := sumUp(newest, now)
	s.Last = &last
	if current := newest.Current(); current.Rotation != "" {
		s.adopted, s.Login, s.Generation = true, current.User, current.Generation
		if s.Made, err = madeAt(current.Rotation); err != nil {
			return s, err
		}
		if c.RotateEvery > 0 {
			next := s.Made.Add(c.RotateEvery)
			s.NextDue = &next
		}
	}
	s.open, s.locked = newest.Open(), newest.Flow.Locks
	if _, contained := newest.Has(saga.Contained); s.locked && contained {
		s.Lock = &Lock{last.Requested, last.RequestedBy, last.Reason}
	}
	if s.step = newest.Next(); s.step != nil {
		s.due = newest.Due()
		if s.step.Retriable() {
			s.late = s.due.Add(newest.Limit())
		}
		s.keeps = s.step.Waits == saga.ForKeep && last.Outcome == string(saga.Completed) && !newest.Flow.Urgent
	}
	return s.At(now), nil
}

// HeldFor is the status of a credential that nothing is done with after a restore.
func (s Status) HeldFor(why string) Status {
	s.Held, s.State, s.KeptUntil = why, Held, nil
	return s
}

// At is the same status, looked at at another time.
func (s Status) At(now time.Time) Status {
	s.Now, s.State, s.Step, s.Owner, s.Since, s.KeptUntil = now, NotAdopted, "", "", nil, nil
	if s.adopted {
		s.State, s.AgeSeconds = Idle, max(0, now.Sub(s.Made).Seconds()) // the clocks differ
	}
	if s.locked {
		s.State = Locked
	}
	if s.Last != nil && s.Last.Ended == nil {
		last := *s.Last
		last.Seconds = now.Sub(last.Requested).Seconds()
		s.Last = &last
	}
	late := !s.late.IsZero() && now.After(s.late)
	switch {
	case s.open:
		s.State = Running
	case late: // what follows a rotation is of no interest unless it does not succeed
	case s.keeps:
		due := s.due
		s.KeptUntil = &due
		return s
	default:
		return s
	}
	if late {
		s.State = Stalled
	}
	due := s.due
	s.Step, s.Owner, s.Since = s.step.Name, s.step.Owner, &due
	return s
}

// Explain adds the newest of the notes that is about what the rotation waits for.
func (s *Status) Explain(notes []bus.Entry) {
	for _, e := range notes {
		if s.Since == nil || e.Credential != s.Credential || e.Rotation != s.Last.ID || e.Note.GetStep() != s.Step {
			continue
		}
		switch e.Note.GetKind() {
		case "waiting", "retrying", "stalled":
			n := NewNote(e)
			s.Note = &n
		}
	}
}

// Age of the credential.
func (s Status) Age() time.Duration { return time.Duration(s.AgeSeconds * float64(time.Second)) }

// Overdue is how long past its policy's interval the credential is; 0: in time.
func (s Status) Overdue() time.Duration {
	if s.NextDue == nil {
		return 0
	}
	return max(0, s.Now.Sub(*s.NextDue))
}

// Says is the state as people read it.
func (s Status) Says() string {
	switch {
	case s.Since != nil:
		return fmt.Sprintf("%s: %s for %s", s.State, s.Step, words.Duration(max(0, s.Now.Sub(*s.Since))))
	case s.KeptUntil != nil && s.KeptUntil.After(s.Now):
		return "idle, predecessor kept for " + words.Duration(s.KeptUntil.Sub(s.Now).Truncate(time.Second))
	}
	return s.State
}

package render

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
)

// States of a credential.
const (
	NotAdopted = "not-adopted"
	Idle       = "idle"
	Stalled    = "stalled" // and Running
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
	Note       *Note      `json:"note,omitempty"` // the newest about what an open rotation waits for

	now time.Time
}

// NewStatus reads the newest rotation's log. madeAt returns when the rotation
// ended under which the current credential was made.
func NewStatus(c *inventory.Credential, log bus.Log, madeAt func(rotation string) (time.Time, error), now time.Time) (Status, error) {
	s := Status{Credential: c.Name, State: NotAdopted, now: now}
	if len(log.Records) == 0 {
		return s, nil
	}
	last, err := NewRotation(log, now)
	if err != nil {
		return s, err
	}
	state, err := log.Fold()
	if err != nil {
		return s, err
	}
	s.Last = &last
	if current := bus.CurrentOf(log, state); current.Rotation != "" {
		s.State, s.Login, s.Generation = Idle, current.User, current.Generation
		made, err := madeAt(current.Rotation)
		if err != nil {
			return s, err
		}
		s.AgeSeconds = max(0, now.Sub(made).Seconds()) // the clocks differ
		if c.RotateEvery > 0 {
			next := made.Add(c.RotateEvery)
			s.NextDue = &next
		}
	}
	step := state.Next()
	if step == nil {
		return s, nil
	}
	begin := log.Records[0].Body.GetRequested()
	due := state.Due(step, begin.GetKeep().AsDuration())
	late := step.Retriable() && now.After(due.Add(service.Limit(step, begin)))
	switch {
	case state.Open():
		s.State = Running
	case late: // what follows a rotation is of no interest unless it does not succeed
	case step.Waits == saga.ForKeep && last.Outcome == string(saga.Completed):
		s.KeptUntil = &due
		return s, nil
	default:
		return s, nil
	}
	if late {
		s.State = Stalled
	}
	s.Step, s.Owner, s.Since = step.Name, step.Owner, &due
	return s, nil
}

// Explain adds the newest of the notes that is about what the rotation waits for.
func (s *Status) Explain(notes []client.Entry) {
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

// StatusTable writes one line per credential, and below what is waited for.
func StatusTable(w io.Writer, all []Status, st Style) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CREDENTIAL\tSTATE\tLOGIN\tGEN\tAGE\tNEXT DUE\tLAST ROTATION")
	for _, s := range all {
		age, next, last, generation := "-", "-", "-", "-"
		if s.Login != "" {
			age, generation = Short(s.age().Truncate(time.Second)), fmt.Sprint(s.Generation)
		}
		if s.NextDue != nil {
			next = "in " + Short(s.NextDue.Sub(s.now).Truncate(time.Second))
			if s.NextDue.Before(s.now) {
				next = "overdue by " + Short(s.now.Sub(*s.NextDue).Truncate(time.Second))
			}
		}
		if s.Last != nil {
			last = fmt.Sprintf("%s %s (%s)", s.Last.ID, s.Last.Outcome, Short(s.Last.took()))
		}
		login := s.Login
		if login == "" {
			login = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Credential, s.state(), login, generation, age, next, last)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		if s.Note == nil {
			continue
		}
		for i, line := range wrap(s.Credential+": "+s.Note.label(), st.width()-2) {
			if i > 0 {
				line = "  " + line
			}
			if _, err := fmt.Fprintln(w, st.paint(yellow, line)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s Status) age() time.Duration { return time.Duration(s.AgeSeconds * float64(time.Second)) }

func (s Status) state() string {
	switch {
	case s.Since != nil:
		return fmt.Sprintf("%s: %s for %s", s.State, s.Step, Short(max(0, s.now.Sub(*s.Since))))
	case s.KeptUntil != nil && s.KeptUntil.After(s.now):
		return "idle, predecessor kept for " + Short(s.KeptUntil.Sub(s.now).Truncate(time.Second))
	}
	return s.State
}

package chronicle

import (
	"strings"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/calendar"
)

// Timeline is a whole rotation, as its log tells it.
type Timeline struct {
	Rotation
	Jaeger string `json:"jaeger,omitempty"`
	Steps  []Step `json:"steps"`
	Notes  []Note `json:"notes,omitempty"`

	Now time.Time `json:"-"` // where one that runs is looked at
}

// NewTimeline reads a log, and those of the notes that are about it. jaeger is
// the base URL of its user interface, or empty.
func NewTimeline(log bus.Log, notes []bus.Entry, jaeger string, now time.Time) (t Timeline, err error) {
	t.Now = now
	if t.Rotation, err = NewRotation(log, now); err != nil {
		return t, err
	}
	if t.Steps, err = Steps(log); err != nil {
		return t, err
	}
	if jaeger != "" && t.TraceID != "" {
		t.Jaeger = strings.TrimSuffix(jaeger, "/") + "/trace/" + t.TraceID
	}
	for _, e := range notes {
		if e.Rotation == log.Rotation && e.Credential == log.Credential && !strings.HasPrefix(e.Note.GetKind(), "request ") && e.Note.GetKind() != "refused" { // what was asked stands in the log
			t.Notes = append(t.Notes, NewNote(e))
		}
	}
	return t, nil
}

// End is when it ended, or is looked at.
func (t Timeline) End() time.Time {
	if t.Ended != nil {
		return *t.Ended
	}
	return t.Now
}

// Axis is that of the whole rotation, without what follows its end.
func (t Timeline) Axis() Axis {
	var busy []calendar.Span
	for _, step := range t.Steps {
		if step.Started != nil && step.Phase != After {
			busy = append(busy, calendar.Span{Begin: *step.Started, End: *step.Ended})
		}
	}
	return newAxis(t.Requested, t.End(), busy)
}

// NotesOf returns the notes of the i-th step: those from the end of the one
// before it to its own.
func (t Timeline) NotesOf(i int) (notes []Note) {
	last := i == len(t.Steps)-1
	for _, n := range t.Notes {
		after := i == 0 || t.Steps[i-1].Ended == nil || n.At.After(*t.Steps[i-1].Ended)
		before := last || t.Steps[i].Ended == nil || !n.At.After(*t.Steps[i].Ended)
		if after && before {
			notes = append(notes, n)
		}
	}
	return notes
}

// Waited is the pause before the step's last attempt, 0 where it is not worth
// the name.
func (t Timeline) Waited(s Step) time.Duration {
	if s.Started == nil {
		return 0
	}
	pause := s.Started.Sub(s.Due)
	if pause < 50*time.Millisecond || pause < t.Took()/32 {
		return 0
	}
	return pause
}

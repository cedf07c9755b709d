// Package chronicle tells what the log and the notes mean to people: rotations
// in one line, as steps and as a timeline, and where a credential stands. The
// command line and the dashboard show the same. It is pure: what it tells
// depends on its arguments alone.
package chronicle

import (
	"strings"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/telemetry"
	"pawl.dev/internal/words"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Running is the outcome of a rotation that has none yet; the others are the
// names of the events that end one: completed, rolled-back.
const Running = "running"

// Superseded is the outcome of one that an emergency has ended.
const Superseded = "superseded"

// Rotation is what is to be said of one rotation in one line.
type Rotation struct {
	ID              string     `json:"rotation"`
	Credential      string     `json:"credential"`
	Group           []string   `json:"group,omitempty"` // all that turn together, this one among them
	Flow            string     `json:"flow"`
	Outcome         string     `json:"outcome"`
	Generation      uint64     `json:"generation"`
	Login           string     `json:"login,omitempty"` // that was given, or adopted
	Requested       time.Time  `json:"requested"`
	RequestedBy     string     `json:"requested_by,omitempty"`
	AuthenticatedAs string     `json:"authenticated_as,omitempty"`
	Reason          string     `json:"reason,omitempty"`
	Ended           *time.Time `json:"ended,omitempty"`
	Seconds         float64    `json:"seconds"` // so far, while it runs
	Failure         *Failure   `json:"failure,omitempty"`
	OutageSeconds   float64    `json:"outage_seconds,omitempty"` // in-place: how long the published login was refused
	TraceID         string     `json:"trace_id,omitempty"`
}

// Failure is what turned a rotation round.
type Failure struct {
	Step   string `json:"step"`
	Reason string `json:"reason"`
}

// NewRotation sums up a log; now is where one that runs is looked at.
func NewRotation(log bus.Log, now time.Time) (Rotation, error) {
	folded, err := rotation.Fold(log)
	if err != nil {
		return Rotation{}, err
	}
	return sumUp(folded, now), nil
}

func sumUp(of rotation.Rotation, now time.Time) Rotation {
	begin := of.Requested()
	r := Rotation{ID: of.Rotation, Credential: of.Credential, Group: begin.GetGroup(), Flow: begin.GetFlow(), Outcome: Running, Generation: begin.GetGeneration(),
		Requested: of.Began(), RequestedBy: begin.GetRequestedBy(), AuthenticatedAs: begin.GetAuthenticatedAs(), Reason: begin.GetReason()}
	if ended, ok := of.Ended(); ok {
		now, r.Outcome, r.Ended = ended.At, string(ended.Event), &ended.At
	}
	r.Seconds = now.Sub(of.Began()).Seconds()
	if of.Failed != nil {
		r.Failure = &Failure{of.Failure().GetStep(), of.Failure().GetReason()}
	}
	for _, record := range of.Records {
		if user := record.Body.GetStaged().GetUser(); user != "" {
			r.Login = user
		}
		r.OutageSeconds += record.Body.GetProof().GetOutage().AsDuration().Seconds()
	}
	if span := telemetry.Extract(of.Records[0].Header); span.IsValid() {
		r.TraceID = span.TraceID().String()
	}
	return r
}

// Took is how long it took, or has taken so far.
func (r Rotation) Took() time.Duration { return time.Duration(r.Seconds * float64(time.Second)) }

// IsRollback reports whether the rotation was asked to restore a predecessor:
// then to end rolled-back is its success.
func IsRollback(log bus.Log) bool {
	return log.Requested().GetAction() == pawlv1.Action_ACTION_ROLLBACK
}

// Phases of a rotation.
const (
	Forward = "forward"
	Back    = "back"  // after a failure
	After   = "after" // the rotation's end
)

// Step is one step of a rotation, done or due.
type Step struct {
	Name       string      `json:"step"`
	Owner      string      `json:"owner"`
	Phase      string      `json:"phase"`
	Event      string      `json:"event,omitempty"` // that ended it; empty: it is due
	Due        time.Time   `json:"due"`
	Started    *time.Time  `json:"started,omitempty"` // the last attempt; absent: none has ended
	Ended      *time.Time  `json:"ended,omitempty"`
	Attempt    uint32      `json:"attempt,omitempty"`
	Instance   string      `json:"instance,omitempty"`
	Summary    string      `json:"summary,omitempty"`
	Failure    string      `json:"failure,omitempty"`
	Warnings   []string    `json:"warnings,omitempty"`
	Operations []Operation `json:"operations,omitempty"`
}

// Operation is one effect inside a step.
type Operation struct {
	Name    string    `json:"operation"`
	Target  string    `json:"target,omitempty"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Error   string    `json:"error,omitempty"`
}

// Note is one note of a rotation.
type Note struct {
	At       time.Time `json:"at"`
	Service  string    `json:"service"`
	Kind     string    `json:"kind"`
	Step     string    `json:"step,omitempty"`
	Text     string    `json:"text,omitempty"`
	Laggards []string  `json:"laggards,omitempty"`
}

// Steps tells the log as steps: each event ends the one that was due before it.
// The last one may still be due.
func Steps(log bus.Log) ([]Step, error) {
	var steps []Step
	for i := 1; i <= len(log.Records); i++ {
		before := log
		before.Records = log.Records[:i]
		at, err := rotation.Fold(before)
		if err != nil {
			return nil, err
		}
		due := at.Next()
		if due == nil {
			break
		}
		s := Step{Name: due.Name, Owner: due.Owner, Phase: Forward, Due: at.Due()}
		if at.Failed != nil {
			s.Phase = Back
		}
		if !at.Open() {
			s.Phase = After
		}
		if i < len(log.Records) {
			s.end(log.Records[i])
		}
		steps = append(steps, s)
	}
	return steps, nil
}

func (s *Step) end(r bus.Record) {
	s.Event, s.Ended = string(r.Event), &r.At
	s.Attempt, s.Instance, s.Summary, s.Warnings = r.Body.GetAttempt(), r.Body.GetInstance(), r.Body.GetSummary(), r.Body.GetWarnings()
	s.Failure = r.Body.GetFailure().GetReason()
	if s.Due.After(r.At) {
		s.Due = r.At // the clocks differ
	}
	if at := r.Body.GetStartedAt(); at != nil {
		started := Between(at.AsTime(), s.Due, r.At)
		s.Started = &started
	}
	for _, op := range r.Body.GetOperations() {
		s.Operations = append(s.Operations, Operation{op.GetName(), op.GetTarget(), op.GetStartedAt().AsTime(), op.GetDuration().AsDuration().Seconds(), op.GetError()})
	}
}

// Between keeps t within the two: an owner's clock within the bus's.
func Between(t, low, high time.Time) time.Time {
	switch {
	case t.Before(low):
		return low
	case t.After(high):
		return high
	}
	return t
}

// NewNote takes over a stored note.
func NewNote(e bus.Entry) Note {
	return Note{e.At, e.Service, e.Note.GetKind(), e.Note.GetStep(), e.Note.GetText(), e.Note.GetLaggards()}
}

// Label is the note as people read it: its kind, and what it says.
func (n Note) Label() string { return n.Kind + ": " + n.Says() }

// Says is the text, and who is in the way.
func (n Note) Says() string {
	text := words.OneLine(n.Text)
	if len(n.Laggards) > 0 {
		text += " (" + strings.Join(n.Laggards, ", ") + ")"
	}
	return text
}

// MarkSuperseded gives the rotations that a later one has superseded their
// outcome; all are one credential's.
func MarkSuperseded(all []Rotation, logs []bus.Log) {
	for _, log := range logs {
		began := log.Began()
		for i := range all {
			if all[i].Outcome == Running && log.Requested().GetSupersedes() == all[i].ID {
				all[i].Outcome, all[i].Ended = Superseded, &began
				all[i].Seconds = began.Sub(all[i].Requested).Seconds()
			}
		}
	}
}

// Package saga holds the flows of Pawl as tables and the two pure functions
// that every service runs over them: Fold reads a rotation's log into a State,
// State.Next names the one step that is due. There is no other saga state and
// no orchestrator: each service folds, sees whether the step is its own, does
// it, and appends the result. The package does no I/O.
package saga

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Event is the last token of a log subject.
type Event string

// Wait says what a step waits for before it may begin.
type Wait string

// What a step may wait for.
const (
	ForNothing Wait = ""
	ForDrain   Wait = "drain" // the login that goes away has been unused for `drain`; stalled after `drain_deadline`
	ForKeep    Wait = "keep"  // `keep` has passed since the rotation ended
)

// Step is one row of a flow.
type Step struct {
	Name     string
	Owner    string
	Emits    Event
	Fails    Event         // empty: may not fail; retried for ever
	Undoes   string        // Undo rows: the forward step whose being reached makes this row due; empty: always
	Deadline time.Duration // from the event that made the step due (ForKeep: from the end of the wait)
	Waits    Wait
	Does     string
}

// Retriable reports whether the step is past the point of no return, where
// giving up would lose a credential.
func (s Step) Retriable() bool { return s.Fails == "" }

// Flow is one table: what is true of every rotation by it, the rows forward, the rows
// that undo them, and what follows the end. What code asks of a flow is a column, never
// its name: a flow of a newer version has another one. Validate proves that the columns
// say what the rows do.
type Flow struct {
	Name                string
	Does                string
	Logins              Logins
	Urgent              bool // contains first, supersedes any other rotation of its credential, and waits in no queue with one
	Locks               bool // ends with every login refused: no credential is current
	Adopts              bool // takes over the credential that is in use: nothing is staged
	Restores            bool // goes back to the previous credential of a completed rotation
	Forward, Undo, Tail []Step
}

// Logins is how many logins a flow rotates.
type Logins int

// How many logins a flow rotates.
const (
	Either Logins = iota // whatever the credential has: the flow goes the same way
	One                  // one, which gets another password
	Two                  // two, which are current in turn
)

// FlowByName finds a flow; ok is false for a name this version does not know.
func FlowByName(name string) (flow *Flow, ok bool) {
	i := slices.IndexFunc(Flows, func(f Flow) bool { return f.Name == name })
	if i < 0 {
		return nil, false
	}
	return &Flows[i], true
}

var number = regexp.MustCompile(`-[0-9]+$`)

// Kind is what a flow is a version of: alternating-2 is an alternating flow.
func Kind(flow string) string { return number.ReplaceAllString(flow, "") }

// FlowLike returns the flow of that name; if only another version knows it, the newest
// one of its kind, which has the same columns; and if nobody knows its kind, a flow
// without rows, of which no column is set.
func FlowLike(name string) *Flow {
	for _, name := range []string{name, Newest(Kind(name))} {
		if f, ok := FlowByName(name); ok {
			return f
		}
	}
	return &Flow{}
}

// Newest names the flow of that kind by which rotations begin: the last one of
// the table. It is empty where there is none.
func Newest(kind string) string {
	for _, f := range slices.Backward(Flows) {
		if Kind(f.Name) == kind {
			return f.Name
		}
	}
	return ""
}

// Entry is one stored event of a rotation.
type Entry struct {
	Event Event
	Seq   uint64    // in the log's stream
	At    time.Time // when it was stored, by the bus's clock
}

// State is a folded log.
type State struct {
	Flow   *Flow
	Last   Entry
	Failed *Entry // the event that turned the rotation round
	seen   map[Event]Entry
}

// ErrUnknownEvent is wrapped by Fold where the log holds an event or a flow of
// another version. Such a rotation is left to a service that knows it.
var ErrUnknownEvent = errors.New("this version of Pawl does not know it, another one does")

// Fold reads the log of one rotation, in stored order, from `requested` on. One
// of another version that has ended is read as one of its kind.
func Fold(flowName string, log []Entry) (State, error) {
	flow, known := FlowByName(flowName)
	if !known {
		if flow = FlowLike(flowName); flow.Name == "" || !slices.ContainsFunc(log, ends) {
			return State{}, fmt.Errorf("flow %q: %w", flowName, ErrUnknownEvent)
		}
	}
	s := State{Flow: flow, seen: make(map[Event]Entry, len(log))}
	for i, e := range log {
		if (i == 0) != (e.Event == Requested) {
			return State{}, fmt.Errorf("log begins with %q: a rotation begins with one %q", log[0].Event, Requested)
		}
		if known && !flow.knows(e.Event) {
			return State{}, fmt.Errorf("event %q in flow %q: %w", e.Event, flowName, ErrUnknownEvent)
		}
		s.seen[e.Event] = e
		s.Last = e
		if s.Failed == nil && flow.turns(e.Event) {
			s.Failed = &e
		}
	}
	if len(log) == 0 {
		return State{}, errors.New("empty log")
	}
	return s, nil
}

func ends(e Entry) bool { return e.Event == Completed || e.Event == RolledBack }

// Has returns the stored event, if the rotation has it.
func (s State) Has(e Event) (Entry, bool) { entry, ok := s.seen[e]; return entry, ok }

// Ended returns completed or rolled-back, once the rotation has it.
func (s State) Ended() (Entry, bool) {
	for _, e := range []Event{Completed, RolledBack} {
		if entry, ok := s.seen[e]; ok {
			return entry, true
		}
	}
	return Entry{}, false
}

// Open reports whether the rotation stands in the way of another one.
func (s State) Open() bool { _, ended := s.Ended(); return !ended }

// Next returns the step that is due, or nil when nothing is left to do. The
// step may still have to wait: see Step.Waits.
func (s State) Next() *Step {
	rows := s.Flow.Forward
	if s.Failed != nil {
		rows = s.Flow.Undo
	}
	if _, ended := s.Ended(); ended {
		rows = s.Flow.Tail
	}
	for i := range rows {
		row := &rows[i]
		if _, done := s.seen[row.Emits]; !done && s.reached(row.Undoes) {
			return row
		}
	}
	return nil
}

// Due returns when the step began to be due: when the newest event was stored,
// or, after a wait for keep, when that ends.
func (s State) Due(step *Step, keep time.Duration) time.Time {
	from, wait := s.DueAfter(step, keep)
	return from.Add(wait)
}

// DueAfter returns how long after which stored event the step is due.
func (s State) DueAfter(step *Step, keep time.Duration) (from time.Time, wait time.Duration) {
	if ended, ok := s.Ended(); ok && step.Waits == ForKeep {
		return ended.At, keep
	}
	return s.Last.At, 0
}

// reached reports whether the forward step was ever due: its predecessor has
// emitted, so it may have had effects, whatever became of it.
func (s State) reached(step string) bool {
	if step == "" {
		return true
	}
	before := Requested
	for _, row := range s.Flow.Forward {
		if row.Name == step {
			_, ok := s.seen[before]
			return ok
		}
		before = row.Emits
	}
	return false
}

func (f *Flow) rows() []Step { return slices.Concat(f.Forward, f.Undo, f.Tail) }

func (f *Flow) turns(e Event) bool {
	return slices.Contains(Reversals, e) || slices.ContainsFunc(f.Forward, func(s Step) bool { return s.Fails != "" && s.Fails == e })
}

func (f *Flow) emits(e Event) bool {
	return slices.ContainsFunc(f.rows(), func(s Step) bool { return s.Emits == e })
}

func (f *Flow) knows(e Event) bool { return e == Requested || f.turns(e) || f.emits(e) }

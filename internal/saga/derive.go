package saga

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Steps returns the names of the steps that owner does, sorted.
func Steps(owner string) []string {
	var names []string
	for _, f := range Flows {
		for _, s := range f.rows() {
			if s.Owner == owner {
				names = append(names, s.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Emits returns the events that only owner may publish, sorted.
func Emits(owner string) []Event {
	var events []Event
	for _, f := range Flows {
		for _, s := range f.rows() {
			if s.Owner == owner {
				events = append(events, s.Emits)
				if s.Fails != "" {
					events = append(events, s.Fails)
				}
			}
		}
	}
	if owner == Scheduler {
		events = append(append(events, Requested), Reversals...)
	}
	slices.Sort(events)
	return slices.Compact(events)
}

// OwnerOf returns the service that alone may publish the event, empty for an
// event that this version does not know.
func OwnerOf(e Event) string {
	for _, service := range Services {
		if slices.Contains(Emits(service), e) {
			return service
		}
	}
	return ""
}

// Events returns every event there is, sorted.
func Events() []Event {
	var events []Event
	for _, s := range Services {
		events = append(events, Emits(s)...)
	}
	slices.Sort(events)
	return slices.Compact(events)
}

// Triggers returns the events after which a step of owner may be due, sorted, in
// the urgent flows or in the others: what its consumer of those listens to. It
// walks every log that the tables allow.
func Triggers(owner string, urgent bool) []Event {
	var events []Event
	Walk(func(log []Entry, s State, next *Step) {
		if s.Flow.Urgent == urgent && next != nil && next.Owner == owner {
			events = append(events, s.Last.Event)
		}
	})
	slices.Sort(events)
	return slices.Compact(events)
}

// Walk visits every log that the tables allow, each with its state and the
// step that is due (nil at the end).
func Walk(visit func(log []Entry, s State, next *Step)) {
	for _, f := range Flows {
		walk(f.Name, []Entry{{Event: Requested, Seq: 1}}, visit)
	}
}

func walk(flow string, log []Entry, visit func([]Entry, State, *Step)) {
	state, err := Fold(flow, log)
	if err != nil {
		panic(fmt.Sprintf("the tables of package saga allow what Fold refuses: %v", err))
	}
	next := state.Next()
	visit(log, state, next)
	if next == nil {
		return
	}
	after := []Event{next.Emits}
	if !next.Retriable() {
		after = append(append(after, next.Fails), Reversals...)
	}
	for _, e := range after {
		walk(flow, append(slices.Clone(log), Entry{Event: e, Seq: uint64(len(log) + 1)}), visit)
	}
}

// Validate proves the tables closed and unambiguous; a test runs it.
func Validate() error {
	for _, f := range Flows {
		if err := f.validateColumns(); err != nil {
			return fmt.Errorf("flow %s: %w", f.Name, err)
		}
		seen := map[string]bool{}
		for _, s := range f.rows() {
			switch {
			case seen[s.Name]:
				return fmt.Errorf("flow %s: two rows are called %q", f.Name, s.Name)
			case !slices.Contains(Services, s.Owner):
				return fmt.Errorf("flow %s, %s: unknown owner %q", f.Name, s.Name, s.Owner)
			case s.Deadline <= 0:
				return fmt.Errorf("flow %s, %s: no deadline", f.Name, s.Name)
			case s.Undoes != "" && !slices.ContainsFunc(f.Forward, func(r Step) bool { return r.Name == s.Undoes }):
				return fmt.Errorf("flow %s, %s: undoes %q, which is no forward row", f.Name, s.Name, s.Undoes)
			case s.Fails != "" && len(f.Undo) == 0:
				return fmt.Errorf("flow %s, %s: may fail, but nothing takes it back", f.Name, s.Name)
			}
			seen[s.Name] = true
		}
		for _, s := range slices.Concat(f.Undo, f.Tail) {
			if s.Fails != "" {
				return fmt.Errorf("flow %s, %s: compensation may not fail", f.Name, s.Name)
			}
		}
	}
	owner := map[Event]string{}
	for _, s := range Services {
		for _, e := range Emits(s) {
			if other, taken := owner[e]; taken {
				return fmt.Errorf("event %s: owned by %s and by %s", e, other, s)
			}
			owner[e] = s
		}
	}
	return nil
}

// validateColumns proves that the columns say what the rows do, and what they say of
// the other flows of its kind.
func (f *Flow) validateColumns() error {
	stages, ends := f.emits(Staged), f.Forward[len(f.Forward)-1].Emits
	drains := slices.ContainsFunc(f.Forward, func(s Step) bool { return s.Waits == ForDrain })
	newest := FlowLike(Newest(Kind(f.Name)))
	switch {
	case f.Urgent != (f.Forward[0].Emits == Contained):
		return fmt.Errorf("urgent is what begins with %s", Contained)
	case f.Locks != (f.Urgent && !stages):
		return fmt.Errorf("it locks if it is urgent and never emits %s", Staged)
	case f.Adopts != f.emits(Adopted) || f.Adopts && stages:
		return fmt.Errorf("it adopts if it emits %s, and never %s", Adopted, Staged)
	case f.Restores != (ends == RolledBack) || f.Restores && (stages || len(f.Undo) > 0):
		return fmt.Errorf("it restores if it goes forward to %s, stages nothing and undoes nothing", RolledBack)
	case (f.Logins == Either) != (f.Urgent || f.Adopts):
		return errors.New("only what is urgent or adopts takes either one login or two")
	case (f.Logins == Two) != drains:
		return errors.New("of two logins, and of no less, one is drained")
	case f.Logins != newest.Logins || f.Urgent != newest.Urgent || f.Locks != newest.Locks || f.Adopts != newest.Adopts || f.Restores != newest.Restores:
		return fmt.Errorf("it has other columns than %s", newest.Name)
	}
	return nil
}

// Markdown renders the tables as docs/flow.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# The flows\n\nGenerated from `internal/saga/flow.go` by `make generate`; do not edit.\n\n" +
		"A row is due when the row before it has emitted its event. Where a row names a failure event, that event turns the rotation round, and so does the scheduler's `timed-out` or, if an operator cancels the rotation, its `cancelled`: the rows under *back* whose forward step was reached are then walked. Rows without a failure event are retried for ever; past their deadline they are stalled, which people are told of.\n")
	for _, f := range Flows {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n```mermaid\nstateDiagram-v2\n", f.Name, f.Does)
		mermaid(&b, &f)
		b.WriteString("```\n\n| | step | owner | what | emits | on failure | deadline |\n|---|---|---|---|---|---|---|\n")
		for _, part := range []struct {
			title string
			rows  []Step
		}{{"forward", f.Forward}, {"back", f.Undo}, {"after", f.Tail}} {
			for _, s := range part.rows {
				fails := "retried for ever"
				if s.Fails != "" {
					fails = "`" + string(s.Fails) + "`"
				}
				deadline := s.Deadline.String()
				if s.Waits != ForNothing {
					deadline += ", after `" + string(s.Waits) + "`"
				}
				fmt.Fprintf(&b, "| %s | %s | %s | %s | `%s` | %s | %s |\n", part.title, s.Name, s.Owner, s.Does, s.Emits, fails, deadline)
			}
		}
	}
	return b.String()
}

func mermaid(b *strings.Builder, f *Flow) {
	id := func(e Event) string { return strings.ReplaceAll(string(e), "-", "_") }
	arrow := func(from Event, s Step) {
		fmt.Fprintf(b, "  %s --> %s: %s (%s)\n", id(from), id(s.Emits), s.Name, s.Owner)
	}
	fmt.Fprintf(b, "  [*] --> %s\n", id(Requested))
	before := Requested
	for _, s := range f.Forward {
		arrow(before, s)
		if s.Fails != "" {
			fmt.Fprintf(b, "  %s --> failed: %s\n", id(before), s.Fails)
		}
		before = s.Emits
	}
	ends := []Event{before}
	if len(f.Undo) > 0 {
		before = "failed"
		for _, s := range f.Undo {
			arrow(before, s)
			before = s.Emits
		}
		ends = append(ends, before)
	}
	for _, end := range ends {
		for _, s := range f.Tail {
			arrow(end, s)
		}
		if len(f.Tail) == 0 {
			fmt.Fprintf(b, "  %s --> [*]\n", id(end))
		}
	}
	for _, s := range f.Tail {
		fmt.Fprintf(b, "  %s --> [*]\n", id(s.Emits))
	}
}

package render

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// Timeline is a whole rotation, as its log tells it.
type Timeline struct {
	Rotation
	Jaeger string `json:"jaeger,omitempty"`
	Steps  []Step `json:"steps"`
	Notes  []Note `json:"notes,omitempty"`

	now time.Time
}

// NewTimeline reads a log, and those of the notes that are about it. jaeger is
// the base URL of its user interface, or empty.
func NewTimeline(log bus.Log, notes []client.Entry, jaeger string, now time.Time) (t Timeline, err error) {
	t.now = now
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
		if e.Rotation == log.Rotation && e.Credential == log.Credential && !strings.HasPrefix(e.Note.GetKind(), "request ") { // what was asked stands in the log
			t.Notes = append(t.Notes, NewNote(e))
		}
	}
	return t, nil
}

// NewNote takes over a stored note.
func NewNote(e client.Entry) Note {
	return Note{e.At, e.Service, e.Note.GetKind(), e.Note.GetStep(), e.Note.GetText(), e.Note.GetLaggards()}
}

// Columns of the waterfall before its bars.
const (
	markWidth  = 2
	stepWidth  = 14
	ownerWidth = 17
	startWidth = 9
	tookWidth  = 8
	barGap     = 2
	beforeBar  = markWidth + stepWidth + ownerWidth + startWidth + tookWidth + barGap
)

// waterfall is one being written.
type waterfall struct {
	Timeline
	Style
	axis axis
	out  bytes.Buffer
}

// Waterfall writes the rotation with one line per step and one per effect.
func Waterfall(w io.Writer, t Timeline, s Style) error {
	end := t.now
	if t.Ended != nil {
		end = *t.Ended
	}
	var busy []interval
	for _, step := range t.Steps {
		if step.Started != nil && step.Phase != After {
			busy = append(busy, interval{*step.Started, *step.Ended})
		}
	}
	f := &waterfall{Timeline: t, Style: s, axis: newAxis(t.Requested, end, busy, max(20, s.width()-beforeBar))}
	f.header()
	f.line(f.paint(dim, fmt.Sprintf("%*s%-*s%-*s%*s%*s%*s%s", markWidth, "", stepWidth, "STEP", ownerWidth, "OWNER",
		startWidth, "START", tookWidth, "TOOK", barGap, "", f.axis.ruler(Short(end.Sub(t.Requested))))))
	phase := Forward
	for i, step := range t.Steps {
		if step.Phase != phase {
			phase = step.Phase
			f.divider(phase)
		}
		f.step(i, step)
	}
	f.legend()
	_, err := w.Write(f.out.Bytes())
	return err
}

// Waterfalls writes those of all that turned together, one below the other.
func Waterfalls(w io.Writer, all []Timeline, s Style) error {
	for i, t := range all {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return err
			}
		}
		if err := Waterfall(w, t, s); err != nil {
			return err
		}
	}
	return nil
}

func (f *waterfall) line(text string) {
	f.out.WriteString(strings.TrimRight(text, " "))
	f.out.WriteByte('\n')
}

func outcomeOf(outcome string) (mark string, c colour) {
	switch outcome {
	case string(saga.Completed):
		return "✓", green
	case string(saga.RolledBack):
		return "↩", yellow
	}
	return "…", blue
}

func (f *waterfall) header() {
	mark, c := outcomeOf(f.Outcome)
	verb := " in "
	if f.Outcome == Running {
		verb = " for "
	}
	f.line(f.paint(c, mark+" "+f.Outcome+verb+Short(f.took())) + "  " + f.paint(bold, f.Credential))
	flow := fmt.Sprintf("%s, generation %d", f.Flow, f.Generation)
	if f.Login != "" {
		flow += ", login " + f.Login
	}
	if len(f.Group) > 0 {
		flow += ", together with " + strings.Join(slices.DeleteFunc(slices.Clone(f.Group), func(name string) bool { return name == f.Credential }), ", ")
	}
	if f.OutageSeconds > 0 {
		flow += fmt.Sprintf(", refused logins for %s", Short(time.Duration(f.OutageSeconds*float64(time.Second))))
	}
	asked := f.date(f.Requested)
	if f.RequestedBy != "" {
		asked += " by " + f.RequestedBy
	}
	if f.Reason != "" {
		asked += ": " + oneLine(f.Reason)
	}
	failure := ""
	if f.Failure != nil {
		failure = f.Failure.Step + ": " + oneLine(f.Failure.Reason)
	}
	for _, field := range []struct{ name, text string }{
		{"rotation", f.ID}, {"flow", flow}, {"requested", asked}, {"failed at", failure}, {"trace", cmp.Or(f.Jaeger, f.TraceID)},
	} {
		for i, text := range wrap(field.text, f.width()-13) {
			if i > 0 {
				field.name = ""
			}
			f.line(f.paint(dim, fmt.Sprintf("  %-11s", field.name)) + text)
		}
	}
	f.line("")
}

func (f *waterfall) divider(phase string) {
	text := "taking back what was done"
	if phase == After {
		text = "after the end"
	}
	f.line(f.paint(dim, "  ── "+text+" "+strings.Repeat("─", max(0, f.width()-6-len(text)))))
}

// row is one line of the table.
func (f *waterfall) row(mark, label string, start time.Time, took, bar string, c, text colour) {
	label = fit(label, stepWidth+ownerWidth-1) + " "
	times := right("+"+Short(max(0, start.Sub(f.Requested))), startWidth) + right(took, tookWidth)
	if f.Ended != nil && start.After(*f.Ended) {
		bar = "" // the axis ends with the rotation
	}
	f.line(f.paint(c, fit(mark, markWidth)) + f.paint(text, label+times) + strings.Repeat(" ", barGap) + f.paint(c, bar))
}

func (f *waterfall) step(i int, s Step) {
	label := fit(s.Name, stepWidth) + s.Owner
	if s.Attempt > 1 {
		label = fit(fmt.Sprintf("%s ×%d", s.Name, s.Attempt), stepWidth) + s.Owner
	}
	switch {
	case s.Ended == nil && s.Due.After(f.now):
		f.row("·", label, s.Due, "due", "", dim, dim)
	case s.Ended == nil:
		f.row("…", label, s.Due, Short(f.now.Sub(s.Due)), f.axis.wait(s.Due, f.now), blue, plain)
	default:
		mark, c := "✓", green
		if s.Phase == Back {
			mark, c = "↩", yellow
		}
		if s.Failure != "" {
			mark, c = "✗", red
		}
		if s.Started == nil { // nobody worked on it: it timed out
			f.row(mark, label, s.Due, Short(s.Ended.Sub(s.Due)), f.axis.wait(s.Due, *s.Ended), c, plain)
			break
		}
		f.row(mark, label, *s.Started, Short(s.Ended.Sub(*s.Started)), f.axis.bar(*s.Started, *s.Ended), c, plain)
		f.waited(s)
	}
	f.notes(i)
	for _, op := range s.Operations {
		f.operation(s, op)
	}
	for _, w := range s.Warnings {
		f.text("!", w, yellow)
	}
	if s.Failure != "" {
		f.text("✗", s.Failure, red)
	}
}

// waited shows a pause that was worth the name before the last attempt.
func (f *waterfall) waited(s Step) {
	pause := s.Started.Sub(s.Due)
	if pause < 50*time.Millisecond || pause < f.took()/32 {
		return
	}
	f.row("", "  waited", s.Due, Short(pause), f.axis.wait(s.Due, *s.Started), dim, dim)
}

func (f *waterfall) operation(s Step, op Operation) {
	took := time.Duration(op.Seconds * float64(time.Second))
	label, c := "  "+op.Name+"  ", dim
	if op.Error != "" {
		label, c = "✗ "+op.Name+"  ", red
	}
	label += fit(op.Target, max(8, stepWidth+ownerWidth-1-utf8.RuneCountInString(label)))
	begin := between(op.Started, s.Due, *s.Ended)
	f.row("", label, begin, Short(took), f.axis.bar(begin, between(begin.Add(took), begin, *s.Ended)), c, c)
	if op.Error != "" && !strings.Contains(s.Failure, op.Error) {
		f.text("✗", op.Error, red)
	}
}

// notes of the i-th step: those from the one before it on.
func (f *waterfall) notes(i int) {
	last := i == len(f.Steps)-1
	for _, n := range f.Notes {
		after := i == 0 || f.Steps[i-1].Ended == nil || n.At.After(*f.Steps[i-1].Ended)
		before := last || f.Steps[i].Ended == nil || !n.At.After(*f.Steps[i].Ended)
		if after && before {
			f.text("!", "+"+Short(max(0, n.At.Sub(f.Requested)))+" "+n.label(), yellow)
		}
	}
}

// text is a remark under a step.
func (f *waterfall) text(mark, text string, c colour) {
	for i, line := range wrap(text, f.width()-6) {
		if i > 0 {
			mark = " "
		}
		f.line(f.paint(c, "    "+mark+" "+line))
	}
}

func (f *waterfall) legend() {
	if f.axis.shortened() {
		f.line(f.paint(dim, strings.Repeat(" ", beforeBar)+"╌ nothing was done: drawn shorter than it was"))
	}
}

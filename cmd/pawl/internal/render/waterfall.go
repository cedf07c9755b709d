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

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/words"
)

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
	chronicle.Timeline
	Style
	axis axis
	out  bytes.Buffer
}

// Waterfall writes the rotation with one line per step and one per effect.
func Waterfall(w io.Writer, t chronicle.Timeline, s Style) error {
	f := &waterfall{Timeline: t, Style: s, axis: axis{t.Axis(), max(20, s.width()-beforeBar)}}
	f.header()
	f.line(f.paint(dim, fmt.Sprintf("%*s%-*s%-*s%*s%*s%*s%s", markWidth, "", stepWidth, "STEP", ownerWidth, "OWNER",
		startWidth, "START", tookWidth, "TOOK", barGap, "", f.axis.ruler(words.Duration(t.End().Sub(t.Requested))))))
	phase := chronicle.Forward
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
func Waterfalls(w io.Writer, all []chronicle.Timeline, s Style) error {
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
	if f.Outcome == chronicle.Running {
		verb = " for "
	}
	f.line(f.paint(c, mark+" "+f.Outcome+verb+words.Duration(f.Took())) + "  " + f.paint(bold, f.Credential))
	flow := fmt.Sprintf("%s, generation %d", f.Flow, f.Generation)
	if f.Login != "" {
		flow += ", login " + f.Login
	}
	if len(f.Group) > 0 {
		flow += ", together with " + strings.Join(slices.DeleteFunc(slices.Clone(f.Group), func(name string) bool { return name == f.Credential }), ", ")
	}
	if f.OutageSeconds > 0 {
		flow += fmt.Sprintf(", refused logins for %s", words.Duration(time.Duration(f.OutageSeconds*float64(time.Second))))
	}
	asked := f.date(f.Requested)
	if by := cmp.Or(f.RequestedBy, f.AuthenticatedAs); by != "" {
		asked += " by " + by
	}
	if f.Reason != "" {
		asked += ": " + words.OneLine(f.Reason)
	}
	failure := ""
	if f.Failure != nil {
		failure = f.Failure.Step + ": " + words.OneLine(f.Failure.Reason)
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
	if phase == chronicle.After {
		text = "after the end"
	}
	f.line(f.paint(dim, "  ── "+text+" "+strings.Repeat("─", max(0, f.width()-6-len(text)))))
}

// row is one line of the table.
func (f *waterfall) row(mark, label string, start time.Time, took, bar string, c, text colour) {
	label = fit(label, stepWidth+ownerWidth-1) + " "
	times := right("+"+words.Duration(max(0, start.Sub(f.Requested))), startWidth) + right(took, tookWidth)
	if f.Ended != nil && start.After(*f.Ended) {
		bar = "" // the axis ends with the rotation
	}
	f.line(f.paint(c, fit(mark, markWidth)) + f.paint(text, label+times) + strings.Repeat(" ", barGap) + f.paint(c, bar))
}

func (f *waterfall) step(i int, s chronicle.Step) {
	label := fit(s.Name, stepWidth) + s.Owner
	if s.Attempt > 1 {
		label = fit(fmt.Sprintf("%s ×%d", s.Name, s.Attempt), stepWidth) + s.Owner
	}
	switch {
	case s.Ended == nil && s.Due.After(f.Now):
		f.row("·", label, s.Due, "due", "", dim, dim)
	case s.Ended == nil:
		f.row("…", label, s.Due, words.Duration(f.Now.Sub(s.Due)), f.axis.wait(s.Due, f.Now), blue, plain)
	default:
		mark, c := "✓", green
		if s.Phase == chronicle.Back {
			mark, c = "↩", yellow
		}
		if s.Failure != "" {
			mark, c = "✗", red
		}
		if s.Started == nil { // nobody worked on it: it timed out
			f.row(mark, label, s.Due, words.Duration(s.Ended.Sub(s.Due)), f.axis.wait(s.Due, *s.Ended), c, plain)
			break
		}
		f.row(mark, label, *s.Started, words.Duration(s.Ended.Sub(*s.Started)), f.axis.bar(*s.Started, *s.Ended), c, plain)
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
func (f *waterfall) waited(s chronicle.Step) {
	if pause := f.Waited(s); pause > 0 {
		f.row("", "  waited", s.Due, words.Duration(pause), f.axis.wait(s.Due, *s.Started), dim, dim)
	}
}

func (f *waterfall) operation(s chronicle.Step, op chronicle.Operation) {
	took := time.Duration(op.Seconds * float64(time.Second))
	label, c := "  "+op.Name+"  ", dim
	if op.Error != "" {
		label, c = "✗ "+op.Name+"  ", red
	}
	label += fit(op.Target, max(8, stepWidth+ownerWidth-1-utf8.RuneCountInString(label)))
	begin := chronicle.Between(op.Started, s.Due, *s.Ended)
	f.row("", label, begin, words.Duration(took), f.axis.bar(begin, chronicle.Between(begin.Add(took), begin, *s.Ended)), c, c)
	if op.Error != "" && !strings.Contains(s.Failure, op.Error) {
		f.text("✗", op.Error, red)
	}
}

func (f *waterfall) notes(i int) {
	for _, n := range f.NotesOf(i) {
		f.text("!", "+"+words.Duration(max(0, n.At.Sub(f.Requested)))+" "+n.Label(), yellow)
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
	if len(f.axis.Cuts()) > 0 {
		f.line(f.paint(dim, strings.Repeat(" ", beforeBar)+"╌ nothing was done: drawn shorter than it was"))
	}
}

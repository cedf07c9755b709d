package dashboard

import (
	"fmt"
	"strings"
	"time"

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/words"
)

// waterfall is a timeline to be drawn.
type waterfall struct {
	chronicle.Timeline
	Tone, Mark string
	Together   []string
	Length     time.Duration
	Outage     time.Duration
	Cuts       []bar // stretches that are drawn shorter than they were
	Lines      []line
}

// wide is how many units the axis has.
const wide = 1000

// bar lies on the axis.
type bar struct {
	X, Width float64
	Tone     string
}

// line is one step, effect, wait or remark.
type line struct {
	Kind  string // step, effect, wait, remark, part
	Mark  string
	Tone  string
	Name  string
	Owner string
	Start string
	Took  string
	Text  string
	Bar   *bar
}

func newWaterfall(t chronicle.Timeline) waterfall {
	w := waterfall{Timeline: t, Length: t.End().Sub(t.Requested), Outage: time.Duration(t.OutageSeconds * float64(time.Second))}
	w.Mark, w.Tone = "…", "busy"
	switch t.Outcome {
	case string(saga.Completed):
		w.Mark, w.Tone = "✓", "good"
	case string(saga.RolledBack):
		w.Mark, w.Tone = "↩", "warn"
	case chronicle.Superseded:
		w.Mark, w.Tone = "✗", "warn"
	}
	for _, name := range t.Group {
		if name != t.Credential {
			w.Together = append(w.Together, name)
		}
	}
	axis := t.Axis()
	for _, cut := range axis.Cuts() {
		w.Cuts = append(w.Cuts, bar{X: wide * cut.From, Width: wide * (cut.To - cut.From)})
	}
	phase := chronicle.Forward
	for i, s := range t.Steps {
		if s.Phase != phase {
			phase = s.Phase
			text := "taking back what was done"
			if phase == chronicle.After {
				text = "after the end"
			}
			w.Lines = append(w.Lines, line{Kind: "part", Text: text})
		}
		w.step(axis, i, s)
	}
	return w
}

// on draws from one time to another, at least a hair wide.
func (w *waterfall) on(axis chronicle.Axis, from, to time.Time, tone string) *bar {
	if w.Ended != nil && from.After(*w.Ended) {
		return nil // the axis ends with the rotation
	}
	x := min(wide*axis.Place(from), wide-3)
	return &bar{x, max(3, wide*axis.Place(to)-x), tone}
}

func (w *waterfall) since(at time.Time) string {
	return "+" + words.Duration(max(0, at.Sub(w.Requested)))
}

func (w *waterfall) step(axis chronicle.Axis, i int, s chronicle.Step) {
	l := line{Kind: "step", Name: s.Name, Owner: s.Owner}
	if s.Attempt > 1 {
		l.Name = fmt.Sprintf("%s ×%d", s.Name, s.Attempt)
	}
	switch {
	case s.Ended == nil && s.Due.After(w.Now):
		l.Mark, l.Tone, l.Start, l.Took = "·", "quiet", w.since(s.Due), "due"
	case s.Ended == nil && w.Outcome == chronicle.Superseded:
		l.Mark, l.Tone, l.Start, l.Took = "✗", "warn", w.since(s.Due), "ended"
	case s.Ended == nil:
		l.Mark, l.Tone, l.Start, l.Took = "…", "busy", w.since(s.Due), words.Duration(w.Now.Sub(s.Due))
		l.Bar = w.on(axis, s.Due, w.Now, "waiting")
	default:
		l.Mark, l.Tone = "✓", "good"
		if s.Phase == chronicle.Back {
			l.Mark, l.Tone = "↩", "warn"
		}
		if s.Failure != "" {
			l.Mark, l.Tone = "✗", "bad"
		}
		from, tone := s.Due, "waiting"
		if s.Started != nil { // else nobody worked on it: it timed out
			from, tone = *s.Started, l.Tone
		}
		l.Start, l.Took, l.Bar = w.since(from), words.Duration(s.Ended.Sub(from)), w.on(axis, from, *s.Ended, tone)
	}
	if pause := w.Waited(s); pause > 0 {
		w.Lines = append(w.Lines, line{Kind: "wait", Name: "waited", Start: w.since(s.Due), Took: words.Duration(pause), Tone: "quiet", Bar: w.on(axis, s.Due, *s.Started, "waiting")})
	}
	l.Text = words.OneLine(s.Summary)
	w.Lines = append(w.Lines, l)
	for _, n := range w.NotesOf(i) {
		w.Lines = append(w.Lines, line{Kind: "remark", Mark: "!", Tone: "warn", Start: w.since(n.At), Text: n.Label()})
	}
	for _, op := range s.Operations {
		w.effect(axis, s, op)
	}
	for _, text := range s.Warnings {
		w.Lines = append(w.Lines, line{Kind: "remark", Mark: "!", Tone: "warn", Text: text})
	}
	if s.Failure != "" {
		w.Lines = append(w.Lines, line{Kind: "remark", Mark: "✗", Tone: "bad", Text: s.Failure})
	}
}

func (w *waterfall) effect(axis chronicle.Axis, s chronicle.Step, op chronicle.Operation) {
	took := time.Duration(op.Seconds * float64(time.Second))
	begin := chronicle.Between(op.Started, s.Due, *s.Ended)
	l := line{Kind: "effect", Name: op.Name, Owner: op.Target, Start: w.since(begin), Took: words.Duration(took), Tone: "quiet",
		Bar: w.on(axis, begin, chronicle.Between(begin.Add(took), begin, *s.Ended), "effect")}
	if op.Error != "" {
		l.Mark, l.Tone = "✗", "bad"
		if l.Bar != nil {
			l.Bar.Tone = "bad"
		}
	}
	w.Lines = append(w.Lines, l)
	if op.Error != "" && !strings.Contains(s.Failure, op.Error) {
		w.Lines = append(w.Lines, line{Kind: "remark", Mark: "✗", Tone: "bad", Text: op.Error})
	}
}

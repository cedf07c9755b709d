package command

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/cmd/pawl/internal/terminal"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/words"
)

// await shows the rotation's progress until all that turn together have ended
// or are stalled, or the person waiting leaves; the rotation does not mind the
// latter.
func await(cmd *cobra.Command, c *client.Client, r *result, from client.Position) error {
	ctx := cmd.Context()
	entries, others := c.Follow(ctx, "*", r.Rotation, from.WholeLog()), c.Follow(ctx, r.Credential, "*", from)
	p := newProgress(cmd.ErrOrStderr())
	defer p.stop()
	all := awaited{r.Credential: &member{log: bus.Log{Credential: r.Credential, Rotation: r.Rotation}}}
	for {
		select {
		case <-ctx.Done():
			p.clear()
			return left(cmd, r)
		case <-p.tick:
			p.draw(all.slowest())
		case e := <-others:
			if e.Event != nil && e.Event.Body.GetRequested().GetSupersedes() == r.Rotation {
				r.Outcome = chronicle.Superseded
				return errors.Join(report(cmd, r), exit{exitRejected, fmt.Errorf("superseded by emergency %s; `pawl trace %[1]s` tells more", e.Rotation)})
			}
		case e := <-entries:
			if e.Rotation != r.Rotation {
				continue
			}
			p.line(e)
			all.take(e)
			if all.over() {
				return ended(cmd, r, all)
			}
		}
	}
}

// member is one credential's part in what is awaited.
type member struct {
	log     bus.Log
	stalled string // why, empty while it is not
	ended   bool
}

// awaited are the parts of all that turn together.
type awaited map[string]*member

// take takes over an event or a note.
func (a awaited) take(e bus.Entry) {
	if e.Credential == "" {
		return // a note about no one's
	}
	m := a.member(e.Credential, e.Rotation)
	if e.Note != nil {
		if e.Note.GetKind() == "stalled" {
			m.stalled = e.Note.GetText()
		}
		return
	}
	for _, name := range e.Event.Body.GetRequested().GetGroup() {
		a.member(name, e.Rotation)
	}
	m.log.Records = append(m.log.Records, *e.Event)
	if state, err := m.log.Fold(); err == nil {
		m.ended = !state.Open()
	}
}

func (a awaited) member(credential, rotation string) *member {
	if a[credential] == nil {
		a[credential] = &member{log: bus.Log{Credential: credential, Rotation: rotation}}
	}
	return a[credential]
}

func (a awaited) names() []string { return slices.Sorted(maps.Keys(a)) }

func (a awaited) over() bool {
	for _, m := range a {
		if !m.ended && m.stalled == "" {
			return false
		}
	}
	return true
}

// slowest is the log of whom the others wait for: the one with the fewest events.
func (a awaited) slowest() (log bus.Log) {
	for _, name := range a.names() {
		if m := a[name]; !m.ended && (log.Records == nil || len(m.log.Records) < len(log.Records)) {
			log = m.log
		}
	}
	return log
}

func left(cmd *cobra.Command, r *result) error {
	r.Outcome = chronicle.Running
	return errors.Join(report(cmd, r), fmt.Errorf("no longer waiting: rotation %s goes on; `pawl status %s` tells how it is, `pawl trace %s` how it went", r.Rotation, r.Credential, r.Rotation))
}

// ended reports what became of all; the worst of them is the result.
func ended(cmd *cobra.Command, r *result, all awaited) error {
	r.Outcome = string(saga.Completed)
	worst := exit{code: exitDone}
	for _, name := range all.names() {
		m := all[name]
		rotation, err := chronicle.NewRotation(m.log, time.Now())
		if err != nil && m.ended {
			return err
		}
		if name == r.Credential && m.ended {
			r.Ended = &rotation
		}
		if len(all) > 1 {
			r.Together = append(r.Together, rotation)
		}
		if mine := outcome(r.Rotation, m, rotation, len(all) > 1); mine.code > worst.code {
			worst = mine
		}
		switch {
		case !m.ended:
			r.Outcome, r.Reason = chronicle.Stalled, m.stalled
		case r.Outcome != chronicle.Stalled && rotation.Outcome != string(saga.Completed):
			r.Outcome = rotation.Outcome
		}
	}
	if err := report(cmd, r); err != nil || worst.code == exitDone {
		return err
	}
	return worst
}

// outcome of one member, with its exit code.
func outcome(id string, m *member, r chronicle.Rotation, named bool) exit {
	who := ""
	if named {
		who = m.log.Credential + ": "
	}
	switch {
	case !m.ended:
		return exit{exitStalled, fmt.Errorf("%srotation %s is stalled: %s", who, id, m.stalled)}
	case r.Outcome == string(saga.Completed) || chronicle.IsRollback(m.log):
		return exit{code: exitDone}
	}
	why := "rolled back"
	if f := r.Failure; f != nil {
		why = fmt.Sprintf("rolled back, since %q failed: %s", f.Step, f.Reason)
		if m.log.Find(saga.Cancelled) != nil {
			why = fmt.Sprintf("rolled back: %s, at %q", f.Reason, f.Step)
		}
	}
	return exit{exitRolledBack, fmt.Errorf("%s%s; `pawl trace %s` tells more", who, why, id)}
}

func report(cmd *cobra.Command, r *result) error {
	return output(cmd, r, func(w io.Writer, _ render.Style) error {
		_, err := fmt.Fprintln(w, r.Rotation, r.Outcome)
		return err
	})
}

// progress writes what happens to stderr, and on a terminal, in a last line
// that is overwritten, what is being done.
type progress struct {
	w      io.Writer
	style  render.Style
	ticker *time.Ticker
	tick   <-chan time.Time // never, unless on a terminal
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, style: style(w)}
	if _, ok := onTerminal(w); ok {
		p.ticker = time.NewTicker(100 * time.Millisecond)
		p.tick = p.ticker.C
	}
	return p
}

func (p *progress) stop() {
	if p.ticker != nil {
		p.ticker.Stop()
	}
}

func (p *progress) clear() {
	if p.ticker != nil {
		fmt.Fprint(p.w, terminal.Own("[1G")+terminal.Own("[K")) // to the first column, and erase
	}
}

func (p *progress) line(e bus.Entry) {
	p.clear()
	fmt.Fprintln(p.w, render.Line(chronicle.NewLine(e), p.style))
}

func (p *progress) draw(log bus.Log) {
	state, err := log.Fold()
	if err != nil {
		return // nothing is there yet
	}
	if step := state.Next(); step != nil {
		p.clear()
		fmt.Fprintf(p.w, "… %s: %s (%s) for %s", log.Credential, step.Name, step.Owner, words.Duration(max(0, time.Since(state.Last.At)).Truncate(100*time.Millisecond)))
	}
}

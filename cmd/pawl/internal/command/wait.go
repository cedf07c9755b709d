package command

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// await shows the rotation's progress until it has ended, is stalled, or the
// person waiting leaves; the rotation does not mind the latter.
func await(cmd *cobra.Command, c *client.Client, r *result, from client.Position) error {
	ctx := cmd.Context()
	entries, err := c.Follow(ctx, r.Credential, r.Rotation, from.WholeLog())
	if err != nil {
		return err
	}
	p := newProgress(cmd.ErrOrStderr())
	defer p.stop()
	log := bus.Log{Credential: r.Credential, Rotation: r.Rotation}
	for {
		select {
		case <-ctx.Done():
			p.clear()
			return left(cmd, r)
		case <-p.tick:
			p.draw(log)
		case e := <-entries:
			if e.Rotation != r.Rotation {
				continue
			}
			p.line(e)
			if e.Note.GetKind() == "stalled" {
				return stalled(cmd, r, e.Note.GetText())
			}
			if e.Event == nil {
				continue
			}
			log.Records = append(log.Records, *e.Event)
			if state, err := log.Fold(); err == nil && !state.Open() {
				return ended(cmd, r, log)
			}
		}
	}
}

func left(cmd *cobra.Command, r *result) error {
	r.Outcome = render.Running
	return errors.Join(report(cmd, r), fmt.Errorf("no longer waiting: rotation %s goes on; `pawl status %s` tells how it is, `pawl trace %s` how it went", r.Rotation, r.Credential, r.Rotation))
}

func stalled(cmd *cobra.Command, r *result, why string) error {
	r.Outcome, r.Reason = render.Stalled, why
	if err := report(cmd, r); err != nil {
		return err
	}
	return exit{exitStalled, fmt.Errorf("rotation %s is stalled: %s", r.Rotation, why)}
}

func ended(cmd *cobra.Command, r *result, log bus.Log) error {
	rotation, err := render.NewRotation(log, time.Now())
	if err != nil {
		return err
	}
	r.Outcome, r.Ended = rotation.Outcome, &rotation
	if err := report(cmd, r); err != nil {
		return err
	}
	if r.Outcome == string(saga.Completed) || render.IsRollback(log) {
		return nil
	}
	why := "rolled back"
	if f := rotation.Failure; f != nil {
		why = fmt.Sprintf("rolled back, since %q failed: %s", f.Step, f.Reason)
	}
	return exit{exitRolledBack, fmt.Errorf("%s; `pawl trace %s` tells more", why, r.Rotation)}
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
	if _, ok := terminal(w); ok {
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
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *progress) line(e client.Entry) {
	p.clear()
	fmt.Fprintln(p.w, render.NewLine(e).Format(p.style))
}

func (p *progress) draw(log bus.Log) {
	state, err := log.Fold()
	if err != nil {
		return // nothing is there yet
	}
	if step := state.Next(); step != nil {
		p.clear()
		fmt.Fprintf(p.w, "… %s (%s) for %s", step.Name, step.Owner, render.Short(max(0, time.Since(state.Last.At)).Truncate(100*time.Millisecond)))
	}
}

package command

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// rotatedAtOnce is how many rotations of several are under way at the same time: more
// make none of them faster, and each may restart an application.
const rotatedAtOnce = 16

// rotateSeveral rotates each of the selected credentials by itself, groups together,
// so many at a time. Each is asked for under an id of the run and the credential, so
// that the same run, started again, asks for none a second time.
func rotateSeveral(cmd *cobra.Command, s inventory.Selection, atOnce int, run string) error {
	reason, err := cmd.Flags().GetString("reason")
	if err != nil {
		return err
	}
	run = cmp.Or(run, "run-"+strings.ToLower(rand.Text()[:12]))
	body := &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, Reason: reason, RequestedBy: requestedBy()}
	if err := checkReason(body); err != nil {
		return err
	}
	if err := checkToken("run", run); err != nil || len(run) > longestRun {
		return cmp.Or(err, usage("--run %s: at most %d characters", run, longestRun))
	}
	if atOnce < 1 {
		return usage("--at-once %d: must be at least 1", atOnce)
	}
	inv, err := load(cmd)
	if err != nil {
		return err
	}
	all, own, err := selected(inv, s)
	if err != nil {
		return err
	}
	conn, err := join(inv)
	if err != nil {
		return err
	}
	defer conn.NATS.Close()
	tellEdited(cmd, inv, conn)
	from, err := conn.Now(cmd.Context())
	if err != nil {
		return err
	}
	say(cmd, "run %s: %d credentials, %d at once", run, len(all)+len(own), atOnce)
	r := &rotating{run: run, body: body, conn: conn, atOnce: atOnce, tally: newTally(namesOf(slices.Concat(all, own)), false)}
	for _, c := range slices.Concat(all, own) { // those of Pawl itself come last
		if unit := inv.Together(c); !slices.ContainsFunc(r.units, func(u []string) bool { return u[0] == unit[0] }) {
			r.units = append(r.units, unit)
			for _, name := range unit {
				if r.tally.parts[name] == nil {
					r.tally.parts[name] = &part{Credential: name, Outcome: "waiting"}
				}
			}
		}
	}
	return r.rotate(cmd, from)
}

// rotating is one run.
type rotating struct {
	run    string
	body   *pawlv1.Request
	conn   *client.Client
	atOnce int
	units  [][]string // that rotate together
	tally  *tally
}

// reply is the answer to one of the run's requests.
type reply struct {
	unit   []string
	answer *pawlv1.Answer
	err    error
}

// rotate asks for one after the other, and shows how far they are, until all have
// ended.
func (r *rotating) rotate(cmd *cobra.Command, from client.Position) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	entries := r.conn.Follow(ctx, "*", "*", from)
	answers := make(chan reply)
	b := newBoard(cmd.ErrOrStderr())
	defer b.tick.Stop()
	until := func(c counts) int { return c.Completed + c.Failed }
	over := func(p *part) bool { return p.over || p.stalled }
	var failed error
	next, asking := 0, 0
	for !r.tally.every(over) && failed == nil {
		for next < len(r.units) && asking+r.open(over) < r.atOnce {
			asking++
			go r.ask(ctx, r.units[next], answers)
			next++
		}
		select {
		case <-ctx.Done():
			failed = fmt.Errorf("interrupted: %d of %d credentials were not asked for. Those that have begun go on; the same command with --run %s does the rest", r.waiting(), len(r.tally.parts), r.run)
		case <-b.tick.C:
			b.draw(r.tally, until, false)
		case e := <-entries:
			r.tally.take(e)
		case a := <-answers:
			asking--
			if a.err != nil && ctx.Err() == nil {
				failed = fmt.Errorf("%w. The same command with --run %s goes on", a.err, r.run)
			}
			if a.err == nil {
				failed = r.answered(ctx, a)
			}
		}
	}
	b.draw(r.tally, until, true)
	result := &severalResult{Run: r.run}
	if failed != nil {
		return errors.Join(failed, result.report(cmd, r.tally, false, true))
	}
	return result.report(cmd, r.tally, true, true)
}

// open counts the units that are under way.
func (r *rotating) open(over func(*part) bool) (n int) {
	for _, unit := range r.units {
		if slices.ContainsFunc(unit, func(name string) bool { p := r.tally.parts[name]; return p.Rotation != "" && !over(p) }) {
			n++
		}
	}
	return n
}

// waiting counts those that were not asked for.
func (r *rotating) waiting() (n int) {
	for _, p := range r.tally.parts {
		if p.Outcome == "waiting" {
			n++
		}
	}
	return n
}

func (r *rotating) ask(ctx context.Context, unit []string, answers chan<- reply) {
	answer, err := r.once(ctx, unit[0])
	select {
	case answers <- reply{unit, answer, err}:
	case <-ctx.Done():
	}
}

// once asks, unless the run has asked before and was not rejected.
func (r *rotating) once(ctx context.Context, credential string) (*pawlv1.Answer, error) {
	for n := 0; ; n++ {
		id := requestOf(r.run, credential, n)
		before, err := r.conn.Answered(ctx, id)
		switch {
		case err != nil:
			return nil, err
		case before == nil:
			return r.conn.AskOnce(ctx, id, credential, r.body)
		case before.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED:
			return before, nil
		}
	}
}

// answered notes which rotation each of the unit has, and what that has done before it
// was followed: a run that goes on finds rotations of before.
func (r *rotating) answered(ctx context.Context, a reply) error {
	accepted, why := a.answer.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED, a.answer.GetReason()
	var begun []string
	if accepted {
		var err error
		if begun, err = r.conn.CredentialsOf(ctx, a.answer.GetRotation()); err != nil {
			return err
		}
		why = fmt.Sprintf("not begun: it is not part of rotation %s", a.answer.GetRotation())
	}
	for _, name := range a.unit {
		if !accepted || !slices.Contains(begun, name) {
			r.tally.reject(name, why)
			continue
		}
		p := r.tally.parts[name]
		p.Rotation, p.Outcome = a.answer.GetRotation(), "requested"
		if err := r.catchUp(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// catchUp reads what one's rotation has done. One that another has superseded, or that
// has stalled, may have done so before this run follows anything.
func (r *rotating) catchUp(ctx context.Context, p *part) error {
	newest, err := r.conn.ReadNewest(ctx, p.Credential) // first: a log that is open after this was superseded
	if err != nil {
		return err
	}
	log, err := r.conn.ReadRotation(ctx, p.Credential, p.Rotation)
	if err != nil {
		return err
	}
	for i := range log.Records {
		r.tally.take(bus.Entry{Credential: p.Credential, Rotation: p.Rotation, Event: &log.Records[i]})
	}
	state, err := log.Fold()
	if err != nil || !state.Open() {
		return nil // of another version, it is followed all the same
	}
	if newest.Rotation != p.Rotation && newest.LastSeq() > log.LastSeq() {
		p.supersede(newest.Rotation)
		return nil
	}
	notes, err := r.conn.Notes(ctx, log.Records[0].At)
	for _, note := range notes {
		if note.Credential == p.Credential && !note.At.Before(state.Last.At) { // else it went on
			r.tally.take(note)
		}
	}
	return err
}

// longestRun is how long a run's id may be: what is added to it makes a token.
const longestRun = 40

// requestOf is the id of the run's request about a credential: of the first, or, if
// that was rejected, of a later one.
func requestOf(run, credential string, n int) string {
	sum := sha256.Sum256([]byte(credential))
	return fmt.Sprintf("%s-%x-%d", run, sum[:8], n)
}

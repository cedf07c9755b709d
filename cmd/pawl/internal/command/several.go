package command

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/glass"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// severalResult is what became of several credentials.
type severalResult struct {
	Request     string   `json:"request,omitempty"`
	Rotation    string   `json:"rotation,omitempty"` // of an emergency: the id of all
	Run         string   `json:"run,omitempty"`      // of rotations
	Outcome     string   `json:"outcome"`            // contained, pending, completed, stalled, running, failed, rejected
	Reason      string   `json:"reason,omitempty"`
	LeftOut     []string `json:"left_out,omitempty"`
	Seconds     float64  `json:"seconds"`
	Counts      counts   `json:"counts"`
	Credentials []*part  `json:"together"`
}

// emergencyOfSeveral contains all that are selected, by one request, and shows how far
// they are: until all are contained, with wait until all have ended.
func emergencyOfSeveral(cmd *cobra.Command, s inventory.Selection, reason string, yes, wait bool) error {
	body := &pawlv1.Request{Action: pawlv1.Action_ACTION_CONTAIN, Reason: reason, RequestedBy: requestedBy(),
		Selection: &pawlv1.Selection{Credentials: s.Credentials, Clusters: s.Clusters, Environments: s.Environments, All: s.All}}
	if err := checkReason(body); err != nil {
		return err
	}
	inv, err := load(cmd)
	if err != nil {
		return err
	}
	credentials, own, err := selected(inv, s)
	if err != nil {
		return err
	}
	for _, c := range own {
		for _, name := range s.Credentials {
			if name == c.Name {
				return exit{exitRejected, fmt.Errorf("rejected: Pawl itself logs in with %s, and would lock itself out", name)}
			}
		}
	}
	if len(credentials) == 0 {
		return exit{exitRejected, fmt.Errorf("rejected: Pawl itself logs in with all that are selected (%s), and would lock itself out", strings.Join(namesOf(own), ", "))}
	}
	if err := confirmed(cmd, credentials, yes); err != nil {
		return err
	}
	_, conn, err := connectUrgently(cmd)
	if err != nil {
		return err
	}
	defer conn.NATS.Close()
	from, err := conn.Now(cmd.Context())
	if err != nil {
		return err
	}
	answer, err := askPatiently(cmd, conn, body)
	if err != nil {
		return err
	}
	tellEdited(cmd, inv, conn) // only now: the emergency waits for nothing
	if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		return refused(cmd, newResult(answer), answer.GetReason(), func(io.Writer, render.Style) error { return nil })
	}
	say(cmd, "emergency %s: %s", answer.GetRotation(), answer.GetReason())
	err = followSeveral(cmd, inv, conn, answer, namesOf(credentials), from, wait)
	sayByHand(cmd, inv, s)
	return err
}

// sayByHand names the accounts whose passwords may have leaked with those of the
// credentials, and that no emergency changes.
func sayByHand(cmd *cobra.Command, inv *inventory.Inventory, s inventory.Selection) {
	for _, a := range inv.ByHand(s) {
		from := "file " + a.PasswordFile
		if a.PasswordEnv != "" {
			from = "environment variable " + a.PasswordEnv
		}
		say(cmd, "not changed: role %s of cluster %s (%s) is no credential: its password works until you change it by hand", a.User, a.Cluster.Name, from)
	}
}

// answeredWithin is how long the answer about many credentials is waited for: it comes
// once the last of them has begun, and the first are contained long before.
const answeredWithin = 5 * time.Minute

// askPatiently asks once, and then looks for the answer: asked again, it could become
// another emergency.
func askPatiently(cmd *cobra.Command, conn *client.Client, body *pawlv1.Request) (*pawlv1.Answer, error) {
	id := "cli-" + strings.ToLower(rand.Text())
	var stored atomic.Bool
	conn.Stored = func() { stored.Store(true) }
	late := time.AfterFunc(acceptedWithin, func() {
		why := "the bus does not store the request (is its disk full?)"
		if stored.Load() {
			why = "the bus has the request, and not all emergencies have begun (`pawl status` shows which; if none, the scheduler is not running, or the bus cannot store what it decides)"
		}
		say(cmd, "%s; Pawl keeps trying, and `pawl emergency CREDENTIAL --break-glass` works without the bus, for each credential", why)
	})
	answer, err := conn.AskOnce(cmd.Context(), id, bus.Several, body)
	late.Stop()
	if !stored.Load() || !errors.Is(err, context.DeadlineExceeded) || cmd.Context().Err() != nil {
		return answer, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), answeredWithin)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if answer, failed := conn.Answered(ctx, id); answer != nil {
			return answer, failed
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// followSeveral shows the emergency's progress. It judges the credentials that were
// confirmed, not only those that the scheduler has recorded: it may have started with
// another pawl.yaml.
func followSeveral(cmd *cobra.Command, inv *inventory.Inventory, conn *client.Client, answer *pawlv1.Answer, confirmed []string, from client.Position, wait bool) error {
	names, err := conn.CredentialsOf(cmd.Context(), answer.GetRotation())
	if err != nil {
		return err
	}
	record, err := conn.Several(cmd.Context(), answer.GetRotation())
	if err == nil && record == nil {
		err = fmt.Errorf("the bus has no record of emergency %s yet: `pawl incident %[1]s` shows it later", answer.GetRotation())
	}
	if err != nil {
		return err
	}
	r := &severalResult{Request: answer.GetRequest(), Rotation: answer.GetRotation(), Reason: answer.GetReason(), LeftOut: record.GetLaggards()}
	t := tallyOf(inv, record, names, confirmed)
	extra := slices.DeleteFunc(slices.Clone(record.GetCredentials()), func(name string) bool { return slices.Contains(confirmed, name) })
	if len(extra) > 0 {
		say(cmd, "note: the emergency is also of credentials that the pawl.yaml of the scheduler selects, and that are not in this one: %s", shorten(extra))
	}
	for _, name := range names { // what was done before while there was no bus
		if err := glass.Tell(cmd.Context(), inv, conn, name, answer.GetRotation()); err != nil {
			say(cmd, "warning: %v", err)
		}
	}
	done, until := func(p *part) bool { return p.contained || p.over }, func(c counts) int { return c.Contained }
	if wait {
		done, until = func(p *part) bool { return p.over || p.stalled }, func(c counts) int { return c.Completed + c.Failed }
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	entries, others := conn.Follow(ctx, "*", answer.GetRotation(), from.WholeLog()), conn.Follow(ctx, "*", "*", from)
	finished := t.watch(ctx, cmd, entries, others, done, until, wait)
	return r.report(cmd, t, finished, wait)
}

// tallyOf counts those that were confirmed or recorded, of which some have begun.
func tallyOf(inv *inventory.Inventory, record *pawlv1.Note, begun, confirmed []string) *tally {
	recorded := record.GetCredentials()
	t := newTally(slices.Concat(confirmed, recorded), true)
	for name, p := range t.parts {
		p.Rotation = record.GetRotation()
		if c := inv.Credentials[name]; c != nil {
			p.cluster = c.Cluster.Name
		}
		switch {
		case slices.Contains(record.GetLaggards(), name):
			t.reject(name, "by the pawl.yaml of the scheduler, Pawl itself logs in with it")
		case !slices.Contains(recorded, name):
			t.reject(name, "the scheduler does not know it: restart it with this pawl.yaml")
		case !slices.Contains(begun, name):
			t.reject(name, "not begun")
		}
	}
	return t
}

// quiet is how long an emergency may stand still before whoever asked for it is told.
const quiet = 30 * time.Second

// watch draws until it is done of all, or ctx ends; without patience also once
// nothing has happened for a while. Of others only what supersedes one of them counts.
func (t *tally) watch(ctx context.Context, cmd *cobra.Command, entries, others <-chan bus.Entry, done func(*part) bool, until func(counts) int, patient bool) (finished bool) {
	b := newBoard(cmd.ErrOrStderr())
	defer b.tick.Stop()
	defer func() { b.draw(t, until, true) }()
	still := time.NewTimer(quiet)
	defer still.Stop()
	for !t.every(done) {
		select {
		case <-ctx.Done():
			return false
		case <-b.tick.C:
			b.draw(t, until, false)
		case <-still.C:
			if !patient {
				return false
			}
		case e := <-others:
			t.superseded(e)
		case e := <-entries:
			if t.take(e) {
				still.Reset(quiet)
			}
		}
	}
	return true
}

// report prints the result, and returns an error if not all is well.
func (r *severalResult) report(cmd *cobra.Command, t *tally, finished, wait bool) error {
	r.Counts, r.Credentials, r.Seconds = t.counts(), t.list(), time.Since(t.began).Seconds()
	err := r.judge(finished, wait)
	printed := output(cmd, r, func(w io.Writer, _ render.Style) error {
		id := r.Rotation
		if id == "" {
			id = r.Run
		}
		_, err := fmt.Fprintln(w, id, r.Outcome)
		return err
	})
	return errors.Join(printed, err)
}

// judge names the outcome, and returns an error if not all is well. Its exit code is that
// of the worst.
func (r *severalResult) judge(finished, wait bool) error {
	var left, failed, pending, wrong []string
	worst, stalled := exitDone, false
	for _, p := range r.Credentials {
		awaited := !p.contained && !wait || !p.over && wait
		switch {
		case p.bad, awaited && p.stalled && finished:
			failed = append(failed, p.String())
			stalled = stalled || p.stalled
		case awaited:
			left = append(left, p.String())
		case len(p.Pending) > 0:
			pending = append(pending, p.String())
		}
		if p.bad || awaited {
			worst = max(worst, p.exit())
		}
	}
	if r.Outcome = "contained"; wait {
		r.Outcome = string(saga.Completed)
	}
	if len(pending) > 0 {
		r.Outcome, worst = "pending", max(worst, exitFailed)
		wrong = append(wrong, "not contained everywhere: "+shorten(pending)+". They are tried on")
	}
	if len(failed) > 0 {
		r.Outcome = "failed"
		wrong = append(wrong, fmt.Sprintf("%s did not end well: %s", service.Count(len(failed), "credential"), shorten(failed)))
	}
	if stalled {
		r.Outcome = chronicle.Stalled
	}
	if !finished {
		r.Outcome, worst = chronicle.Running, max(worst, exitFailed)
		unfinished := fmt.Sprintf("no longer waiting: %s not done yet (%s). They go on: `pawl status` shows them", service.Count(len(left), "credential"), shorten(left))
		if r.Rotation != "" {
			unfinished += fmt.Sprintf(", and `pawl incident %s` the whole", r.Rotation)
		}
		wrong = append(wrong, unfinished)
	}
	if len(wrong) == 0 {
		return nil
	}
	return exit{worst, errors.New(strings.Join(wrong, "; "))}
}

// shorten names the first of many.
func shorten(names []string) string {
	const most = 10
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/glass"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	dbrotator "pawl.dev/services/db-rotator/app"
)

func newEmergency() *cobra.Command {
	var glass, yes bool
	var several selecting
	c := cutting(pawlv1.Action_ACTION_CONTAIN, &cobra.Command{
		Use: "emergency CREDENTIAL... --reason R", Short: "Refuse a stolen credential everywhere, at once, and return on a new one",
		Long: "Supersedes a rotation that is running. Refuses every login in doubt on every node, ends its sessions, and then brings the application back on a new credential; what was stolen never works again. Applications fail from the first second until they have read the new credential.\n\n" +
			"With --break-glass it refuses the logins straight from pawl.yaml, for when NATS or Pawl is down. Once they are up, `pawl emergency` goes on from there.\n\n" +
			"Several credentials (by name, with --cluster, --environment or --all) are contained by one request, under one id: `pawl incident ID` reports on all of them. Asks once before, or takes --yes. Shows how far they are until all are contained, with --wait until all have ended. With --cluster, --environment and --all, credentials with which Pawl itself logs in are left out.",
	})
	c.Args = cobra.ArbitraryArgs
	several.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask before an emergency of several credentials")
	c.Flags().BoolVar(&glass, "break-glass", false, "refuse the logins now, without NATS, also without a --reason; nothing new is published, and the log learns of it later")
	ask := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		selection := several.with(args)
		switch {
		case selection.IsZero():
			return usage("name a credential, or select several with --cluster, --environment or --all")
		case glass && (several.given() || len(selection.Credentials) > 1):
			return usage("--break-glass is of one credential: name one")
		case several.given() || len(selection.Credentials) > 1:
			return askSeveral(cmd, selection, yes)
		}
		if !glass {
			err := ask(cmd, args)
			if errors.Is(err, context.DeadlineExceeded) && cmd.Context().Err() == nil {
				err = fmt.Errorf("%w. Nobody has confirmed the emergency. To refuse the login without Pawl and NATS: `pawl emergency %s --break-glass`", err, args[0])
			}
			return err
		}
		reason, err := cmd.Flags().GetString("reason")
		if err != nil {
			return err
		}
		return breakGlass(cmd, args[0], reason)
	}
	return c
}

// askSeveral asks for an emergency of several, with the flags of cutting.
func askSeveral(cmd *cobra.Command, selection inventory.Selection, yes bool) error {
	reason, err := cmd.Flags().GetString("reason")
	if err != nil {
		return err
	}
	wait, err := cmd.Flags().GetBool("wait")
	if err != nil {
		return err
	}
	if strings.TrimSpace(reason) == "" {
		return usage("say why: --reason")
	}
	return emergencyOfSeveral(cmd, selection, reason, yes, wait)
}

func newLock() *cobra.Command {
	return cutting(pawlv1.Action_ACTION_LOCK, &cobra.Command{
		Use: "lock CREDENTIAL --reason R", Short: "Refuse a credential everywhere until it is unlocked",
		Long: "Like an emergency, but nothing new is issued: nobody can log in with the credential until `pawl unlock`.",
	})
}

func newUnlock() *cobra.Command {
	return cutting(pawlv1.Action_ACTION_UNLOCK, &cobra.Command{
		Use: "unlock CREDENTIAL --reason R", Short: "Bring a locked credential back, on a new password",
	})
}

// cutting completes a command that cuts a production login off, or brings it
// back: it must say why.
func cutting(action pawlv1.Action, c *cobra.Command) *cobra.Command {
	var reason string
	var wait bool
	c.Args = cobra.ExactArgs(1)
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit trail (required)")
	c.Flags().BoolVar(&wait, "wait", false, "wait until it has ended")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if strings.TrimSpace(reason) == "" {
			return usage("say why: --reason")
		}
		return request(cmd, args[0], &pawlv1.Request{Action: action, Reason: reason, RequestedBy: requestedBy()}, wait)
	}
	return c
}

// acceptedWithin is how long whoever asks to have a login cut off waits for that to be
// accepted, before the command says what works without the bus.
const acceptedWithin = 2 * time.Second

// connectUrgently is connect while the embedded server may be restarting, because its
// disk was full.
func connectUrgently(cmd *cobra.Command) (*inventory.Inventory, *client.Client, error) {
	late := time.NewTimer(acceptedWithin)
	defer late.Stop()
	for {
		inv, conn, err := connect(cmd)
		if err == nil || inv == nil || errors.As(err, new(exit)) {
			return inv, conn, err
		}
		select {
		case <-cmd.Context().Done():
			return inv, nil, cmd.Context().Err()
		case <-late.C:
			return inv, nil, fmt.Errorf("%w. To refuse the login without Pawl and NATS: `pawl emergency %s --break-glass`", err, cmp.Or(cmd.Flags().Arg(0), "CREDENTIAL"))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// askedUrgently is asked, and says in time if nobody accepts the request. It is tried on
// meanwhile.
func askedUrgently(cmd *cobra.Command, conn *client.Client, credential string, body *pawlv1.Request) (answer *pawlv1.Answer, from client.Position, err error) {
	stored, done := make(chan struct{}), make(chan struct{})
	conn.Stored = sync.OnceFunc(func() { close(stored) })
	go func() {
		defer close(done)
		answer, from, err = asked(cmd, conn, credential, body)
	}()
	late := time.NewTimer(acceptedWithin)
	defer late.Stop()
	select {
	case <-done:
		return answer, from, err
	case <-late.C:
	}
	why := "the bus does not store the request (is its disk full?)"
	select {
	case <-stored: // a stream may have room for it while another has none for the answer
		why = "the bus has the request, and nobody has accepted it: the scheduler is not running, or the bus cannot store what it decides (is its disk full?)"
	default:
	}
	say(cmd, "%s; Pawl keeps trying, and `pawl emergency %s --break-glass` works without the bus", why, credential)
	<-done
	return answer, from, err
}

// containedWithin is how long whoever asked to have a login cut off is kept waiting
// to hear that it is: it takes a fraction of that.
const containedWithin = 10 * time.Second

// hintAfter is how long whoever asked waits before break glass is named.
const hintAfter = 3 * time.Second

// tellContained says that the login is refused, once it is, and else what is in the
// way, as far as that was told. It returns an error where it is not heard of in time.
func tellContained(cmd *cobra.Command, c *client.Client, r *result, from client.Position) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), containedWithin)
	defer cancel()
	entries := c.Follow(ctx, r.Credential, r.Rotation, from.WholeLog())
	hint := time.NewTimer(hintAfter)
	defer hint.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-hint.C:
			say(cmd, "%s is accepted and not contained after %v; still waiting. To refuse the logins without Pawl and NATS: `pawl emergency %s --break-glass`", r.Rotation, hintAfter, r.Credential)
		case e := <-entries:
			if e.Event != nil && e.Event.Event == saga.Contained {
				say(cmd, "contained: %s", e.Event.Body.GetSummary())
				return nil
			}
			if e.Note != nil && e.Note.GetCredential() == r.Credential {
				say(cmd, "%s: %s", e.Note.GetKind(), e.Note.GetText())
			}
		}
	}
	return fmt.Errorf("not heard within %v that it is contained; it is tried on: `pawl status %s` and `pawl trace %s` show it; where Pawl cannot: --break-glass", containedWithin, r.Credential, r.Rotation)
}

// breakGlass needs no bus: pawl.yaml and the admin's password are enough. What
// it does is written down, for the log to learn of it.
func breakGlass(cmd *cobra.Command, name, reason string) error {
	inv, err := load(cmd)
	if err != nil {
		return err
	}
	all, err := chosen(inv, []string{name})
	if err != nil {
		return err
	}
	if all[0].IsOwn() {
		return exit{exitRejected, fmt.Errorf("rejected: Pawl itself logs in with %s, and would lock itself out", name)}
	}
	record, unwritten := glass.Begin(inv, name, requestedBy(), reason)
	if unwritten != nil {
		say(cmd, "warning: %v: it is contained all the same", unwritten)
	}
	contained, failed := dbrotator.BreakGlass(cmd.Context(), all[0], record, func(text string) { say(cmd, "still trying: %s", text) })
	record.Contained(contained)
	unwritten = record.Save()
	err = output(cmd, render.NewContained(name, contained), func(w io.Writer, _ render.Style) error {
		for _, node := range slices.Sorted(maps.Keys(contained.GetAt())) {
			fmt.Fprintf(w, "%s: %s refused\n", node, strings.Join(contained.GetLogins(), ", "))
		}
		for _, u := range contained.GetUnending() {
			fmt.Fprintf(w, "%s: process %d of %s was told to end and does not: it dies before its next command\n", u.GetNode(), u.GetPid(), u.GetUser())
		}
		_, err := fmt.Fprintf(w, "%s ended\n", service.Count(contained.GetSessions(), "session"))
		return err
	})
	if gathered := dbrotator.Gather(cmd.Context(), all[0], contained, record); gathered != nil {
		say(cmd, "warning: evidence is not kept: %v", gathered)
	}
	if unwritten != nil {
		return errors.Join(err, failed, fmt.Errorf("%w: what was done is on this screen alone: keep it", unwritten))
	}
	if told := tell(cmd.Context(), inv); told != nil {
		say(cmd, "the log knows nothing of it yet (%v): run `pawl emergency %s --reason …` once Pawl is up; that tells it, and issues a new credential. So does `pawl up` here", told, name)
	}
	return errors.Join(err, failed)
}

// tellFor is how long whoever broke the glass waits for an answer.
const tellFor = 10 * time.Second

// tell has the log learn of it, where a bus answers after all.
func tell(ctx context.Context, inv *inventory.Inventory) error {
	conn, err := join(inv)
	if err != nil {
		return err
	}
	defer conn.NATS.Close()
	ctx, cancel := context.WithTimeout(ctx, tellFor)
	defer cancel()
	return glass.Carry(ctx, inv, conn)
}

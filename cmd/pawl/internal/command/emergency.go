package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
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
	var glass bool
	c := cutting(pawlv1.Action_ACTION_CONTAIN, &cobra.Command{
		Use: "emergency CREDENTIAL --reason R", Short: "Refuse a stolen credential everywhere, at once, and return on a new one",
		Long: "Supersedes a rotation that is running. Refuses every login in doubt on every node, ends its sessions, and then brings the application back on a new credential; what was stolen never works again. Applications fail from the first second until they have read the new credential.\n\n" +
			"With --break-glass it refuses the logins straight from pawl.yaml, for when NATS or Pawl is down. Once they are up, `pawl emergency` goes on from there.",
	})
	c.Flags().BoolVar(&glass, "break-glass", false, "refuse the logins now, without NATS, also without a --reason; nothing new is published, and the log learns of it later")
	ask := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
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

// containedWithin is how long whoever asked to have a login cut off is kept waiting
// to hear that it is: it takes a fraction of that.
const containedWithin = 10 * time.Second

// tellContained says that the login is refused, once it is, and else what is in the
// way, as far as that was told. It returns an error where it is not heard of in time.
func tellContained(cmd *cobra.Command, c *client.Client, r *result, from client.Position) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), containedWithin)
	defer cancel()
	entries := c.Follow(ctx, r.Credential, r.Rotation, from.WholeLog())
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
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
	contained, failed := dbrotator.BreakGlass(cmd.Context(), all[0], record)
	record.Contained(contained)
	unwritten = record.Save()
	err = output(cmd, render.NewContained(name, contained), func(w io.Writer, _ render.Style) error {
		for _, node := range slices.Sorted(maps.Keys(contained.GetAt())) {
			fmt.Fprintf(w, "%s: %s refused\n", node, strings.Join(contained.GetLogins(), ", "))
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

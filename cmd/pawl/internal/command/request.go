package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/glass"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func newAdopt() *cobra.Command {
	return asking(pawlv1.Action_ACTION_ADOPT, true, &cobra.Command{
		Use: "adopt CREDENTIAL", Short: "Take over a credential that exists, changing nothing",
		Long: "Reads the present password from the credential's first sink, tests it on every node and sink, and records it with the settings that the login has on each node. Changes nothing anywhere.",
	})
}

func newRotate() *cobra.Command {
	var several selecting
	var atOnce int
	var run string
	c := asking(pawlv1.Action_ACTION_ROTATE, false, &cobra.Command{
		Use: "rotate CREDENTIAL...", Short: "Rotate a credential now, or several together",
		Long: "Rotates a credential now, and with it its group and whatever else is named: all begin or none, and consumers that they share restart once. Prints the rotation's id once it is accepted; with --wait, what became of it once it has ended.\n\n" +
			"With --cluster, --environment or --all it rotates every selected credential (and group) by itself, --at-once of them at a time, shows how far they are, and waits for the last. Ctrl-C stops asking for further ones; those that have begun go on. The same command with --run ID, which is printed, goes on from there and rotates nothing twice.",
	})
	c.Args = cobra.ArbitraryArgs
	several.flags(c)
	c.Flags().IntVar(&atOnce, "at-once", rotatedAtOnce, "with --cluster, --environment or --all: how many rotate at the same time")
	c.Flags().StringVar(&run, "run", "", "with --cluster, --environment or --all: go on with the run of this `ID`")
	ask := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case several.given():
			return rotateSeveral(cmd, several.with(args), atOnce, run)
		case len(args) == 0:
			return usage("name a credential, or select several with --cluster, --environment or --all")
		case cmd.Flags().Changed("at-once") || run != "":
			return usage("credentials that are named rotate together: --at-once and --run are for --cluster, --environment and --all")
		}
		return ask(cmd, args)
	}
	return c
}

func newRollback() *cobra.Command {
	return asking(pawlv1.Action_ACTION_ROLLBACK, true, &cobra.Command{
		Use: "rollback CREDENTIAL", Short: "Restore the predecessor while it is kept",
	})
}

func newResume() *cobra.Command {
	return asking(pawlv1.Action_ACTION_RESUME, false, &cobra.Command{
		Use: "resume CREDENTIAL", Short: "Stop waiting, try the stalled step now",
	})
}

// result is what became of a request.
type result struct {
	Request    string              `json:"request"`
	Credential string              `json:"credential"`
	Outcome    string              `json:"outcome"` // accepted, rejected; once awaited: completed, rolled-back, stalled, running
	Reason     string              `json:"reason,omitempty"`
	Rotation   string              `json:"rotation,omitempty"`
	Ended      *chronicle.Rotation `json:"ended,omitempty"`
	// Of each that turned together, in the order of names; absent for one alone.
	Together []chronicle.Rotation `json:"together,omitempty"`
}

// asking completes a command that requests something of a credential, and
// waits for its end where wait says so or --wait does.
func asking(action pawlv1.Action, wait bool, c *cobra.Command) *cobra.Command {
	var reason string
	c.Args = cobra.ExactArgs(1)
	if action == pawlv1.Action_ACTION_ROTATE {
		c.Args = cobra.MinimumNArgs(1)
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit trail")
	if action != pawlv1.Action_ACTION_RESUME {
		c.Flags().BoolVar(&wait, "wait", wait, "wait until it has ended")
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return request(cmd, args[0], &pawlv1.Request{Action: action, Reason: reason, RequestedBy: requestedBy(), With: beside(args)}, wait)
	}
	return c
}

// request asks, and waits for the end of what was begun where wait says so.
func request(cmd *cobra.Command, credential string, body *pawlv1.Request, wait bool) error {
	if err := checkRequest(credential, body); err != nil {
		return err
	}
	join, ask := connect, asked
	if isCutting(body) {
		join, ask = connectUrgently, askedUrgently
		say(cmd, "asking Pawl to refuse the logins of %s and to end their sessions", credential)
	}
	inv, conn, err := join(cmd)
	if err != nil {
		return err
	}
	defer conn.NATS.Close()
	if !isCutting(body) { // which waits for nothing
		tellEdited(cmd, inv, conn)
	}
	answer, from, err := ask(cmd, conn, credential, body)
	if err != nil {
		return err
	}
	r := newResult(answer)
	if isCutting(body) && r.Rotation != "" { // what was done before while there was no bus
		if err := glass.Tell(cmd.Context(), inv, conn, credential, r.Rotation); err != nil {
			say(cmd, "warning: %v", err)
		}
	}
	var failed error
	switch {
	case answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED:
		return refused(cmd, r, r.Reason, func(io.Writer, render.Style) error { return nil })
	case wait:
		return await(cmd, conn, r, from)
	case r.Reason != "":
		say(cmd, "%s", r.Reason)
	case isCutting(body):
		failed = tellContained(cmd, conn, r, from)
	}
	err = output(cmd, r, func(w io.Writer, _ render.Style) error {
		_, err := fmt.Fprintln(w, r.Rotation)
		return err
	})
	return errors.Join(failed, err)
}

// asked asks, and returns the answer and where the bus stood before.
func asked(cmd *cobra.Command, conn *client.Client, credential string, body *pawlv1.Request) (*pawlv1.Answer, client.Position, error) {
	from, err := conn.Now(cmd.Context()) // before the request, so that no note is missed
	if err != nil {
		return nil, from, err
	}
	answer, err := conn.Ask(cmd.Context(), credential, body)
	return answer, from, err
}

// isCutting reports whether the request follows a broken glass up.
func isCutting(body *pawlv1.Request) bool {
	return body.GetAction() == pawlv1.Action_ACTION_CONTAIN || body.GetAction() == pawlv1.Action_ACTION_LOCK
}

func newPlan() *cobra.Command {
	return &cobra.Command{
		Use: "plan CREDENTIAL...", Short: "Preflight and the steps of a rotation, touching nothing", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &pawlv1.Request{Action: pawlv1.Action_ACTION_PLAN, RequestedBy: requestedBy(), With: beside(args)}
			if err := checkRequest(args[0], request); err != nil {
				return err
			}
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			tellEdited(cmd, inv, conn)
			answer, err := conn.Ask(cmd.Context(), args[0], request)
			if err != nil {
				return err
			}
			plan := render.NewPlan(answer)
			table := func(w io.Writer, s render.Style) error { return render.PlanTable(w, plan, s) }
			if plan.Refused {
				return refused(cmd, plan, plan.Reason, table)
			}
			return output(cmd, plan, table)
		},
	}
}

func newResult(a *pawlv1.Answer) *result {
	return &result{Request: a.GetRequest(), Credential: a.GetCredential(), Reason: a.GetReason(), Rotation: a.GetRotation(),
		Outcome: strings.ToLower(strings.TrimPrefix(a.GetOutcome().String(), "OUTCOME_"))}
}

// refused prints the result, and returns the reason with its exit code.
func refused(cmd *cobra.Command, result any, reason string, text func(io.Writer, render.Style) error) error {
	if err := output(cmd, result, text); err != nil {
		return err
	}
	return exit{exitRejected, errors.New("rejected: " + reason)}
}

// checkRequest refuses what the bus would.
func checkRequest(credential string, r *pawlv1.Request) error {
	if err := checkReason(r); err != nil {
		return err
	}
	if len(r.GetWith()) >= inventory.MaxTogether {
		return usage("%d credentials are named: at most %d turn together", len(r.GetWith())+1, inventory.MaxTogether)
	}
	for _, name := range r.GetWith() {
		if err := checkToken("credential", name); err != nil {
			return err
		}
	}
	return checkToken("credential", credential)
}

func checkReason(r *pawlv1.Request) error {
	if n := len([]rune(r.GetReason())); n > 1024 {
		return usage("--reason has %d characters: at most 1024 are kept", n)
	}
	return nil
}

// beside returns what is named beside the first credential, each once.
func beside(args []string) []string {
	rest := slices.Compact(slices.Sorted(slices.Values(args[1:])))
	return slices.DeleteFunc(rest, func(name string) bool { return name == args[0] })
}

// requestedBy is whom the audit trail names, as claimed.
func requestedBy() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return fmt.Sprintf("%.120s@%.120s", name, host)
}

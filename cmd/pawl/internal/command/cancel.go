package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// withdrawn is the outcome of a request that waited and was cancelled.
const withdrawn = "withdrawn"

func newCancel() *cobra.Command {
	var reason string
	var wait bool
	c := &cobra.Command{
		Use: "cancel CREDENTIAL|ROTATION|REQUEST", Short: "Roll back a rotation that is under way, or withdraw a request that waits", Args: cobra.ExactArgs(1),
		Long: "Rolls a rotation back exactly, as if the step that is due had failed, and waits until it is rolled back. " +
			"Once a rotation is verified it only goes forward, and is refused: wait until it has completed, then run `pawl rollback`. Credentials that rotate together are cancelled together. No emergency is ever cancelled.\n\n" +
			"A request that waits for its `not_before` is withdrawn: its answer says who cancelled it.",
		RunE: func(cmd *cobra.Command, args []string) error { return cancel(cmd, args[0], reason, wait) },
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the audit trail")
	c.Flags().BoolVar(&wait, "wait", true, "wait until the rotation is rolled back")
	return c
}

func cancel(cmd *cobra.Command, what, reason string, wait bool) error {
	body := &pawlv1.Request{Action: pawlv1.Action_ACTION_CANCEL, Reason: reason, RequestedBy: requestedBy()}
	if err := checkRequest(what, body); err != nil {
		return err
	}
	inv, conn, err := connect(cmd)
	if err != nil {
		return err
	}
	defer conn.NATS.Close()
	credential, id, err := cancellable(cmd.Context(), conn, inv, what)
	if err != nil {
		return err
	}
	body.Cancels = id
	from, err := conn.Now(cmd.Context()) // before the request, so that no note is missed
	if err != nil {
		return err
	}
	answer, err := conn.Ask(cmd.Context(), credential, body)
	if err != nil {
		return err
	}
	r := newResult(answer)
	if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		return refused(cmd, r, r.Reason, func(io.Writer, render.Style) error { return nil })
	}
	say(cmd, "%s", r.Reason)
	if r.Rotation == "" {
		r.Outcome = withdrawn
	} else if wait {
		err := await(cmd, conn, r, from)
		if end := (exit{}); errors.As(err, &end) && end.code == exitRolledBack {
			return nil // which is what was asked for
		}
		return err
	}
	return output(cmd, r, func(w io.Writer, _ render.Style) error {
		_, err := fmt.Fprintln(w, id, r.Outcome)
		return err
	})
}

// cancellable finds the rotation or the request that is meant, and its credential.
// The request to cancel names it, so that it can never end another one.
func cancellable(ctx context.Context, c *client.Client, inv *inventory.Inventory, what string) (credential, id string, err error) {
	waiting, err := c.AllWaiting(ctx)
	if err != nil {
		return "", "", err
	}
	if _, ok := inv.Credentials[what]; ok {
		id, err := onlyOne(ctx, c, what, waiting[what])
		return what, id, err
	}
	for credential, requests := range waiting {
		for _, w := range requests {
			if w.GetId() == what {
				return credential, what, nil
			}
		}
	}
	logs, err := c.FindRotation(ctx, what)
	if err != nil {
		return "", "", err
	}
	if len(logs) > 0 {
		return logs[0].Credential, what, nil
	}
	answer, err := c.Answered(ctx, what)
	switch {
	case err != nil:
		return "", "", err
	case answer.GetRotation() != "" && answer.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED:
		return answer.GetCredential(), answer.GetRotation(), nil
	case answer != nil:
		return "", "", exit{exitRejected, fmt.Errorf("rejected: request %s does not wait: %s", what, answer.GetReason())}
	}
	return "", "", usage("%q is no credential in %s, no rotation and no request that waits; `pawl status` shows what there is", what, inv.File)
}

// onlyOne is what can be cancelled of a credential, if that is one thing: a person
// must say which of several.
func onlyOne(ctx context.Context, c *client.Client, credential string, waiting []*pawlv1.WaitingRequest) (id string, err error) {
	log, err := c.ReadNewest(ctx, credential)
	if err != nil {
		return "", err
	}
	var all []string
	if len(log.Records) > 0 {
		state, err := log.Fold()
		if err != nil {
			return "", err
		}
		if state.Open() {
			all = append(all, log.Rotation)
		}
	}
	for _, w := range waiting {
		all = append(all, w.GetId())
	}
	switch len(all) {
	case 0:
		return "", exit{exitRejected, fmt.Errorf("rejected: nothing to cancel: no rotation of %s is under way, and no request waits", credential)}
	case 1:
		return all[0], nil
	}
	return "", usage("%s has more than one that can be cancelled: run `pawl cancel` with one of %s", credential, strings.Join(all, ", "))
}

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
)

func newStatus() *cobra.Command {
	var ofServices bool
	status := &cobra.Command{
		Use: "status [CREDENTIAL]", Short: "State, generation, age, next due and last rotation, and what keeps Pawl from working", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			if ofServices {
				return showServices(cmd, conn)
			}
			tellEdited(cmd, inv, conn)
			credentials, err := chosen(inv, args)
			if err != nil {
				return err
			}
			tellServices(cmd, conn)
			all, failed := statuses(cmd.Context(), conn, credentials, time.Now())
			err = output(cmd, all, func(w io.Writer, s render.Style) error { return render.StatusTable(w, all, s) })
			return errors.Join(err, failed)
		},
	}
	status.Flags().BoolVar(&ofServices, "services", false, "show the services instead: which run, what keeps them from working, what waits for them")
	return status
}

// statuses returns what can be told, and why the rest cannot.
func statuses(ctx context.Context, c *client.Client, credentials []*inventory.Credential, now time.Time) (all []chronicle.Status, failed error) {
	all = make([]chronicle.Status, 0, len(credentials))
	oldest := now
	for _, credential := range credentials {
		s, err := statusOf(ctx, c, credential, now)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", credential.Name, err))
			continue
		}
		if s.Since != nil && s.Since.Before(oldest) {
			oldest = *s.Since
		}
		all = append(all, s)
	}
	notes, err := notesSince(ctx, c, oldest, now)
	drift := chronicle.Drift(notes)
	waiting, unread := c.AllWaiting(ctx)
	for i := range all {
		all[i].Explain(notes)
		all[i].Drift, all[i].Waiting = drift[all[i].Credential], chronicle.NewWaiting(waiting[all[i].Credential])
	}
	return all, errors.Join(failed, err, unread)
}

// notesSince returns the notes since then, and from before it those since each
// service that reports drift began: that is when it last compared all anew.
func notesSince(ctx context.Context, c *client.Client, since, now time.Time) (notes []bus.Entry, err error) {
	for back := time.Hour; ; back *= 24 {
		if at := now.Add(-back); at.Before(since) {
			since = at
		}
		whole := back > 5*365*24*time.Hour
		if whole {
			since = time.Time{}
		}
		if notes, err = c.Notes(ctx, since); err != nil || whole {
			return notes, err
		}
		began := map[string]bool{}
		for _, e := range notes {
			began[e.Service] = began[e.Service] || e.Note.GetKind() == "configuration"
		}
		if began[saga.DBRotator] && began[saga.SecretPublisher] {
			return notes, nil
		}
	}
}

func statusOf(ctx context.Context, c *client.Client, credential *inventory.Credential, now time.Time) (chronicle.Status, error) {
	log, err := c.ReadNewest(ctx, credential.Name)
	if err != nil {
		return chronicle.Status{}, err
	}
	status, err := chronicle.NewStatus(credential, log, func(rotation string) (time.Time, error) {
		return endOf(ctx, c, credential.Name, rotation)
	}, now)
	if err != nil {
		return status, err
	}
	verdict, err := restored.Of(ctx, c.Bus, log)
	if err == nil && verdict.Standing != restored.Agrees && verdict.Standing != restored.Undone {
		status = status.HeldFor(verdict.Why)
	}
	return status, err
}

// endOf returns when a rotation ended.
func endOf(ctx context.Context, c *client.Client, credential, rotation string) (time.Time, error) {
	log, err := c.ReadRotation(ctx, credential, rotation)
	if err != nil {
		return time.Time{}, err
	}
	state, err := log.Fold()
	if err != nil {
		return time.Time{}, err
	}
	ended, _ := state.Ended()
	return ended.At, nil
}

func newHistory() *cobra.Command {
	return &cobra.Command{
		Use: "history CREDENTIAL", Short: "Every rotation of a credential, newest last", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkToken("credential", args[0]); err != nil {
				return err
			}
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			logs, err := conn.Rotations(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(logs) == 0 { // one that was taken out of the configuration still has its history
				if _, err := chosen(inv, args); err != nil {
					return err
				}
				say(cmd, "%s never had a rotation", args[0])
			}
			all := make([]chronicle.Rotation, 0, len(logs))
			for _, log := range logs {
				r, err := chronicle.NewRotation(log, time.Now())
				if err != nil {
					say(cmd, "rotation %s is left out: %v", log.Rotation, err)
					continue
				}
				all = append(all, r)
			}
			chronicle.MarkSuperseded(all, logs)
			return output(cmd, all, func(w io.Writer, s render.Style) error {
				if len(all) == 0 {
					return nil
				}
				return render.History(w, all, s)
			})
		},
	}
}

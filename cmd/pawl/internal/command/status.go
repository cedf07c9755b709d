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
	"pawl.dev/internal/inventory"
)

func newStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status [CREDENTIAL]", Short: "State, generation, age, next due and last rotation", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			credentials, err := chosen(inv, args)
			if err != nil {
				return err
			}
			all, failed := statuses(cmd.Context(), conn, credentials, time.Now())
			err = output(cmd, all, func(w io.Writer, s render.Style) error { return render.StatusTable(w, all, s) })
			return errors.Join(err, failed)
		},
	}
}

// statuses returns what can be told, and why the rest cannot.
func statuses(ctx context.Context, c *client.Client, credentials []*inventory.Credential, now time.Time) (all []render.Status, failed error) {
	all = make([]render.Status, 0, len(credentials))
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
	if oldest.Equal(now) {
		return all, failed
	}
	notes, err := c.Notes(ctx, oldest)
	for i := range all {
		all[i].Explain(notes)
	}
	return all, errors.Join(failed, err)
}

func statusOf(ctx context.Context, c *client.Client, credential *inventory.Credential, now time.Time) (render.Status, error) {
	log, err := c.ReadNewest(ctx, credential.Name)
	if err != nil {
		return render.Status{}, err
	}
	return render.NewStatus(credential, log, func(rotation string) (time.Time, error) {
		return endOf(ctx, c, credential.Name, rotation)
	}, now)
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
			all := make([]render.Rotation, 0, len(logs))
			for _, log := range logs {
				r, err := render.NewRotation(log, time.Now())
				if err != nil {
					say(cmd, "rotation %s is left out: %v", log.Rotation, err)
					continue
				}
				all = append(all, r)
			}
			return output(cmd, all, func(w io.Writer, s render.Style) error {
				if len(all) == 0 {
					return nil
				}
				return render.History(w, all, s)
			})
		},
	}
}

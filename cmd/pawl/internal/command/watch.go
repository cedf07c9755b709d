package command

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
)

func newWatch() *cobra.Command {
	var since time.Duration
	c := &cobra.Command{
		Use: "watch [CREDENTIAL]", Short: "Events and notes as they happen, until Ctrl-C", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			only := ""
			if len(args) > 0 {
				if _, err := chosen(inv, args); err != nil {
					return err
				}
				only = args[0]
			}
			return watch(cmd, conn, only, since)
		},
	}
	c.Flags().DurationVar(&since, "since", 0, "begin with what happened this long ago, such as 1h")
	return c
}

func watch(cmd *cobra.Command, c *client.Client, only string, since time.Duration) error {
	ctx := cmd.Context()
	now, err := c.Now(ctx)
	if err != nil {
		return err
	}
	show := func(e bus.Entry) error {
		if only != "" && e.Credential != only {
			return nil
		}
		line := chronicle.NewLine(e)
		if wantsJSON(cmd) {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(line)
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), render.Line(line, style(cmd.OutOrStdout())))
		return err
	}
	if since > 0 {
		before, err := c.Since(ctx, time.Now().Add(-since), now)
		if err != nil {
			return err
		}
		for _, e := range before {
			if err := show(e); err != nil {
				return err
			}
		}
	}
	entries := c.Follow(ctx, "*", "*", now)
	say(cmd, "watching; Ctrl-C ends it")
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-entries:
			if err := show(e); err != nil {
				return err
			}
		}
	}
}

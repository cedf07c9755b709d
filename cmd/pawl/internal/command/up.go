package command

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/cmd/pawl/internal/glass"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/service"
)

func newUp() *cobra.Command {
	var verbose bool
	up := &cobra.Command{
		Use: "up", Short: "Run all six services in this process, on an embedded NATS or on yours", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			level := slog.LevelWarn
			if verbose {
				level = slog.LevelInfo
			}
			err = embedded.Up(cmd.Context(), embedded.UpOptions{Inventory: inv, Log: cmd.ErrOrStderr(), Level: level, Ready: func() {
				fmt.Fprintf(cmd.ErrOrStderr(), "pawl is up: %s, NATS on %s\n", service.Count(len(inv.Credentials), "credential"), address(inv))
				go tellOfBrokenGlass(cmd, inv)
				if url := inv.Dashboard.URL(); url != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "dashboard on %s\n", url)
				}
			}})
			if errors.Is(err, fs.ErrNotExist) { // a key that `pawl init` makes
				return exit{exitUsage, err}
			}
			return err
		},
	}
	up.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every step")
	return up
}

// tellOfBrokenGlass has the log learn of what was done while it was down. It
// tries until that is done.
func tellOfBrokenGlass(cmd *cobra.Command, inv *inventory.Inventory) {
	again := time.NewTicker(tellFor)
	defer again.Stop()
	said := ""
	for {
		untold, err := glass.Untold(inv, "")
		if err == nil && len(untold) == 0 {
			return
		}
		if len(untold) > 0 {
			err = tell(cmd.Context(), inv)
		}
		if cmd.Context().Err() != nil {
			return
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			fmt.Fprintf(cmd.ErrOrStderr(), "pawl: warning: the glass was broken, and the log knows nothing of it yet: %v\n", err)
		}
		select {
		case <-cmd.Context().Done():
			return
		case <-again.C:
		}
	}
}

func address(inv *inventory.Inventory) string { return cmp.Or(inv.NATS.URL, inv.NATS.Listen) }

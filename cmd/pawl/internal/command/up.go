package command

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/inventory"
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
			err = embedded.Up(cmd.Context(), embedded.UpOptions{Inventory: inv, Log: os.Stderr, Level: level, Ready: func() {
				fmt.Fprintf(os.Stderr, "pawl is up: %d credentials, NATS on %s\n", len(inv.Credentials), address(inv))
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

func address(inv *inventory.Inventory) string {
	if inv.NATS.URL != "" {
		return inv.NATS.URL
	}
	return inv.NATS.Listen
}

package command

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/backup"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/cmd/pawl/restore"
	"pawl.dev/internal/telemetry"
)

func newBackup() *cobra.Command {
	var o backup.Options
	c := &cobra.Command{
		Use: "backup", Short: "Write all streams to one sealed file, while Pawl runs", Args: cobra.NoArgs,
		Long: "Writes a snapshot of all streams to one compressed file, sealed to backup.recipients of pawl.yaml or else to the key that `pawl init` has made. `pawl restore` reads it. Without the keys in keys_dir the sealed credentials in it cannot be opened: back those up apart, or take them along with --with-keys.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			o.Inventory = inv
			w, err := backup.Write(cmd.Context(), o)
			if err != nil {
				return err
			}
			if _, err := os.Stat(backup.IdentityFile(inv)); err == nil && len(inv.Backup.Recipients) == 0 {
				say(cmd, "warning: %s, which opens the backup, lies on this machine: keep a copy where Pawl does not run", backup.IdentityFile(inv))
			}
			return output(cmd, w, func(out io.Writer, _ render.Style) error {
				say(cmd, "%d messages, %d KB (%d KB before compression), in %v", w.Messages, (w.Bytes+999)/1000, (w.Unpacked+999)/1000, w.Took.Round(time.Millisecond))
				_, err := fmt.Fprintln(out, w.File)
				return err
			})
		},
	}
	c.Flags().StringVar(&o.Out, "out", "", "the `FILE` to write; default: a new one in backup.to")
	c.Flags().BoolVar(&o.WithKeys, "with-keys", false, "take along the keys in keys_dir, which open what is sealed in the streams")
	return c
}

func newRestore() *cobra.Command {
	var o restore.Options
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make all streams again from a backup, where there are none", Args: cobra.ExactArgs(1),
		Long: "Makes all streams from a file of `pawl backup`, in an empty data_dir or on a NATS of your own without streams of Pawl. Nothing is touched before the whole file was read and found right. What is restored is older than the databases: Pawl compares each credential with them before it does anything, and `pawl doctor` names those with which somebody has to decide. See docs/runbooks/backup.md.",
		RunE: func(cmd *cobra.Command, args []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			o.Inventory, o.File, o.Log = inv, args[0], telemetry.NewLogger(cmd.ErrOrStderr(), "restore", slog.LevelError)
			r, err := restore.Run(cmd.Context(), o)
			if errors.Is(err, restore.ErrUsage) {
				return exit{exitUsage, err}
			}
			if err != nil {
				return err
			}
			return output(cmd, r, func(w io.Writer, _ render.Style) error { return tellRestored(cmd, w, r) })
		},
	}
	c.Flags().StringVar(&o.Identity, "identity", "", "the `FILE` of the private key that opens the backup; default: backup.key in keys_dir")
	c.Flags().BoolVar(&o.WithKeys, "with-keys", false, "write the keys of the backup that are missing here")
	return c
}

func tellRestored(cmd *cobra.Command, w io.Writer, r restore.Result) error {
	for _, key := range r.Keys {
		fmt.Fprintln(w, key)
	}
	fmt.Fprintf(w, "restored %d messages from the backup of %s\n", r.Messages, r.At.Format(time.RFC3339))
	for _, d := range r.Dropped {
		fmt.Fprintf(w, "dropped a request that waited: %s of %s (%s): ask again if it is still wanted\n", d.Subject, d.At.Format(time.RFC3339), d.What)
	}
	say(cmd, "next: start Pawl, wait a minute, then `pawl doctor`: it names each credential that was rotated since %s or that cannot be compared, and what to do", r.At.Format(time.RFC3339))
	return nil
}

package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/trail"
)

func newAudit() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "The audit trail: export it, verify it, report from it, print the key that verifies it"}
	c.AddCommand(newAuditExport(), newAuditVerify(), newAuditReport(), newAuditKey())
	return c
}

func newAuditKey() *cobra.Command {
	return &cobra.Command{
		Use: "key", Short: "Print the keys that verify the audit trail, the newest last", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			path := trail.PublicFile(inv.KeysDir)
			if _, err := trail.LoadKeys(path); err != nil {
				return exit{exitUsage, err}
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return exit{exitUsage, err}
			}
			return output(cmd, strings.Fields(string(text)), func(w io.Writer, _ render.Style) error {
				_, err := w.Write(text)
				return err
			})
		},
	}
}

func newAuditExport() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "export", Short: "Write the signed trail to a folder, and verify what was written", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return auditExport(cmd, out) },
	}
	c.Flags().StringVar(&out, "out", "", "the `FOLDER`; made, and never overwritten")
	_ = c.MarkFlagRequired("out") // it is there
	return c
}

func auditExport(cmd *cobra.Command, dir string) error {
	inv, client, err := connect(cmd)
	if err != nil {
		return err
	}
	defer client.NATS.Close()
	public := trail.PublicFile(inv.KeysDir)
	keys, err := trail.LoadKeys(public)
	if err != nil {
		return exit{exitUsage, err}
	}
	text, err := os.ReadFile(public)
	if err != nil {
		return exit{exitUsage, err}
	}
	if _, err := trail.Export(trail.Live(cmd.Context(), client.Bus, keys), text, dir); err != nil {
		return err
	}
	result, err := trail.Verify(trail.Exported(dir, keys), keys)
	return verified(cmd, result, nil, err)
}

// verifyOptions are the flags of audit verify.
type verifyOptions struct{ key, since, record string }

func newAuditVerify() *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use: "verify [FOLDER]", Short: "Prove the live trail, or an export of it without anything else", Args: cobra.MaximumNArgs(1),
		Long: "Prove that every record is the one that was signed, in its place, and that each checkpoint contains the one before.\n" +
			"Live, also that each record is of a message that is there, and that no message lacks its record.\n" +
			"Exit code 1, and the first bad record named, where that is not so.",
		RunE: func(cmd *cobra.Command, args []string) error { return auditVerify(cmd, args, o) },
	}
	c.Flags().StringVar(&o.key, "key", "", "trust this `KEY`, or those in this file, instead of those that lie in keys_dir or in the export")
	c.Flags().StringVar(&o.since, "since", "", "prove as well that nothing was rewritten since the checkpoint in this `FILE`, which you kept")
	c.Flags().StringVar(&o.record, "record", "", "prove that the message at `STREAM:SEQUENCE` is in the newest checkpoint, and print its record")
	return c
}

func auditVerify(cmd *cobra.Command, args []string, o verifyOptions) error {
	stream, sequence, err := o.message()
	if err != nil {
		return err
	}
	t, err := openTrail(cmd, args, o.key)
	if err != nil {
		return err
	}
	defer t.close()
	var kept []*trail.Checkpoint
	if o.since != "" {
		text, err := os.ReadFile(o.since)
		if err != nil {
			return exit{exitUsage, err}
		}
		checkpoint, err := trail.OpenCheckpoint(string(text), t.keys)
		if err != nil {
			return fmt.Errorf("%s %w", o.since, err)
		}
		kept = append(kept, checkpoint)
	}
	result, err := t.verify(kept)
	if err != nil || o.record == "" {
		return verified(cmd, result, nil, err)
	}
	proof, err := trail.Prove(t.entries(), stream, sequence)
	return verified(cmd, result, proof, err)
}

func (o verifyOptions) message() (stream string, sequence uint64, err error) {
	if o.record == "" {
		return "", 0, nil
	}
	stream, number, _ := strings.Cut(o.record, ":")
	if sequence, err = strconv.ParseUint(number, 10, 64); err != nil || sequence == 0 {
		return "", 0, usage("--record %q: name a message as STREAM:SEQUENCE, such as %s:17", o.record, bus.StreamLog)
	}
	return stream, sequence, nil
}

// verified prints what was proved.
func verified(cmd *cobra.Command, result trail.Result, proof *trail.Proof, err error) error {
	if err != nil {
		return fmt.Errorf("the audit trail does not verify: %w", err)
	}
	shown, err := render.NewAudit(result, proof)
	if err != nil {
		return err
	}
	return output(cmd, shown, shown.Text)
}

// openedTrail is the live trail or an export.
type openedTrail struct {
	keys    note.Verifiers
	entries func() trail.Entries
	verify  func(kept []*trail.Checkpoint) (trail.Result, error)
	close   func()
}

// openTrail opens what args name; its own keys are trusted where no others are
// named.
func openTrail(cmd *cobra.Command, args []string, key string) (*openedTrail, error) {
	named, err := namedKeys(key)
	if err != nil {
		return nil, err
	}
	if len(args) > 0 {
		return openExport(cmd, args[0], named)
	}
	inv, client, err := connect(cmd)
	if err != nil {
		return nil, err
	}
	if named == nil {
		if named, err = trail.LoadKeys(trail.PublicFile(inv.KeysDir)); err != nil {
			client.NATS.Close()
			return nil, exit{exitUsage, err}
		}
	}
	return &openedTrail{
		keys: named, close: client.NATS.Close,
		entries: func() trail.Entries { return trail.Live(cmd.Context(), client.Bus, named) },
		verify: func(kept []*trail.Checkpoint) (trail.Result, error) {
			return trail.VerifyLive(cmd.Context(), client.Bus, named, kept...)
		},
	}, nil
}

func openExport(cmd *cobra.Command, dir string, keys note.Verifiers) (*openedTrail, error) {
	if keys == nil {
		own, err := trail.ExportedKeys(dir)
		if err != nil {
			return nil, exit{exitUsage, err}
		}
		keys = own
		say(cmd, "warning: verified by the key that lies in the export, which a forger could have put there: name the one that `pawl audit key` prints, with --key")
	}
	from := func() trail.Entries { return trail.Exported(dir, keys) }
	return &openedTrail{keys: keys, close: func() {}, entries: from,
		verify: func(kept []*trail.Checkpoint) (trail.Result, error) { return trail.Verify(from(), keys, kept...) }}, nil
}

// namedKeys reads --key: a key, or a file of keys; nil where it is not given.
func namedKeys(key string) (note.Verifiers, error) {
	if key == "" {
		return nil, nil
	}
	keys, err := trail.ParseKeys(key)
	if err == nil {
		return keys, nil
	}
	keys, fromFile := trail.LoadKeys(key)
	if errors.Is(fromFile, os.ErrNotExist) {
		return nil, usage("--key: neither a file nor a key: %v", err)
	}
	if fromFile != nil {
		return nil, exit{exitUsage, fromFile}
	}
	return keys, nil
}

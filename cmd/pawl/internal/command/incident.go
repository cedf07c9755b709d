package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/incident"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/sealed"
)

// formats of an incident report, by their name.
var formats = map[string]func(document, io.Writer) error{
	"md":   document.Markdown,
	"html": document.HTML,
}

// document is a report of one credential, or of several.
type document interface {
	Markdown(io.Writer) error
	HTML(io.Writer) error
}

func newIncident() *cobra.Command {
	var dir, format string
	c := &cobra.Command{
		Use: "incident ROTATION [CREDENTIAL]", Short: "The report of an emergency: what was done, to whom, and what is left to check",
		Long: "Writes the report of an emergency or a lock, also while it runs. The evidence in it is sealed: it is shown where the private half of the incident key is (KEYS_DIR/sealing/incident.agekey). Without --out it goes to stdout, as Markdown unless --format says otherwise; with --out both formats are written into the folder, or the one that --format names.\n\nOf an emergency of several credentials it reports on all of them; name a CREDENTIAL for the report, with its evidence, of that one.", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkToken("rotation", args[0]); err != nil {
				return err
			}
			if _, ok := formats[format]; format != "" && !ok {
				return usage("--format %s: write md or html", format)
			}
			only := ""
			if len(args) > 1 {
				only = args[1]
			}
			report, err := newReport(cmd, args[0], only)
			if err != nil {
				return err
			}
			if dir != "" {
				name := "incident-" + args[0]
				if only != "" {
					name += "-" + only
				}
				return writeReports(cmd, report, dir, name, format)
			}
			if format == "" {
				format = "md"
			}
			return output(cmd, report, func(w io.Writer, _ render.Style) error { return formats[format](report, w) })
		},
	}
	c.Flags().StringVar(&dir, "out", "", "write incident-ROTATION.md and .html into this `DIR`")
	c.Flags().StringVar(&format, "format", "", "md or html")
	return c
}

func newReport(cmd *cobra.Command, rotation, only string) (document, error) {
	inv, conn, err := connect(cmd)
	if err != nil {
		return nil, err
	}
	defer conn.NATS.Close()
	ctx := cmd.Context()
	logs, err := conn.FindRotation(ctx, rotation)
	if err != nil {
		return nil, err
	}
	if len(logs) == 0 {
		return nil, fmt.Errorf("there is no rotation %s: `pawl history CREDENTIAL` lists them", rotation)
	}
	if only != "" {
		at := slices.IndexFunc(logs, func(l bus.Log) bool { return l.Credential == only })
		if at < 0 {
			return nil, usage("rotation %s is not of %q", rotation, only)
		}
		return reportOf(cmd, inv, conn, logs[at])
	}
	record, err := conn.Several(ctx, rotation)
	if err != nil {
		return nil, err
	}
	if record != nil {
		return incident.NewSeveral(record, logs, inv, time.Now())
	}
	return reportOf(cmd, inv, conn, logs[0])
}

// reportOf is the report of one credential's emergency.
func reportOf(cmd *cobra.Command, inv *inventory.Inventory, conn *client.Client, log bus.Log) (_ document, err error) {
	ctx := cmd.Context()
	s := incident.Sources{Log: log, Inventory: inv, Credential: inv.Credentials[log.Credential], Now: time.Now()}
	if _, err := incident.New(s); errors.Is(err, incident.ErrNoEmergency) { // before anything else is read
		return nil, exit{exitUsage, err}
	}
	requested := s.Log.Records[0].At
	if s.Notes, err = conn.Notes(ctx, requested); err != nil {
		return nil, err
	}
	if s.Alerts, err = conn.Alerts(ctx, requested.Add(-incident.Lookback)); err != nil {
		return nil, err
	}
	if s.Alarms, err = conn.Alarms(ctx, s.Log.Credential, requested.Add(-incident.Lookback)); err != nil {
		return nil, err
	}
	if s.Evidence, s.Sealed, err = readEvidence(cmd, inv, conn, s.Log); err != nil {
		return nil, err
	}
	return incident.New(s)
}

// readEvidence opens what can be opened, and says of the rest that it is sealed.
func readEvidence(cmd *cobra.Command, inv *inventory.Inventory, conn *client.Client, log bus.Log) (all []evidence.Snapshot, closed string, err error) {
	key, err := sealed.LoadIncidentKey(inv.KeysDir)
	if err != nil {
		return nil, fmt.Sprintf("No evidence is shown, and none may have been kept: %v", err), nil
	}
	all, stored, err := evidence.Read(cmd.Context(), conn.Bus, key, log.Credential, log.Rotation)
	switch {
	case errors.Is(err, sealed.ErrNoIncidentKey):
		return all, fmt.Sprintf("The evidence stays sealed (%d pieces): run this where %s is.", stored, sealed.IncidentKeyFile(inv.KeysDir)), nil
	case err != nil && stored > 0:
		return all, fmt.Sprintf("%d of %d pieces of evidence cannot be shown: %v", stored-len(all), stored, err), nil
	}
	return all, "", err
}

// writeReports writes the report in one format, or in each, for its owner alone:
// evidence is in it.
func writeReports(cmd *cobra.Command, report document, dir, name, format string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	var paths []string
	for _, kind := range []string{"md", "html"} {
		if format != "" && format != kind {
			continue
		}
		path := filepath.Join(dir, name+"."+kind)
		if err := writeFile(path, func(w io.Writer) error { return formats[kind](report, w) }); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		paths = append(paths, path)
	}
	return output(cmd, paths, func(w io.Writer, _ render.Style) error {
		for _, path := range paths {
			fmt.Fprintln(w, path)
		}
		return nil
	})
}

// writeFile writes a file for its owner alone, instead of the one that is there.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // of what was not written to its end
	if err := write(f); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

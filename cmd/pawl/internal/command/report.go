package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sync/errgroup"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/cmd/pawl/internal/terminal"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/compliance"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/trail"
)

// reportOptions are the flags of audit report.
type reportOptions struct{ framework, from, to, zone, format, out, offline, key string }

var reportFormats = map[string]func(*compliance.Report, io.Writer) error{
	"md": (*compliance.Report).Markdown, "html": (*compliance.Report).HTML, "csv": (*compliance.Report).CSV,
}

func newAuditReport() *cobra.Command {
	var o reportOptions
	c := &cobra.Command{
		Use: "report", Short: "Report from the trail what was configured and recorded, arranged for a framework", Args: cobra.NoArgs,
		Long: "Report coverage, rotations, exceptions, emergencies and access, each with its evidence in the trail.\n" +
			"The trail is verified first. Exit code 1 where it does not verify: the report says so at its top.\n" +
			"Credentials that are overdue do not change the exit code.",
		RunE: func(cmd *cobra.Command, _ []string) error { return auditReport(cmd, o) },
	}
	f := c.Flags()
	f.StringVar(&o.framework, "framework", "", "soc2, iso27001, pci-dss or hipaa")
	f.StringVar(&o.from, "from", "", "the first `DAY`, such as 2026-01-01, or a time, such as 2026-01-01T12:00:00Z; 90 days before the end unless given")
	f.StringVar(&o.to, "to", "", "the last `DAY`, or the time before which it ends; now unless given")
	f.StringVar(&o.zone, "zone", "UTC", "of days, and of the times in the report: a `ZONE` such as Europe/Berlin")
	f.StringVar(&o.format, "format", "md", "md, html or csv")
	f.StringVar(&o.out, "out", "", "write to this `FILE` instead of stdout")
	f.StringVar(&o.offline, "offline", "", "report from the export in this `FOLDER`, and ask nobody anything")
	f.StringVar(&o.key, "key", "", "trust this `KEY`, or those in this file, instead of those that lie in keys_dir or in the export")
	_ = c.MarkFlagRequired("framework") // it is there
	return c
}

func auditReport(cmd *cobra.Command, o reportOptions) error {
	framework, period, err := o.read(time.Now())
	if err != nil {
		return exit{exitUsage, err}
	}
	inv, err := load(cmd)
	if err != nil {
		return err
	}
	var where []string
	if o.offline != "" {
		where = []string{o.offline}
	}
	opened, err := openTrail(cmd, where, o.key)
	if err != nil {
		return err
	}
	defer opened.close()
	builder := compliance.NewBuilder(inv, period)
	state, err := readTrail(opened, builder)
	if err != nil {
		return err
	}
	var now *compliance.Now
	if o.offline == "" {
		c, err := join(inv)
		if err != nil {
			return err
		}
		defer c.NATS.Close()
		now = lookNow(cmd.Context(), c, inv, period.To.Location())
	}
	if err := o.write(cmd, builder.Report(framework, state, now)); err != nil {
		return err
	}
	if state.Fault != "" {
		return errors.New("the audit trail does not verify: " + state.Fault)
	}
	return nil
}

// read checks the flags before anything is touched.
func (o reportOptions) read(now time.Time) (compliance.Framework, compliance.Period, error) {
	framework, err := compliance.FrameworkByName(o.framework)
	if err != nil {
		return framework, compliance.Period{}, fmt.Errorf("--framework: %w", err)
	}
	if reportFormats[o.format] == nil {
		return framework, compliance.Period{}, fmt.Errorf("--format: unknown format %q: name one of %s", o.format, strings.Join(slices.Sorted(maps.Keys(reportFormats)), ", "))
	}
	zone, err := time.LoadLocation(o.zone)
	if err != nil || o.zone == "" || o.zone == "Local" { // Local is another one on every machine
		return framework, compliance.Period{}, fmt.Errorf("--zone: unknown time zone %q: name one such as UTC or Europe/Berlin", o.zone)
	}
	period, err := compliance.NewPeriod(o.from, o.to, now.In(zone).Truncate(time.Second))
	return framework, period, err
}

// readTrail proves the trail while the builder reads it, so that what is
// reported is what was proved. What does not verify is told in the report.
func readTrail(opened *openedTrail, builder *compliance.Builder) (compliance.Trail, error) {
	var state compliance.Trail
	entries := func(yield func(trail.Entry, error) bool) {
		for e, err := range opened.entries() {
			if err == nil && e.Record != nil {
				builder.Add(compliance.Record{Index: e.Record.Index, AuditRecord: e.Record.AuditRecord})
				state.Records++
				if at := e.Record.GetAt().AsTime(); at.After(state.Newest) {
					state.Newest = at
				}
			}
			if !yield(e, err) {
				return
			}
		}
	}
	result, err := trail.Verify(entries, opened.keys)
	if err == nil {
		_, err = opened.verify(nil) // live: that each record is of a message that is there, and none lacks its own
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, context.Canceled):
		return state, err // nothing to report from
	case err != nil:
		state.Fault = err.Error()
	case result.Newest == nil && state.Records > 0:
		state.Fault = "nothing is signed: is the auditor running?"
	}
	if newest := result.Newest; newest != nil {
		state.Origin, state.Size, state.Root = newest.Origin, newest.Size, newest.Root.String()
		signed, err := note.Open([]byte(newest.Note), opened.keys)
		if err != nil {
			return state, err
		}
		state.Key = fmt.Sprintf("%s+%08x", signed.Sigs[0].Name, signed.Sigs[0].Hash)
	}
	return state, nil
}

// askedAtOnce is how many questions are under way: each opens sessions on every
// node of a credential.
const askedAtOnce = 8

// lookNow asks the verifier about each credential.
func lookNow(ctx context.Context, c *client.Client, inv *inventory.Inventory, zone *time.Location) *compliance.Now {
	names := slices.Sorted(maps.Keys(inv.Credentials))
	answers := make([]*compliance.Now, len(names))
	var all errgroup.Group
	all.SetLimit(askedAtOnce)
	for i, name := range names {
		all.Go(func() error {
			answers[i] = lookAt(ctx, c, name)
			return nil
		})
	}
	_ = all.Wait() // none fails: who does not answer is in the report
	now := &compliance.Now{At: time.Now().In(zone).Truncate(time.Second)}
	seen := map[string]bool{} // a server's settings are the same for each of its credentials
	for i, a := range answers {
		now.Members, now.Silent = append(now.Members, a.Members...), append(now.Silent, a.Silent...)
		for _, s := range a.Settings {
			if at := inv.Credentials[names[i]].Cluster.Name + "/" + s.Node; !seen[at] {
				seen[at] = true
				now.Settings = append(now.Settings, s)
			}
		}
	}
	return now
}

func lookAt(ctx context.Context, c *client.Client, credential string) *compliance.Now {
	var now compliance.Now
	checks, err := service.Ask(ctx, c.Bus, bus.CheckSubject(saga.Verifier, credential))
	if errors.Is(err, nats.ErrNoResponders) {
		err = errors.New("the verifier is not running")
	}
	if err != nil {
		now.Silent = append(now.Silent, compliance.Finding{Credential: credential, Text: err.Error()})
	}
	answered := map[string]bool{}
	refused := map[string]string{}
	for _, check := range checks {
		found := compliance.Finding{Credential: credential, Node: check.GetTarget(), Text: check.GetFinding()}
		switch {
		case check.GetTopic() == service.TopicSettings:
			now.Settings = append(now.Settings, found)
			answered[found.Node] = true
		case check.GetTopic() == service.TopicMembers:
			now.Members = append(now.Members, found)
		case check.GetRefused():
			refused[found.Node] = found.Text
		}
	}
	for _, node := range slices.Sorted(maps.Keys(refused)) {
		if !answered[node] {
			now.Silent = append(now.Silent, compliance.Finding{Credential: credential, Node: node, Text: refused[node]})
		}
	}
	return &now
}

// writeDocument prints what another program may read.
func writeDocument(cmd *cobra.Command, text []byte) (int, error) {
	if edge, is := cmd.OutOrStdout().(*terminal.Writer); is {
		return edge.Document(text)
	}
	return cmd.OutOrStdout().Write(text)
}

// write makes the whole report before it touches the file.
func (o reportOptions) write(cmd *cobra.Command, r *compliance.Report) error {
	var text bytes.Buffer
	write := func(w io.Writer) error { return reportFormats[o.format](r, w) }
	if wantsJSON(cmd) {
		write = func(w io.Writer) error { return render.JSON(w, r) }
	}
	if err := write(&text); err != nil {
		return err
	}
	if o.out == "" {
		_, err := writeDocument(cmd, text.Bytes())
		return err
	}
	if err := os.WriteFile(o.out, text.Bytes(), 0o600); err != nil {
		return exit{exitUsage, err}
	}
	say(cmd, "%s: %s bytes", o.out, strconv.Itoa(text.Len()))
	return nil
}

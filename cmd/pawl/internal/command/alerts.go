package command

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/words"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func newAlerts() *cobra.Command {
	var since time.Duration
	c := &cobra.Command{
		Use: "alerts [CREDENTIAL]", Short: "What was decided about alerts, newest first", Args: cobra.MaximumNArgs(1),
		Long: "What was decided about alerts, newest first: which fired and began an emergency, and which guard held the others back.\n\n" +
			"For CREDENTIAL, or for all; with _ those that no rule in pawl.yaml maps to a credential.",
		RunE: func(cmd *cobra.Command, args []string) error {
			only := "*"
			if len(args) > 0 {
				only = args[0]
				if err := checkToken("credential", only); err != nil && only != bus.Unmapped {
					return err
				}
			}
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			alarms, err := conn.Alarms(cmd.Context(), only, time.Now().Add(-since))
			if err != nil {
				return err
			}
			if len(alarms) == 0 {
				if only != "*" && only != bus.Unmapped { // one that was taken out of the configuration still has its alerts
					if _, err := chosen(inv, args); err != nil {
						return err
					}
				}
				say(cmd, "no alert was decided upon within %v; pawl.yaml has %d rules", words.Duration(since), len(inv.Alerts.Rules))
			}
			all := make([]render.Alarm, 0, len(alarms))
			for _, a := range slices.Backward(alarms) {
				all = append(all, render.NewAlarm(a))
			}
			if err := countTold(cmd.Context(), inv, conn, all, time.Now().Add(-since)); err != nil {
				return err
			}
			return output(cmd, all, func(w io.Writer, s render.Style) error { return render.AlarmTable(w, all, s) })
		},
	}
	c.Flags().DurationVar(&since, "since", 7*24*time.Hour, "begin with what was decided this long ago; decisions are kept for 90 days")
	return c
}

// countTold counts of each decision how often the bus has its alert.
func countTold(ctx context.Context, inv *inventory.Inventory, conn *client.Client, all []render.Alarm, since time.Time) error {
	if len(all) == 0 {
		return nil
	}
	alerts, err := conn.Alerts(ctx, since)
	if err != nil {
		return err
	}
	decisions := map[string][]*render.Alarm{} // one for each credential that rules gave the episode to
	for i, a := range all {
		episode := bus.Episode(inv, a.Source, &pawlv1.Alert{Fingerprint: a.Fingerprint, StartsAt: timestamppb.New(a.StartsAt)})
		decisions[episode] = append(decisions[episode], &all[i])
	}
	for _, a := range alerts {
		credential := ""
		if rule := inv.Alerts.RuleFor(a.Source, a.Alert.GetLabels()); rule != nil {
			credential = rule.Credential.Name
		}
		of := decisions[bus.Episode(inv, a.Source, a.Alert)]
		for _, decided := range of {
			if (len(of) == 1 || decided.Credential == credential) && !a.Alert.GetResolved() {
				decided.Told, decided.LastTold = decided.Told+1, a.At
			}
		}
	}
	return nil
}

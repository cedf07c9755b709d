package command

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/chronicle"
)

func newTrace() *cobra.Command {
	return &cobra.Command{
		Use: "trace ROTATION", Short: "A rotation as a waterfall, read from the log alone",
		Long: "Shows a rotation as a waterfall, read from the log alone; where several credentials turned together, one for each. With --json, a list then.", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkToken("rotation", args[0]); err != nil {
				return err
			}
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			logs, err := conn.FindRotation(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(logs) == 0 {
				return fmt.Errorf("there is no rotation %s: `pawl history CREDENTIAL` lists them", args[0])
			}
			notes, err := conn.Notes(cmd.Context(), logs[0].Records[0].At)
			if err != nil {
				return err
			}
			var all []chronicle.Timeline
			for _, log := range logs {
				t, err := chronicle.NewTimeline(log, notes, inv.Telemetry.Jaeger, time.Now())
				if err != nil {
					return err
				}
				all = append(all, t)
			}
			if len(all) == 1 {
				return output(cmd, all[0], func(w io.Writer, s render.Style) error { return render.Waterfall(w, all[0], s) })
			}
			return output(cmd, all, func(w io.Writer, s render.Style) error { return render.Waterfalls(w, all, s) })
		},
	}
}

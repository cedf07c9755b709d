package command

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/render"
)

func newTrace() *cobra.Command {
	return &cobra.Command{
		Use: "trace ROTATION", Short: "A rotation as a waterfall, read from the log alone", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkToken("rotation", args[0]); err != nil {
				return err
			}
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			log, err := conn.Rotation(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if log == nil {
				return fmt.Errorf("there is no rotation %s: `pawl history CREDENTIAL` lists them", args[0])
			}
			notes, err := conn.Notes(cmd.Context(), log.Records[0].At)
			if err != nil {
				return err
			}
			t, err := render.NewTimeline(*log, notes, inv.Telemetry.Jaeger, time.Now())
			if err != nil {
				return err
			}
			return output(cmd, t, func(w io.Writer, s render.Style) error { return render.Waterfall(w, t, s) })
		},
	}
}

package command

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/schedule"
)

func newSchedule() *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use: "schedule [CREDENTIAL]", Short: "Show upcoming rotations, scheduled or requested, and what is overdue or blocked", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if days < 1 || days > 3660 {
				return usage("--days must be from 1 to 3660")
			}
			inv, conn, err := connect(cmd)
			if err != nil {
				return err
			}
			defer conn.NATS.Close()
			tellEdited(cmd, inv, conn)
			only, err := chosen(inv, args)
			if err != nil {
				return err
			}
			past, err := pastOf(cmd.Context(), conn, inv)
			if err != nil {
				return err
			}
			now := time.Now()
			dues := schedule.Forecast(inv, past, now, now.AddDate(0, 0, days))
			if len(args) > 0 {
				dues = slices.DeleteFunc(dues, func(d schedule.Due) bool { return !slices.Contains(d.Members(), only[0].Name) })
			}
			waiting, err := conn.AllWaiting(cmd.Context())
			if err != nil {
				return err
			}
			all := render.NewSchedule(dues, now)
			for _, c := range only {
				all = render.AddWaiting(all, c.Name, chronicle.NewWaiting(waiting[c.Name]))
			}
			if len(all) == 0 {
				say(cmd, "nothing is due within %d days", days)
			}
			return output(cmd, all, func(w io.Writer, s render.Style) error { return render.ScheduleTable(w, all, s) })
		},
	}
	cmd.Flags().IntVar(&days, "days", 90, "how far to look ahead")
	return cmd
}

// pastOf reads what the log tells of every credential: the date of one may depend
// on others.
func pastOf(ctx context.Context, c *client.Client, inv *inventory.Inventory) (map[string]schedule.Turned, error) {
	var mu sync.Mutex
	past := map[string]schedule.Turned{}
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(8)
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		all.Go(func() error {
			t, _, adopted, err := schedule.Past(ctx, c, name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if adopted {
				mu.Lock()
				defer mu.Unlock()
				past[name] = t
			}
			return nil
		})
	}
	return past, all.Wait()
}

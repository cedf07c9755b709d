package command

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/cmd/pawl/natsconf"
	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/telemetry"
)

func newNATSConfig() *cobra.Command {
	var o natsconf.Options
	var names []string
	var listen, monitor string
	c := &cobra.Command{
		Use: "nats-config", Short: "Write what a NATS of your own needs: configuration, users, certificates; keys are never overwritten", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			if o.Nodes, err = natsconf.ParseNodes(names); err != nil {
				return usage("--nodes: %v", err)
			}
			for i := range o.Nodes {
				o.Nodes[i].Listen, o.Nodes[i].Monitor = listen, monitor
			}
			for flag, address := range map[string]string{"listen": listen, "monitor": monitor} {
				if _, _, err := net.SplitHostPort(address); address != "" && err != nil {
					return usage("--%s: %v: write host:port, such as 127.0.0.1:4222", flag, err)
				}
			}
			for _, path := range []string{o.At, o.Store} {
				if path != "" && !filepath.IsAbs(path) {
					return usage("%q: the server's folders are named whole, from / on", path)
				}
			}
			return listWritten(cmd)(natsconf.Write(inv, o))
		},
	}
	c.Flags().StringVar(&o.Out, "out", "", "the `DIR` to write to; each node has a folder in it")
	c.Flags().StringSliceVar(&names, "nodes", []string{"nats"}, "the `HOSTS` of the servers, with commas between")
	c.Flags().StringVar(&o.At, "at", "", "the `DIR` where each server finds its folder, such as a mount; default: where it is written")
	c.Flags().StringVar(&o.Store, "store", "", "the `DIR` where each server stores; default: data in its folder")
	c.Flags().StringVar(&listen, "listen", "", "the `ADDRESS` for clients; default 0.0.0.0:4222")
	c.Flags().StringVar(&monitor, "monitor", "", "the `ADDRESS` that answers health checks, to anybody; default 127.0.0.1:8222")
	c.Flags().StringVar(&o.CAKey, "ca-key", "", "the `FILE` of the authority's private key; default: ca/ca.key in keys_dir")
	_ = c.MarkFlagRequired("out") // it is defined above
	return c
}

// listWritten returns what prints the files that were written, also where an error
// came after some of them.
func listWritten(cmd *cobra.Command) func(written []string, err error) error {
	return func(written []string, err error) error {
		printed := output(cmd, append([]string{}, written...), func(w io.Writer, _ render.Style) error {
			for _, path := range written {
				fmt.Fprintln(w, path)
			}
			return nil
		})
		if err == nil && len(written) == 0 {
			say(cmd, "all was as it should be")
		}
		return cmp.Or(err, printed)
	}
}

func newProvision() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use: "provision", Short: "Make the streams and consumers that are missing on a NATS of your own", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			if inv.NATS.URL == "" {
				return usage("%s names no nats.url: `pawl up` provisions the server that it embeds", inv.File)
			}
			return provision.Server(cmd.Context(), provision.Options{Inventory: inv, Wait: wait, Log: telemetry.NewLogger(cmd.ErrOrStderr(), "provision", slog.LevelWarn)})
		},
	}
	c.Flags().DurationVar(&wait, "wait", provision.DefaultWait, "how long the server may take to be there")
	return c
}

package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/loginwatch"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/telemetry"
)

func newWatchLogins() *cobra.Command {
	var cluster, node, dir, metrics string
	var fromStart bool
	watch := &cobra.Command{
		Use: "watch-logins --cluster C --node N", Short: "Follow a PostgreSQL's log, and publish an alert where logins fail", Args: cobra.NoArgs,
		Long: "Runs beside a PostgreSQL until it is stopped, follows its jsonlog or csvlog, and publishes an alert where logins of its credentials fail as watch_logins in pawl.yaml says. Keeps its position in data_dir. Needs DATA_DIR/clients/alert-logins.nk and no other key.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			n, err := nodeOf(inv, cluster, node)
			if err != nil {
				return err
			}
			if metrics != "" {
				if _, _, err := net.SplitHostPort(metrics); err != nil {
					return usage("--metrics %q must be host:port, such as 127.0.0.1:9465", metrics)
				}
			}
			source, err := bus.For(inv, bus.SourceUser(inventory.LoginWatch))
			if err != nil {
				return exit{exitUsage, err}
			}
			if dir == "" {
				if dir, err = logDirectory(cmd.Context(), inv.Clusters[cluster], n); err != nil {
					return err
				}
			}
			if _, err := os.ReadDir(dir); err != nil {
				return usage("--log-dir: %v: name the server's log_directory, and let this user read it (log_file_mode = 0640, and its group)", err)
			}
			return watchLogins(cmd, source, metrics, loginwatch.Options{Inventory: inv, Cluster: cluster, Node: node, LogDir: dir, FromStart: fromStart})
		},
	}
	watch.Flags().StringVar(&cluster, "cluster", "", "the `CLUSTER` of pawl.yaml")
	watch.Flags().StringVar(&node, "node", "", "the `NODE` of it whose log this is")
	watch.Flags().StringVar(&dir, "log-dir", "", "the server's log `DIRECTORY`; default: the server is asked, as the cluster's observer")
	watch.Flags().StringVar(&metrics, "metrics", "", "answer /metrics, /healthz and /readyz on this `ADDRESS`")
	watch.Flags().BoolVar(&fromStart, "from-start", false, "the first time, begin with the oldest log file instead of now")
	return watch
}

func nodeOf(inv *inventory.Inventory, cluster, node string) (inventory.Node, error) {
	c, ok := inv.Clusters[cluster]
	if !ok {
		return inventory.Node{}, usage("--cluster %q: %s has %s", cluster, inv.File, strings.Join(slices.Sorted(maps.Keys(inv.Clusters)), ", "))
	}
	n, ok := c.Nodes[node]
	if !ok {
		return n, usage("--node %q: cluster %s has %s", node, cluster, strings.Join(slices.Sorted(maps.Keys(c.Nodes)), ", "))
	}
	return n, nil
}

// logDirectory asks the server, which tells members of pg_monitor.
func logDirectory(ctx context.Context, c *inventory.Cluster, n inventory.Node) (string, error) {
	target := postgres.CredentialTarget(n, c.Observer)
	login, err := c.Observer.Login()
	if err != nil {
		return "", fmt.Errorf("ask node %s for its log_directory: %w: or name it with --log-dir", n.Name, err)
	}
	target.User, target.Password, target.Database, target.Own = login.User, login.Password, c.Observer.Database, true
	conn, err := postgres.Login(ctx, target)
	if err != nil {
		return "", fmt.Errorf("ask node %s for its log_directory: %w: or name it with --log-dir", n.Name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var collector, destination, data, dir string
	if err := conn.QueryRow(ctx, `SELECT current_setting('logging_collector'), current_setting('log_destination'), current_setting('data_directory'), current_setting('log_directory')`).Scan(&collector, &destination, &data, &dir); err != nil {
		return "", fmt.Errorf("ask node %s for its log_directory: %w: grant pg_monitor to %s, or name it with --log-dir", n.Name, err, login.User)
	}
	if collector != "on" || !strings.Contains(destination, "jsonlog") && !strings.Contains(destination, "csvlog") {
		return "", fmt.Errorf("node %s logs to %s, with logging_collector %s: set logging_collector = on and log_destination = jsonlog (before PostgreSQL 15: csvlog)", n.Name, destination, collector)
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(data, dir)
	}
	return dir, nil
}

func watchLogins(cmd *cobra.Command, source bus.ConnectOptions, address string, o loginwatch.Options) error {
	var err error
	o.Log = telemetry.NewLogger(cmd.ErrOrStderr(), "watch-logins", slog.LevelInfo).With("cluster", o.Cluster, "node", o.Node)
	if o.Metrics, err = telemetry.NewMetrics(); err != nil {
		return err
	}
	source.Wait, source.Log = true, o.Log
	if o.Bus, err = bus.Connect(source); err != nil {
		return err
	}
	defer o.Bus.NATS.Close()
	w, err := loginwatch.New(o)
	if err != nil {
		return err
	}
	if address != "" {
		if err := o.Metrics.Serve(cmd.Context(), address, w.Ready); err != nil {
			return fmt.Errorf("--metrics: %w", err)
		}
	}
	o.Log.Info("watching", "directory", o.LogDir)
	if err := w.Run(cmd.Context()); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Command natsd runs the embedded NATS server alone, for tests that run the
// services as processes of their own.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/telemetry"
)

func main() {
	config := flag.String("c", "pawl.yaml", "configuration file")
	ackWait := flag.Duration("ack-wait", bus.DefaultAckWait, "after which a dead service's work is given to another")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	inv, err := inventory.Load(*config)
	if err == nil {
		var server *embedded.Server
		if server, err = embedded.Start(ctx, embedded.Options{Inventory: inv, Log: telemetry.NewLogger(os.Stderr, "nats", slog.LevelWarn), AckWait: *ackWait}); err == nil {
			<-ctx.Done()
			server.Stop()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

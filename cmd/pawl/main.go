// Pawl rotates PostgreSQL credentials by a saga over NATS JetStream.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"pawl.dev/cmd/pawl/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once
	os.Exit(command.Run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

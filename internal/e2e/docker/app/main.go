// Command app is an application in a container: it reads a DSN from its secret
// file, holds a session, and logs in anew all the while. Where it cannot log in
// at its start it ends, as applications do.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Println(err) // pgx names the user and the reason, never the password
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	dsn, err := os.ReadFile("/run/secrets/dsn")
	if err != nil {
		return err
	}
	config, err := pgx.ParseConfig(string(dsn))
	if err != nil {
		return fmt.Errorf("the secret is no DSN") // the parser's error could quote it
	}
	if suffix := os.Getenv("CRASH_AS"); suffix != "" && strings.HasSuffix(config.User, suffix) {
		os.Exit(3)
	}
	config.RuntimeParams["application_name"] = os.Getenv("APP")
	session, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer session.Close(context.Background())
	again := config.Copy()
	again.RuntimeParams["application_name"] = os.Getenv("APP") + "-again"
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// The server's log tells who was refused.
		if conn, err := pgx.ConnectConfig(ctx, again); err == nil {
			_ = conn.Close(ctx)
		}
		if err := session.Ping(ctx); err != nil && ctx.Err() == nil {
			return err // an emergency ended it: Docker starts the task again
		}
	}
}

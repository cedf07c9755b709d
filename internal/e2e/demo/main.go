// Command demo shows Pawl at work, as a user would see it: a throwaway
// PostgreSQL, `pawl up`, three applications that log in all the time, and three
// rotations, each requested by an empty message as a stock NATS client sends
// it. It ends 0 if each went as promised, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// The kernel ends a child when the thread that started it ends: the main
// goroutine, which starts them all, stays on the main thread.
func init() { runtime.LockOSThread() }

func main() {
	binaries := flag.String("bin", "bin", "directory of pawl and demoapp")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binaries); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binaries string) (err error) {
	began := time.Now()
	s, err := newStage(binaries)
	if err != nil {
		return err
	}
	defer func() {
		switch {
		case ctx.Err() != nil:
			err = errors.New("interrupted")
		case err != nil:
			s.showLogs()
		}
		err = errors.Join(err, s.close())
		if err == nil {
			say("\n%s\n", paint(green, fmt.Sprintf("All three as promised, in %.0f s. Nothing is left running.", time.Since(began).Seconds())))
		}
	}()
	if err := s.setUp(ctx); err != nil {
		return err
	}
	for i, a := range acts {
		if err := s.perform(ctx, i+1, a); err != nil {
			return fmt.Errorf("%s: %w", a.Credential, err)
		}
	}
	return nil
}

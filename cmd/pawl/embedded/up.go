package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	auditor "pawl.dev/services/auditor/app"
	dbrotator "pawl.dev/services/db-rotator/app"
	restarter "pawl.dev/services/restarter/app"
	scheduler "pawl.dev/services/scheduler/app"
	publisher "pawl.dev/services/secret-publisher/app"
	verifier "pawl.dev/services/verifier/app"
)

// newByName makes each of the six services.
var newByName = map[string]service.New{
	saga.Scheduler: scheduler.New, saga.DBRotator: dbrotator.New, saga.SecretPublisher: publisher.New,
	saga.Restarter: restarter.New, saga.Verifier: verifier.New, saga.Auditor: auditor.New,
}

// UpOptions of Up.
type UpOptions struct {
	Inventory *inventory.Inventory
	Log       io.Writer // JSON lines
	Level     slog.Level
	AckWait   time.Duration // default: bus.DefaultAckWait
	Ready     func()        // called once all services are bound
}

// Up runs all six services until ctx ends, on an embedded server where the
// inventory names no other.
func Up(ctx context.Context, o UpOptions) error {
	inv := o.Inventory
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		return err
	}
	lines := slog.New(telemetry.NewHandler(o.Log, o.Level))
	log := func(name string) *slog.Logger { return lines.With("service", name) }
	for _, w := range inv.Warnings {
		log("pawl").Warn(w)
	}
	var here nats.InProcessConnProvider
	if inv.NATS.URL == "" {
		server, err := Start(ctx, Options{Inventory: inv, Log: log("nats"), AckWait: o.AckWait})
		if err != nil {
			return err
		}
		defer server.Stop()
		here = server.NATS
	} else if err := provision.Server(ctx, provision.Options{Inventory: inv, Log: log("nats"), AckWait: o.AckWait}); err != nil {
		return err
	}
	var bound atomic.Int32
	all, ctx := errgroup.WithContext(ctx)
	if inv.Telemetry.Metrics != "" {
		if err := metrics.Serve(ctx, inv.Telemetry.Metrics, func() error {
			if int(bound.Load()) < len(saga.Services) {
				return errors.New("starting")
			}
			return nil
		}); err != nil {
			return err
		}
	}
	for _, name := range saga.Services {
		all.Go(func() error {
			err := service.Run(ctx, service.Options{Name: name, New: newByName[name], Inventory: inv, Log: log(name), Metrics: metrics,
				Server: here, Ready: func() {
					if int(bound.Add(1)) == len(saga.Services) && o.Ready != nil {
						o.Ready()
					}
				}})
			if err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	return all.Wait()
}

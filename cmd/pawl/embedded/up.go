package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"pawl.dev/cmd/pawl/backup"
	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/condition"
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
	// What is wrong with the process itself (its store, its backups), and with each service.
	conditions, byService := &condition.Set{}, map[string]*condition.Set{}
	if err := conditions.Observe(metrics.Meter(), "pawl"); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	var here nats.InProcessConnProvider
	var ofBus *clock.Clock // nil: another machine's, or may be
	var lost <-chan error  // the store, while Pawl runs
	if inv.NATS.URL == "" {
		begun := isNew(inv)
		server, err := Start(ctx, Options{Inventory: inv, Log: log("nats"), AckWait: o.AckWait, Conditions: conditions, Meter: metrics.Meter()})
		if err != nil {
			return err
		}
		defer server.Stop()
		here, ofBus, lost = server, clock.New(), server.Lost()
		go ofBus.Follow(ctx)
		if begun {
			if text := tellNew(inv, conditions); text != "" {
				log("pawl").Warn(text)
			}
		}
	} else if err := provision.Server(ctx, provision.Options{Inventory: inv, Log: log("nats"), AckWait: o.AckWait}); err != nil {
		return err
	}
	for _, name := range saga.Services {
		byService[name] = &condition.Set{}
	}
	backups, err := backup.NewSchedule(inv, log("backup"), conditions, here, metrics.Meter())
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	var ready readiness
	all, ctx := errgroup.WithContext(ctx)
	go returnMemory(ctx)
	all.Go(func() error {
		select {
		case err := <-lost:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	if inv.Telemetry.Metrics != "" {
		if err := metrics.Serve(ctx, inv.Telemetry.Metrics, func() error { return errors.Join(ready.err(), conditions.Err()) }); err != nil {
			return err
		}
	}
	for _, name := range saga.Services {
		options := service.Options{Name: name, New: newByName[name], Inventory: inv, Log: log(name), Metrics: metrics,
			Server: here, Clock: ofBus, Conditions: byService[name], Process: conditions,
			Ready: func(of func() error) {
				if ready.add(name, of) == len(saga.Services) && o.Ready != nil {
					o.Ready()
				}
			}}
		all.Go(func() error {
			if err := service.Run(ctx, options); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	all.Go(func() error { return backups.Run(ctx) })
	return all.Wait()
}

// readiness is that of the services that are bound to their consumers.
type readiness struct {
	mu        sync.Mutex
	byService map[string]func() error
}

func (r *readiness) add(name string, of func() error) (bound int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byService == nil {
		r.byService = map[string]func() error{}
	}
	r.byService[name] = of
	return len(r.byService)
}

func (r *readiness) err() (all error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range saga.Services {
		of, bound := r.byService[name]
		if !bound {
			all = errors.Join(all, fmt.Errorf("%s: starting", name))
		} else if err := of(); err != nil {
			for line := range strings.Lines(err.Error()) {
				all = errors.Join(all, errors.New(name+": "+strings.TrimSpace(line)))
			}
		}
	}
	return all
}

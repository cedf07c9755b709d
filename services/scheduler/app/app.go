// Package app wires the scheduler.
package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/scheduler/internal/admission"
	"pawl.dev/services/scheduler/internal/agenda"
	"pawl.dev/services/scheduler/internal/alarm"
	"pawl.dev/services/scheduler/internal/fill"
	"pawl.dev/services/scheduler/internal/timekeeper"
	"pawl.dev/services/scheduler/internal/webhook"
)

// New makes the service.
func New(d service.Dependencies) (*service.Service, error) {
	clerk := admission.New(d)
	desk, err := alarm.New(d, clerk.Contain)
	if err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	hooks, err := webhook.New(d)
	if err != nil {
		return nil, err
	}
	streams, err := fill.New(d)
	if err != nil {
		return nil, err
	}
	due := agenda.New(d, clerk)
	clock := timekeeper.New(d, due)
	end := func(_ context.Context, r *service.Rotation) (*pawlv1.Event, error) {
		began, ok := r.State.Has(saga.Requested)
		if !ok {
			return nil, errors.New("no requested event")
		}
		took := d.Clock.Since(began.At)
		d.Metrics.RotationEnded(r.State.Flow.Name, string(r.Step.Emits), took)
		return &pawlv1.Event{Summary: fmt.Sprintf("%s after %v", r.Step.Emits, took.Round(time.Millisecond))}, nil
	}
	return &service.Service{
		Name:  saga.Scheduler,
		Steps: map[string]service.Handler{"complete": end, "roll back": end},
		Run: func(ctx context.Context) error {
			all, ctx := errgroup.WithContext(ctx)
			all.Go(func() error { return clerk.Run(ctx) })
			all.Go(func() error { return desk.Run(ctx) })
			all.Go(func() error { hooks.Run(ctx); return nil })
			all.Go(func() error { return due.Run(ctx, d) })
			all.Go(func() error { return clock.Run(ctx) })
			all.Go(func() error { streams.Run(ctx); return nil })
			return all.Wait()
		},
	}, nil
}

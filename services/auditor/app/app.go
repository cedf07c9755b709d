// Package app wires the auditor.
package app

import (
	"context"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/auditor/internal/dashboard"
	"pawl.dev/services/auditor/internal/notary"
	"pawl.dev/services/auditor/internal/trail"
)

// New makes the service.
func New(d service.Dependencies) (*service.Service, error) {
	signs, err := notary.New(d)
	if err != nil {
		return nil, err
	}
	shows, err := dashboard.New(d)
	if err != nil {
		return nil, err
	}
	records := trail.New(d)
	return &service.Service{Name: saga.Auditor, Run: func(ctx context.Context) error {
		all, ctx := errgroup.WithContext(ctx)
		all.Go(func() error { return records.Run(ctx) })
		all.Go(func() error { return signs.Run(ctx) })
		if shows != nil {
			all.Go(func() error { return shows.Run(ctx) })
		}
		return all.Wait()
	}}, nil
}

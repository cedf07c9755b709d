package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
)

const (
	rotatedInMemory = 50              // how many credentials are adopted and rotated once
	idle            = 3 * time.Second // after which the process counts as idle
)

// memory is that of `pawl up` with many credentials.
type memory struct {
	Credentials         int
	FirstStart, Restart time.Duration // until it is up: on an empty store, on the one it left
	Started, Rotated    resident
	Restarted           resident
}

func measureMemory(ctx context.Context, b program, server *pgserver.Server, dir string, credentials int) (m *memory, err error) {
	progress("memory: setting up %d credentials", credentials)
	var all []site.Credential
	for i := range credentials {
		all = append(all, site.Credential{Name: fmt.Sprintf("many-%04d", i+1), Strategy: "alternating"})
	}
	s, err := newSite(ctx, dir, server, all)
	if err != nil {
		return nil, err
	}
	m = &memory{Credentials: credentials}
	p, err := b.start(ctx, s.File)
	if err != nil {
		return nil, err
	}
	m.FirstStart = p.took
	if err := errors.Join(m.exercise(ctx, s, p), p.stop()); err != nil {
		return nil, err
	}
	progress("memory: starting again")
	if p, err = b.start(ctx, s.File); err != nil {
		return nil, err
	}
	m.Restart = p.took
	m.Restarted, err = p.whenIdle(ctx)
	return m, errors.Join(err, p.stop())
}

func (m *memory) exercise(ctx context.Context, s *site.Site, p *process) (err error) {
	if m.Started, err = p.whenIdle(ctx); err != nil {
		return err
	}
	q, err := newRequester(ctx, s)
	if err != nil {
		return err
	}
	defer q.NATS.Close()
	var credentials []string
	for i := range rotatedInMemory {
		credentials = append(credentials, fmt.Sprintf("many-%04d", i+1))
	}
	progress("memory: adopting and rotating %d of them", rotatedInMemory)
	if err := each(ctx, credentials, 8, q.adopt); err != nil {
		return err
	}
	if err := each(ctx, credentials, 8, func(ctx context.Context, credential string) error {
		_, err := q.rotate(ctx, credential)
		return err
	}); err != nil {
		return err
	}
	m.Rotated, err = p.whenIdle(ctx)
	return err
}

// whenIdle reads the process's memory after a while.
func (p *process) whenIdle(ctx context.Context) (resident, error) { return p.after(ctx, idle) }

func (p *process) after(ctx context.Context, rest time.Duration) (resident, error) {
	select {
	case <-ctx.Done():
		return resident{}, ctx.Err()
	case <-time.After(rest):
		return p.resident()
	}
}

func newSite(ctx context.Context, dir string, server *pgserver.Server, credentials []site.Credential) (*site.Site, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return site.New(ctx, dir, server, "", credentials)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// floor is the least that a rotation can be: for each worker a role, an admin's
// session that is open, and two ready verifiers to take turns with.
type floor struct {
	server  *pgserver.Server
	workers []*floorWorker
}

type floorWorker struct {
	role      string
	admin     *pgx.Conn
	passwords [2]secret.String
	verifiers [2]secret.String
	turn      int
}

func newFloor(ctx context.Context, server *pgserver.Server, role string, workers int) (*floor, error) {
	f := &floor{server: server}
	for i := range workers {
		w := &floorWorker{role: fmt.Sprintf("%s_%d", role, i+1)}
		f.workers = append(f.workers, w)
		if err := w.prepare(ctx, server); err != nil {
			return nil, errors.Join(err, f.close())
		}
	}
	return f, nil
}

func (w *floorWorker) prepare(ctx context.Context, server *pgserver.Server) (err error) {
	for i := range w.passwords {
		if w.passwords[i], err = secret.Generate(secret.DefaultLength); err != nil {
			return err
		}
		if w.verifiers[i], err = postgres.Verifier(w.passwords[i]); err != nil {
			return err
		}
	}
	if w.admin, err = logIn(ctx, server, server.Superuser, server.Password); err != nil {
		return err
	}
	_, err = w.admin.Exec(ctx, "CREATE ROLE "+w.role+" LOGIN")
	return err
}

// once is one ALTER, committed, and one login.
func (f *floor) once(ctx context.Context, worker int) (time.Duration, error) {
	w := f.workers[worker]
	w.turn = 1 - w.turn
	began := time.Now()
	if _, err := w.admin.Exec(ctx, "ALTER ROLE "+w.role+" PASSWORD '"+w.verifiers[w.turn].Reveal()+"'"); err != nil {
		return 0, fmt.Errorf("floor: ALTER ROLE %s: %w", w.role, err)
	}
	conn, err := logIn(ctx, f.server, w.role, w.passwords[w.turn])
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	return took, conn.Close(ctx)
}

func (f *floor) close() error {
	var errs []error
	for _, w := range f.workers {
		if w.admin != nil {
			errs = append(errs, w.admin.Close(context.Background()))
		}
	}
	return errors.Join(errs...)
}

// floors are the same on several servers, at once.
type floors []*floor

func newFloors(ctx context.Context, servers []*pgserver.Server, role string) (all floors, err error) {
	for _, server := range servers {
		f, err := newFloor(ctx, server, role, 1)
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		all = append(all, f)
	}
	return all, nil
}

// once takes as long as the slowest.
func (all floors) once(ctx context.Context, worker int) (time.Duration, error) {
	began := time.Now()
	var servers errgroup.Group
	for _, f := range all {
		servers.Go(func() error { _, err := f.once(ctx, worker); return err })
	}
	err := servers.Wait()
	return time.Since(began), err
}

func (all floors) close() (err error) {
	for _, f := range all {
		err = errors.Join(err, f.close())
	}
	return err
}

func logIn(ctx context.Context, server *pgserver.Server, user string, password secret.String) (*pgx.Conn, error) {
	return postgres.Login(ctx, postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres",
		User: user, Password: password, SSLMode: "disable", ApplicationName: "floor"})
}

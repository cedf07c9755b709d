package main

import (
	"context"
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
type floor []*floorWorker

type floorWorker struct {
	server    *pgserver.Server
	role      string
	admin     *pgx.Conn
	passwords [2]secret.String
	verifiers [2]secret.String
	turn      int
}

// newFloor has a worker on each of the servers.
func (p *part) newFloor(role string, servers ...*pgserver.Server) (f floor) {
	for i, server := range servers {
		w := &floorWorker{server: server, role: fmt.Sprintf("%s_%d", role, i+1), admin: must(logIn(p, server, server.Superuser, server.Password, "floor"))}
		p.later(func() error { return w.admin.Close(context.Background()) })
		for i := range w.passwords {
			w.passwords[i] = must(secret.Generate(secret.DefaultLength))
			w.verifiers[i] = must(postgres.Verifier(w.passwords[i]))
		}
		must(w.admin.Exec(p, "CREATE ROLE "+w.role+" LOGIN"))
		f = append(f, w)
	}
	return f
}

// once is one ALTER, committed, and one login.
func (f floor) once(ctx context.Context, worker int) (time.Duration, error) {
	w := f[worker]
	w.turn = 1 - w.turn
	began := time.Now()
	if _, err := w.admin.Exec(ctx, "ALTER ROLE "+w.role+" PASSWORD '"+w.verifiers[w.turn].Reveal()+"'"); err != nil {
		return 0, fmt.Errorf("floor: ALTER ROLE %s: %w", w.role, err)
	}
	conn, err := logIn(ctx, w.server, w.role, w.passwords[w.turn], "floor")
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	return took, conn.Close(ctx)
}

// onAll is once by all workers, at once: it takes as long as the slowest.
func (f floor) onAll(ctx context.Context, _ int) (time.Duration, error) {
	began := time.Now()
	var servers errgroup.Group
	for i := range f {
		servers.Go(func() error { _, err := f.once(ctx, i); return err })
	}
	err := servers.Wait()
	return time.Since(began), err
}

func logIn(ctx context.Context, server *pgserver.Server, user string, password secret.String, as string) (*pgx.Conn, error) {
	return postgres.Login(ctx, postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres",
		User: user, Password: password, SSLMode: "disable", ApplicationName: as})
}

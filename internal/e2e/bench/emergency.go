package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	containedNodes   = 3
	liveSessions     = 100
	containments     = 30 // of each strategy, and of the bare SQL
	handshakeSeconds = "2"
)

// emergency is how soon a stolen credential is dead, and its application back.
type emergency struct{ Contained, Recovered, Bare map[string]cell }

func (r *report) measureEmergency(ctx context.Context, b program, dir string) (m *emergency, err error) {
	progress("emergency: starting %d servers", containedNodes)
	var servers []*pgserver.Server
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.Stop())
		}
	}()
	for range containedNodes {
		s, err := pgserver.Start(ctx, pgserver.Options{Settings: map[string]string{"max_connections": "200", "authentication_timeout": handshakeSeconds}})
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	m = &emergency{map[string]cell{}, map[string]cell{}, map[string]cell{}}
	var credentials []site.Credential
	for _, strategy := range strategies {
		credentials = append(credentials, site.Credential{Name: "stolen-" + strategy, Strategy: strategy})
	}
	p, q, err := startOn(ctx, b, nodesOf(servers), filepath.Join(dir, "site"), credentials)
	if err != nil {
		return nil, err
	}
	defer func() { q.NATS.Close(); r.warnings += p.warnings.Load(); err = errors.Join(err, p.stop()) }()
	for _, strategy := range strategies {
		for i := range containments {
			if err := m.once(ctx, q, servers, strategy); err != nil {
				return nil, fmt.Errorf("emergency %d, %s: %w", i+1, strategy, err)
			}
		}
		progress("emergency, %s: contained p50 %.0f ms, p99 %.0f ms; verified p50 %.0f ms; bare SQL p50 %.0f ms", strategy,
			m.sorted(m.Contained, strategy).quantile(.5), m.sorted(m.Contained, strategy).quantile(.99), m.sorted(m.Recovered, strategy).quantile(.5), m.sorted(m.Bare, strategy).quantile(.5))
	}
	return m, nil
}

func (m *emergency) sorted(of map[string]cell, strategy string) cell {
	one := of[strategy]
	one.sort()
	of[strategy] = one
	return one
}

// once measures the bare SQL, and then Pawl, each with as many sessions to end.
func (m *emergency) once(ctx context.Context, q *requester, servers []*pgserver.Server, strategy string) error {
	credential := "stolen-" + strategy
	login, err := q.site.Published(credential)
	if err != nil {
		return err
	}
	sessions, err := occupy(ctx, servers, login)
	if err != nil {
		return err
	}
	bare, err := bareContainment(ctx, servers, login.User)
	hangUp(sessions)
	if err != nil {
		return err
	}
	if sessions, err = occupy(ctx, servers, login); err != nil {
		return err
	}
	defer hangUp(sessions)
	done, err := q.do(ctx, credential, pawlv1.Action_ACTION_CONTAIN, saga.Completed)
	if err != nil {
		return err
	}
	for _, session := range sessions {
		if session.Ping(ctx) == nil {
			return errors.New("a session is alive after containment: the figure means nothing")
		}
	}
	add(m.Bare, strategy, bare)
	add(m.Contained, strategy, done.contained)
	add(m.Recovered, strategy, done.recovered)
	return nil
}

func add(to map[string]cell, strategy string, took time.Duration) {
	one := to[strategy]
	one.took = append(one.took, took)
	to[strategy] = one
}

// occupy opens the sessions, spread over the servers.
func occupy(ctx context.Context, servers []*pgserver.Server, login inventory.Login) ([]*pgx.Conn, error) {
	all := make([]*pgx.Conn, liveSessions)
	var opening errgroup.Group
	opening.SetLimit(8)
	for i := range all {
		server := servers[i%len(servers)]
		opening.Go(func() (err error) {
			all[i], err = postgres.Login(ctx, postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres",
				User: login.User, Password: login.Password, SSLMode: "disable", ApplicationName: "thief"})
			return err
		})
	}
	return all, opening.Wait()
}

func hangUp(sessions []*pgx.Conn) {
	for _, session := range sessions {
		if session != nil {
			_ = session.Close(context.Background()) // most are dead
		}
	}
}

// bareContainment is the least that there is to do, by admins who are logged in:
// NOLOGIN, then ending sessions until there are none; and LOGIN again, unmeasured.
func bareContainment(ctx context.Context, servers []*pgserver.Server, user string) (time.Duration, error) {
	admins := make([]*pgx.Conn, len(servers))
	defer hangUp(admins)
	for i, server := range servers {
		var err error
		if admins[i], err = logIn(ctx, server, server.Superuser, server.Password); err != nil {
			return 0, err
		}
	}
	name := pgx.Identifier{user}.Sanitize()
	began := time.Now()
	var all sync.WaitGroup
	errs := make([]error, len(admins))
	for i, admin := range admins {
		all.Go(func() {
			_, err := admin.Exec(ctx, "ALTER ROLE "+name+" NOLOGIN")
			for left := 1; err == nil && left > 0; {
				err = admin.QueryRow(ctx, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = $1", user).Scan(&left)
			}
			errs[i] = err
		})
	}
	all.Wait()
	took := time.Since(began)
	for _, admin := range admins {
		_, err := admin.Exec(ctx, "ALTER ROLE "+name+" LOGIN")
		errs = append(errs, err)
	}
	return took, errors.Join(errs...)
}

// Rows of its table.
func (m *emergency) Rows() (rows []string) {
	for _, strategy := range slices.Sorted(slices.Values(strategies)) {
		c, r, b := m.sorted(m.Contained, strategy), m.sorted(m.Recovered, strategy), m.sorted(m.Bare, strategy)
		rows = append(rows, fmt.Sprintf("| %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f |", strategy, b.quantile(.5), c.quantile(.5), c.quantile(.99), r.quantile(.5), r.quantile(.99), c.quantile(.5)/b.quantile(.5)))
	}
	return rows
}

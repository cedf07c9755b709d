package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	massNodes    = 4
	massSessions = 400              // of as many credentials, or of all, spread over the nodes
	massPatience = 10 * time.Minute // for all of them
	massAtOnce   = 8                // ordinary rotations
	massRest     = 45 * time.Second // after which memory is read: what a burst leaves is given back within that
)

// mass is how soon the credentials of a whole cluster are dead, and back.
type mass struct {
	Credentials     int
	Bare, BareAtOne time.Duration // a statement a transaction, and all of a node's in one
	Contained, Back []time.Duration
	Rested          resident
	Against         string
	Ordinary        time.Duration // that many ordinary rotations, of the revision compared with
	OrdinaryRested  resident
}

func (r *report) measureMass(ctx context.Context, b program, dir string) (m *mass, err error) {
	progress("mass: starting %d servers", massNodes)
	var servers []*pgserver.Server
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.Stop())
		}
	}()
	for range massNodes {
		s, err := pgserver.Start(ctx, pgserver.Options{Settings: map[string]string{"max_connections": "300"}})
		if err != nil {
			return nil, err
		}
		servers = append(servers, s)
	}
	m = &mass{Credentials: r.options.credentials, Against: r.options.against}
	warnings, err := m.emergency(ctx, b, servers, filepath.Join(dir, "site"))
	r.warnings += warnings
	if err != nil || m.Against == "" {
		return m, err
	}
	older, err := programAt(ctx, m.Against, dir)
	if err != nil {
		return m, err
	}
	return m, m.ordinary(ctx, older, servers, filepath.Join(dir, "older"))
}

// massNames are those of so many credentials.
func massNames(prefix string, n int) (names []string, all []site.Credential) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%04d", prefix, i+1))
		all = append(all, site.Credential{Name: names[i], Strategy: strategies[0]})
	}
	return names, all
}

// emergency measures the bare SQL, and then one order that contains all, each with as
// many sessions to end.
func (m *mass) emergency(ctx context.Context, b program, servers []*pgserver.Server, dir string) (warnings int64, err error) {
	progress("mass: adopting %d credentials on %d nodes each", m.Credentials, len(servers))
	names, all := massNames("mass", m.Credentials)
	p, q, err := startOn(ctx, b, nodesOf(servers), dir, all)
	if err != nil {
		return 0, err
	}
	defer func() { q.NATS.Close(); warnings = p.warnings.Load(); err = errors.Join(err, p.stop()) }()
	for _, one := range []struct {
		took        *time.Duration
		transaction bool
	}{{&m.Bare, false}, {&m.BareAtOne, true}} {
		sessions, err := occupyAll(ctx, q.site, servers, names)
		if err != nil {
			return 0, err
		}
		*one.took, err = bareMass(ctx, servers, names, one.transaction)
		hangUp(sessions)
		if err != nil {
			return 0, err
		}
	}
	progress("mass: bare SQL %v, in one transaction a node %v", m.Bare.Round(time.Millisecond), m.BareAtOne.Round(time.Millisecond))
	sessions, err := occupyAll(ctx, q.site, servers, names)
	if err != nil {
		return 0, err
	}
	defer hangUp(sessions)
	if m.Contained, m.Back, err = q.emergencyOfAll(ctx, names); err != nil {
		return 0, err
	}
	for _, session := range sessions {
		if session.Ping(ctx) == nil {
			return 0, errors.New("a session is alive after containment: the figure means nothing")
		}
	}
	if m.Rested, err = p.after(ctx, massRest); err != nil {
		return 0, err
	}
	progress("mass: contained p50 %.0f ms, p100 %.0f ms; back %.0f ms; %d MB", m.ContainedAt(.5), m.ContainedAt(1), m.BackAt(1), m.Rested.Now/1e6)
	return 0, nil
}

// ordinary has a revision rotate as many, one after the other, some at a time.
func (m *mass) ordinary(ctx context.Context, older program, servers []*pgserver.Server, dir string) (err error) {
	progress("mass: adopting %d credentials by %s", m.Credentials, m.Against)
	names, all := massNames("ordinary", m.Credentials)
	p, q, err := startOn(ctx, older, nodesOf(servers), dir, all)
	if err != nil {
		return err
	}
	defer func() { q.NATS.Close(); err = errors.Join(err, p.stop()) }()
	progress("mass: rotating each by %s", m.Against)
	began := time.Now()
	err = each(ctx, names, massAtOnce, func(ctx context.Context, credential string) error {
		_, err := q.rotate(ctx, credential)
		return err
	})
	if err != nil {
		return err
	}
	m.Ordinary = time.Since(began)
	m.OrdinaryRested, err = p.after(ctx, massRest)
	return err
}

// occupyAll opens the sessions, of one credential after the other, spread over the servers.
func occupyAll(ctx context.Context, s *site.Site, servers []*pgserver.Server, names []string) ([]*pgx.Conn, error) {
	all := make([]*pgx.Conn, massSessions)
	var opening errgroup.Group
	opening.SetLimit(8)
	for i := range all {
		server, name := servers[i%len(servers)], names[i%len(names)]
		opening.Go(func() error {
			login, err := s.Published(name)
			if err != nil {
				return err
			}
			all[i], err = postgres.Login(ctx, postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres",
				User: login.User, Password: login.Password, SSLMode: "disable", ApplicationName: "thief"})
			return err
		})
	}
	return all, opening.Wait()
}

// bareMass is what one psql for each node would do: NOLOGIN for each login, then ending
// sessions until there are none; and LOGIN again, unmeasured.
func bareMass(ctx context.Context, servers []*pgserver.Server, names []string, inOne bool) (time.Duration, error) {
	admins := make([]*pgx.Conn, len(servers))
	defer hangUp(admins)
	for i, server := range servers {
		var err error
		if admins[i], err = logIn(ctx, server, server.Superuser, server.Password); err != nil {
			return 0, err
		}
	}
	roles := make([]string, len(names))
	for i, name := range names {
		roles[i] = site.Role(name)
	}
	began := time.Now()
	err := onAll(admins, func(admin *pgx.Conn) error {
		err := alterAll(ctx, admin, roles, "NOLOGIN", inOne)
		for left := 1; err == nil && left > 0; {
			err = admin.QueryRow(ctx, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = ANY($1)", roles).Scan(&left)
		}
		return err
	})
	took := time.Since(began)
	return took, errors.Join(err, onAll(admins, func(admin *pgx.Conn) error { return alterAll(ctx, admin, roles, "LOGIN", true) }))
}

func onAll(admins []*pgx.Conn, work func(*pgx.Conn) error) error {
	errs := make([]error, len(admins))
	var all sync.WaitGroup
	for i, admin := range admins {
		all.Go(func() { errs[i] = work(admin) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// alterAll commits each change, or all of them at once.
func alterAll(ctx context.Context, admin *pgx.Conn, roles []string, to string, inOne bool) (err error) {
	if inOne {
		if _, err := admin.Exec(ctx, "BEGIN"); err != nil {
			return err
		}
	}
	for _, role := range roles {
		if _, err := admin.Exec(ctx, "ALTER ROLE "+pgx.Identifier{role}.Sanitize()+" "+to); err != nil {
			return err
		}
	}
	if inOne {
		_, err = admin.Exec(ctx, "COMMIT")
	}
	return err
}

// emergencyOfAll contains the whole cluster by one request, and returns how long it was
// until each was contained, and until each was back.
func (q *requester) emergencyOfAll(ctx context.Context, names []string) (contained, back []time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, massPatience)
	defer cancel()
	body, err := protojson.Marshal(&pawlv1.Request{Action: pawlv1.Action_ACTION_CONTAIN, Reason: "benchmark", RequestedBy: "bench",
		Selection: &pawlv1.Selection{Clusters: []string{"main"}}})
	if err != nil {
		return nil, nil, err
	}
	sent := time.Now()
	if _, err := q.JetStream.Publish(ctx, bus.EmergencySubject(bus.Several), body); err != nil {
		return nil, nil, err
	}
	contained, back = make([]time.Duration, len(names)), make([]time.Duration, len(names))
	var all errgroup.Group
	for i, name := range names {
		all.Go(func() (err error) { contained[i], back[i], err = q.hearEmergency(ctx, name, sent); return err })
	}
	return contained, back, all.Wait()
}

// hearEmergency returns when that of the credential has ended.
func (q *requester) hearEmergency(ctx context.Context, credential string, sent time.Time) (contained, back time.Duration, err error) {
	for {
		select {
		case n := <-q.heard[credential]:
			switch {
			case n.refusal != "":
				return 0, 0, fmt.Errorf("emergency of %s: %s", credential, n.refusal)
			case n.event == saga.RolledBack:
				return 0, 0, fmt.Errorf("emergency of %s was rolled back: %s", credential, q.why(ctx, credential, n.rotation))
			case n.event == saga.Contained:
				contained = n.at.Sub(sent)
			case n.event == saga.Verified:
				back = n.at.Sub(sent)
			case n.event == saga.Completed:
				return contained, back, nil
			}
		case <-ctx.Done():
			return 0, 0, fmt.Errorf("emergency of %s: not over within %v: %w", credential, massPatience, ctx.Err())
		}
	}
}

func quantileOf(took []time.Duration, q float64) float64 {
	c := cell{took: append([]time.Duration(nil), took...)}
	c.sort()
	return c.quantile(q)
}

// ContainedAt and BackAt are in milliseconds, for the report's template; so are the aims.
func (m *mass) ContainedAt(q float64) float64 { return quantileOf(m.Contained, q) }
func (m *mass) BackAt(q float64) float64      { return quantileOf(m.Back, q) }

// Aims says which are met.
func (m *mass) Aims() (lines []string) {
	p100 := m.ContainedAt(1)
	lines = append(lines, fmt.Sprintf("contained, the last of them: %.1f times the bare SQL (aim: at most 2: %s), %.1f s (aim: under 5 s: %s).",
		p100/milliseconds(m.Bare), met(p100 <= 2*milliseconds(m.Bare)), p100/1000, met(p100 < 5000)))
	lines = append(lines, fmt.Sprintf("`pawl up` %v afterwards: %.0f MB (aim: below 150: %s).", massRest, float64(m.Rested.Now)/1e6, met(m.Rested.Now < 150e6)))
	if m.Ordinary > 0 {
		lines = append(lines, fmt.Sprintf("back, the last of them: %.2f times what %s takes for as many ordinary rotations (aim: at most 0.5: %s); that one holds %.0f MB afterwards.",
			m.BackAt(1)/milliseconds(m.Ordinary), m.Against, met(m.BackAt(1) <= milliseconds(m.Ordinary)/2), float64(m.OrdinaryRested.Now)/1e6))
	}
	return lines
}

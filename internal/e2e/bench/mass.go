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
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
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

func measureMass(p *part) {
	servers := p.servers(massNodes, map[string]string{"max_connections": "300"})
	m := &mass{Credentials: p.credentials, Against: p.against}
	p.within(func() { m.emergency(p, servers) })
	if m.Against != "" {
		p.program = must(programAt(p, m.Against, p.dir))
		m.ordinary(p, servers)
	}
	p.mass = m
}

// emergency measures the bare SQL, and then one order that contains all, each with as
// many sessions to end.
func (m *mass) emergency(p *part, servers []*pgserver.Server) {
	names, all := credentialsOf("mass", m.Credentials)
	in := p.install(p.site(filepath.Join(p.dir, "site"), nodesOf(servers), all), 0)
	roles := make([]string, len(names))
	for i, name := range names {
		roles[i] = site.Role(name)
	}
	thieves := siege{servers, massSessions, func(i int) (inventory.Login, error) { return in.site.Published(names[i%len(names)]) }}
	thieves.end(p, func() { m.Bare = must(bareContainment(p, servers, roles, false)) })
	thieves.end(p, func() { m.BareAtOne = must(bareContainment(p, servers, roles, true)) })
	progress("mass: bare SQL %v, in one transaction a node %v", m.Bare.Round(time.Millisecond), m.BareAtOne.Round(time.Millisecond))
	thieves.end(p, func() { m.Contained, m.Back = in.emergencyOfAll(p, names) })
	m.Rested = in.up.after(p, massRest)
	progress("mass: contained p50 %.0f ms, p100 %.0f ms; back %.0f ms; %d MB", m.ContainedAt(.5), m.ContainedAt(1), m.BackAt(1), m.Rested.Now/1e6)
}

// ordinary has a revision rotate as many, one after the other, some at a time.
func (m *mass) ordinary(p *part, servers []*pgserver.Server) {
	names, all := credentialsOf("ordinary", m.Credentials)
	in := p.install(p.site(filepath.Join(p.dir, "older"), nodesOf(servers), all), 0)
	progress("mass: rotating each by %s", m.Against)
	began := time.Now()
	check(each(p, names, massAtOnce, func(ctx context.Context, credential string) error { _, err := in.rotate(ctx, credential); return err }))
	m.Ordinary = time.Since(began)
	m.OrdinaryRested = in.up.after(p, massRest)
}

// bareContainment is what one psql for each node would do, logged in as superuser:
// NOLOGIN for each login, then ending sessions until there are none; and LOGIN again,
// unmeasured.
func bareContainment(ctx context.Context, servers []*pgserver.Server, roles []string, inOne bool) (time.Duration, error) {
	admins := make([]*pgx.Conn, len(servers))
	defer hangUp(admins)
	for i, server := range servers {
		var err error
		if admins[i], err = logIn(ctx, server, server.Superuser, server.Password, "bench"); err != nil {
			return 0, err
		}
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
func (q *requester) emergencyOfAll(ctx context.Context, names []string) (contained, back []time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, massPatience)
	defer cancel()
	body := must(protojson.Marshal(&pawlv1.Request{Action: pawlv1.Action_ACTION_CONTAIN, Reason: "benchmark", RequestedBy: "bench",
		Selection: &pawlv1.Selection{Clusters: []string{"main"}}}))
	sent := time.Now()
	must(q.JetStream.Publish(ctx, bus.EmergencySubject(bus.Several), body))
	contained, back = make([]time.Duration, len(names)), make([]time.Duration, len(names))
	var all errgroup.Group
	for i, name := range names {
		all.Go(func() (err error) { contained[i], back[i], err = q.hearEmergency(ctx, name, sent); return err })
	}
	check(all.Wait())
	return contained, back
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

// ContainedAt and BackAt are in milliseconds, for the report's template; so are the aims.
func (m *mass) ContainedAt(q float64) float64 { return cellOf(m.Contained).quantile(q) }
func (m *mass) BackAt(q float64) float64      { return cellOf(m.Back).quantile(q) }

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

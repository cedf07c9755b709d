package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	containedNodes   = 3
	liveSessions     = 100
	containments     = 30 // of each strategy, and of the bare SQL
	handshakeSeconds = "2"
)

// measureEmergency measures how soon a stolen credential is dead, and its application
// back, beside the bare SQL, each with as many sessions to end.
func measureEmergency(p *part) {
	servers := p.servers(containedNodes, map[string]string{"max_connections": "200", "authentication_timeout": handshakeSeconds})
	var credentials []site.Credential
	for _, strategy := range strategies {
		credentials = append(credentials, site.Credential{Name: "stolen-" + strategy, Strategy: strategy})
	}
	in := p.install(p.site(p.dir, nodesOf(servers), credentials), 0)
	for _, strategy := range strategies {
		var bare, contained, recovered []time.Duration
		for range containments {
			took, done := in.stolen(p, servers, "stolen-"+strategy)
			bare, contained, recovered = append(bare, took), append(contained, done.contained), append(recovered, done.recovered)
		}
		p.cells[bareName(strategy)], p.cells[containedName(strategy)], p.cells[verifiedName(strategy)] = []cell{cellOf(bare)}, []cell{cellOf(contained)}, []cell{cellOf(recovered)}
		progress("emergency: %s", p.emergencyRow(strategy))
	}
}

func bareName(strategy string) string      { return "bare containment, " + strategy }
func containedName(strategy string) string { return "contained, " + strategy }
func verifiedName(strategy string) string  { return "verified, " + strategy }

// stolen measures one emergency, after the bare SQL.
func (in *installation) stolen(p *part, servers []*pgserver.Server, credential string) (bare time.Duration, done rotation) {
	login := must(in.site.Published(credential))
	thieves := siege{servers, liveSessions, func(int) (inventory.Login, error) { return login, nil }}
	thieves.end(p, func() { bare = must(bareContainment(p, servers, []string{login.User}, false)) })
	thieves.end(p, func() { done = must(in.do(p, credential, pawlv1.Action_ACTION_CONTAIN, saga.Completed)) })
	return bare, done
}

// siege is sessions of stolen logins, spread over the servers.
type siege struct {
	servers  []*pgserver.Server
	sessions int
	loginOf  func(i int) (inventory.Login, error)
}

// end opens the sessions, and sees to it that the containment ends them all.
func (s siege) end(ctx context.Context, contain func()) {
	all := make([]*pgx.Conn, s.sessions)
	defer hangUp(all)
	var opening errgroup.Group
	opening.SetLimit(8)
	for i := range all {
		opening.Go(func() error {
			login, err := s.loginOf(i)
			if err == nil {
				all[i], err = logIn(ctx, s.servers[i%len(s.servers)], login.User, login.Password, "thief")
			}
			return err
		})
	}
	check(opening.Wait())
	contain()
	if slices.ContainsFunc(all, func(session *pgx.Conn) bool { return session.Ping(ctx) == nil }) {
		check(errors.New("a session is alive after containment: the figure means nothing"))
	}
}

func hangUp(sessions []*pgx.Conn) {
	for _, session := range sessions {
		if session != nil {
			_ = session.Close(context.Background()) // most are dead
		}
	}
}

// emergencyRows are those of the table of emergencies.
func (r *report) emergencyRows() (rows []string) {
	for _, strategy := range slices.Sorted(slices.Values(strategies)) {
		rows = append(rows, r.emergencyRow(strategy))
	}
	return rows
}

func (r *report) emergencyRow(strategy string) string {
	bare, contained, verified := bareName(strategy), containedName(strategy), verifiedName(strategy)
	return fmt.Sprintf("| %s | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f |", strategy, r.median(bare, p50), r.median(contained, p50), r.median(contained, p99),
		r.median(verified, p50), r.median(verified, p99), r.median(contained, p50)/r.median(bare, p50))
}

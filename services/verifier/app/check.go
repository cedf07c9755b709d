package app

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/verifier/internal/probe"
)

// check looks, without a login of the credential, at what verify will need.
func (a *app) check(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	var lines []*pawlv1.Check
	for _, node := range c.Nodes {
		r := report{node: node.Name, lines: &lines}
		observer, err := a.accounts.on(c, node, c.Cluster.Observer)
		if err == nil {
			err = observer.Do(ctx, func(conn *pgx.Conn) error {
				checkRights(ctx, conn, c, r)
				for _, login := range c.Logins() {
					checkRule(ctx, conn, login, c.Database, r)
				}
				checkRoom(ctx, conn, c, r)
				return nil
			})
		}
		if err != nil {
			r.refuse("observer %q cannot log in: %v", c.Cluster.Observer.User, err)
		}
	}
	return lines
}

// report collects the lines about one node.
type report struct {
	node  string
	lines *[]*pawlv1.Check
}

func (r report) find(format string, args ...any) { r.add(false, format, args...) }

func (r report) refuse(format string, args ...any) { r.add(true, format, args...) }

func (r report) add(refused bool, format string, args ...any) {
	*r.lines = append(*r.lines, &pawlv1.Check{Service: saga.Verifier, Target: r.node, Finding: fmt.Sprintf(format, args...), Refused: refused})
}

func checkRights(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r report) {
	var sees bool
	err := conn.QueryRow(ctx, `SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')`).Scan(&sees)
	switch {
	case err != nil:
		r.refuse("%v", probe.Explain("read the observer's rights", err))
	case !sees:
		r.refuse("observer %q may not see others' sessions: GRANT pg_monitor TO it", c.Cluster.Observer.User)
	default:
		r.find("observer %q sees every session", c.Cluster.Observer.User)
	}
}

// room is how many more sessions the login ($1) may have in the database ($2).
// A login that does not exist yet has the server's and the database's.
const room = `
SELECT least(
	current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
		- coalesce(current_setting('reserved_connections', true), '0')::int
		- (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),
	(SELECT datconnlimit - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = $2)
		FROM pg_catalog.pg_database WHERE datname = $2 AND datconnlimit >= 0),
	(SELECT rolconnlimit - (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usename = $1)
		FROM pg_catalog.pg_roles WHERE rolname = $1 AND rolconnlimit >= 0))`

// checkRoom compares what the pool probe opens with what is left. Which of two
// logins is next is not known here, so both must have room.
func checkRoom(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r report) {
	needed := 0
	for _, p := range c.Verify {
		if p.Pool != nil {
			needed = max(needed, p.Pool.Connections+1)
		}
	}
	if needed == 0 {
		return
	}
	for _, login := range c.Logins() {
		var left int
		switch err := conn.QueryRow(ctx, room, login, c.Database).Scan(&left); {
		case err != nil:
			r.refuse("%v", probe.Explain("read connection limits", err))
		case left < needed:
			r.refuse("the pool probe needs %d connections, %q has %d left: raise max_connections or the CONNECTION LIMIT, or lower verify.pool.connections", needed, login, left)
		default:
			r.find("the pool probe needs %d connections, %q has %d left", needed, login, left)
		}
	}
}

// examine tells which login each consumer's sessions use.
func (a *app) examine(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	var lines []*pawlv1.Check
	for _, node := range c.Nodes {
		r := report{node: node.Name, lines: &lines}
		observer, err := a.accounts.on(c, node, c.Cluster.Observer)
		if err != nil {
			r.refuse("%v", err)
			continue
		}
		sessions, err := observer.Sessions(ctx, c.Logins())
		if err != nil {
			r.refuse("%v", err)
			continue
		}
		for _, consumer := range c.Consumers {
			if consumer.Instances == 0 {
				continue
			}
			uses := map[string]int{}
			for _, s := range sessions {
				if s.Application == consumer.ApplicationName {
					uses[s.User]++
				}
			}
			r.add(len(uses) > 1, "%s: %s", consumer.Name, describeUses(uses))
		}
	}
	return lines
}

func describeUses(uses map[string]int) string {
	if len(uses) == 0 {
		return "no session"
	}
	var texts []string
	for login, n := range uses {
		texts = append(texts, fmt.Sprintf("%s as %q", count(n, "session"), login))
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

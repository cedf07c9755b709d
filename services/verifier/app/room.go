package app

import (
	"context"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/service"
	"pawl.dev/services/verifier/internal/probe"
)

// rooms are the sessions that may still be opened in the database ($1): by the
// server's limit and by the database's, whichever is less, and which of both
// that is; then how many the logins ($2) have, and how many of these the
// application ($3) that has most.
const rooms = `
WITH activity AS MATERIALIZED (SELECT * FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'), free AS (
	SELECT 'max_connections' AS by, current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
		- coalesce(current_setting('reserved_connections', true), '0')::int - (SELECT count(*)::int FROM activity) AS slots
	UNION ALL
	SELECT 'the CONNECTION LIMIT of database ' || quote_ident(datname), datconnlimit - (SELECT count(*)::int FROM activity WHERE datname = $1)
	FROM pg_catalog.pg_database WHERE datname = $1 AND datconnlimit >= 0
)
SELECT slots, by, (SELECT count(*)::int FROM activity WHERE usename = ANY ($2)),
	(SELECT coalesce(max(n), 0)::int FROM (SELECT count(*) AS n FROM activity WHERE usename = ANY ($2) AND application_name = ANY ($3) GROUP BY application_name) apps)
FROM free ORDER BY slots LIMIT 1`

// limits are the logins that have one, and what is left of it.
const limits = `
SELECT rolname::text, rolconnlimit - (SELECT count(*)::int FROM pg_catalog.pg_stat_activity WHERE usename = rolname)
FROM pg_catalog.pg_roles WHERE rolname = ANY ($1) AND rolconnlimit >= 0`

type limit struct {
	Login string
	Left  int
}

// checkRoom refuses where a login, or a restart, would find no free connection.
//
// Verify needs one, and the pool probe as many more as it opens: of the server,
// of the database and of the login. The login in use has its sessions already,
// which the next one will have by then: so what is left to the one in use is
// what will be left to the other, and both are looked at.
//
// Under alternating, consumers are restarted one after the other, and one that
// reloads may open its new sessions before it closes the old: so the largest
// must fit beside all that there is. All of them at once need not.
func checkRoom(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r *report) {
	var applications []string
	for _, consumer := range c.Consumers {
		applications = append(applications, consumer.ApplicationName)
	}
	var free, sessions, largest int
	var by string
	err := conn.QueryRow(ctx, rooms, c.LoginDatabase(), c.Logins(), applications).Scan(&free, &by, &sessions, &largest)
	var limited []limit
	if err == nil {
		limited, err = readLimits(ctx, conn, c)
	}
	if err != nil {
		r.refuse("%v", probe.Explain("read connection limits", err))
		return
	}
	needed, what, instead := 1, "verify", ""
	for _, p := range c.Verify {
		if p.Pool != nil && p.Pool.Connections >= needed {
			needed, what, instead = p.Pool.Connections+1, "the pool probe", ", or lower verify.pool.connections"
		}
	}
	fits := true
	short := func(left int, of, fix string) {
		if left < needed {
			fits = false
			r.refuse("%s needs %s, %s has %d left: %s%s", what, service.Count(needed, "connection"), of, left, fix, instead)
		}
	}
	short(free, by, "raise it")
	for _, l := range limited {
		short(l.Left, "the CONNECTION LIMIT of "+quote(l.Login), "raise that of both logins")
	}
	if fits {
		r.find("%s needs %s, and there is room", what, service.Count(needed, "connection"))
	}
	if c.Strategy != inventory.Alternating {
		return
	}
	switch {
	case free < largest:
		r.refuse("while the largest consumer restarts, %s may stand beside as many old ones, and %s has %d left: raise it, or close sessions", service.Count(largest, "new session"), by, free)
	case free < sessions:
		r.find("warning: the applications have %s, and %s has %d left: restart no two of them at once", service.Count(sessions, "session"), by, free)
	}
}

func readLimits(ctx context.Context, conn *pgx.Conn, c *inventory.Credential) ([]limit, error) {
	rows, err := conn.Query(ctx, limits, c.Logins())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[limit])
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

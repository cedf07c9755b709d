package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// SessionID is one session of a server: a process id alone is used again.
type SessionID struct {
	PID          int
	BackendStart time.Time // as Evict and Blockers return it
}

// Blocker keeps a session of Pawl waiting for a lock: another session, or a
// prepared transaction, which has none.
type Blocker struct {
	SessionID      // PID 0: a prepared transaction
	Prepared       // of a session only Owner, Database and At, the begin of its transaction
	Theirs    bool // it belongs to a role that one of the logins may become, or that may act as one
	Own       bool // Pawl's own session, which has held a row of the fence for lockTimeout
}

// String names the blocker, and the statement that removes it.
func (b Blocker) String() string {
	if b.PID != 0 {
		return fmt.Sprintf("process %d of %q in database %q holds a lock on what is to be changed. Fix: run SELECT pg_terminate_backend(%d) as a superuser", b.PID, b.Owner, b.Database, b.PID)
	}
	return fmt.Sprintf("prepared transaction %q of %q holds a lock on what is to be changed. Fix: run %s in database %q as a superuser", b.GID, b.Owner, b.Rollback(), b.Database)
}

// Blockers returns what keeps the session with this process id waiting, and what keeps
// those waiting: none if it does not wait. It goes by the lock, not by the owner. What
// belongs to a superuser or to one of the roles of except is nobody's whom Pawl may end.
func (a *Admin) Blockers(ctx context.Context, pid uint32, logins, except []string) (all []Blocker, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, blockers, int(pid), logins, append([]string{}, except...), lockTimeout.Seconds())
		if err == nil {
			all, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (b Blocker, err error) {
				return b, row.Scan(&b.PID, &b.BackendStart, &b.GID, &b.Owner, &b.Database, &b.At, &b.Theirs, &b.Own)
			})
		}
		return a.named(err)
	})
	return all, err
}

// blockers follows the sessions from one that waits to the next. A prepared transaction
// shows in pg_locks without a process id, and since PostgreSQL 13.5 under the virtual
// transaction of the session that prepared it: its own lock on its transaction id tells
// which it is. A login may become each role that it is a member of: if it was given the
// membership without SET, it may have given itself that. Up to PostgreSQL 15 CREATEROLE
// gives itself every role but a superuser's.
const blockers = `WITH RECURSIVE waits AS (
		SELECT $1::int AS pid
		UNION
		SELECT b.pid FROM waits, LATERAL unnest(pg_blocking_pids(waits.pid)) AS b (pid) WHERE b.pid <> 0
	), becomes AS (
		SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY ($2)
		UNION
		SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN becomes ON m.member = becomes.oid
	), ` + actingAs + `, everybody AS (
		SELECT oid, rolname, NOT rolsuper AND rolname <> ALL ($3) AND (oid IN (SELECT oid FROM becomes UNION SELECT oid FROM acting)
			OR current_setting('server_version_num')::int < 160000
				AND EXISTS (SELECT FROM becomes JOIN pg_catalog.pg_roles creates USING (oid) WHERE creates.rolcreaterole)) AS theirs
		FROM pg_catalog.pg_roles
	), locks AS MATERIALIZED (SELECT * FROM pg_catalog.pg_locks
	), held AS (
		SELECT own.transactionid FROM locks wanted JOIN locks other
			ON ROW(wanted.locktype, wanted.database, wanted.relation, wanted.page, wanted.tuple, wanted.transactionid, wanted.classid, wanted.objid, wanted.objsubid)
				IS NOT DISTINCT FROM ROW(other.locktype, other.database, other.relation, other.page, other.tuple, other.transactionid, other.classid, other.objid, other.objsubid)
			JOIN locks own ON own.locktype = 'transactionid' AND own.pid IS NULL AND own.virtualtransaction = other.virtualtransaction
		WHERE wanted.pid IN (SELECT pid FROM waits) AND NOT wanted.granted AND other.granted AND other.pid IS NULL
			AND (wanted.locktype <> 'relation' OR other.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
	)
	SELECT pid, coalesce(backend_start, 'epoch'), '', coalesce(usename::text, ''), coalesce(datname::text, ''), coalesce(xact_start, 'epoch'), coalesce(theirs, false),
		coalesce(usename = session_user AND xact_start < clock_timestamp() - make_interval(secs => $4::float8)
			AND EXISTS (SELECT FROM locks l WHERE l.pid = s.pid AND l.relation = to_regclass('pawl.fence')), false)
	FROM pg_catalog.pg_stat_activity s LEFT JOIN everybody e ON e.oid = s.usesysid WHERE pid <> $1 AND pid IN (SELECT pid FROM waits)
	UNION ALL
	SELECT 0, 'epoch', gid, owner::text, p.database::text, prepared, coalesce(theirs, false), false
	FROM pg_catalog.pg_prepared_xacts p LEFT JOIN everybody e ON e.rolname = p.owner WHERE p.transaction IN (SELECT transactionid FROM held)`

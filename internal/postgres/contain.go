package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
)

// locally is for a fence that is Urgent.
const locally = "SELECT set_config('synchronous_commit', 'local', true), set_config('lock_timeout', '250ms', true)"

// ErrLocked is wrapped where another transaction holds what is to be changed: a
// session of the login itself, a prepared transaction, one of ours that hangs.
var ErrLocked = errors.New("locked by another transaction")

// lockNotAvailable is the SQLSTATE of a lock_timeout.
const lockNotAvailable = "55P03"

// Eviction says whose sessions are to end.
type Eviction struct {
	Logins  []string
	Members bool // also of who may act as one of them, by membership; never a superuser's
	Except  []string
	// Returning's sessions end only if they began before Since, by the server's
	// clock: with what it had then. Empty: none of it.
	Returning string
	Since     time.Time
}

// Ended is a session as it was when it was ended.
type Ended struct {
	Session
	Database    string
	Kind        string // backend_type, such as "walsender"; empty without pg_read_all_stats
	Transaction time.Time
	QueryStart  time.Time // the zero time where there was none, as above
	Wait        string
	Query       string // screened
}

// EndedColumns and Cells show sessions as a Table does.
var EndedColumns = []string{"pid", "role", "application", "client", "database", "kind", "began", "state", "transaction since", "query since", "waits for", "query"}

// Cells are the session's values under EndedColumns.
func (e Ended) Cells() []string {
	at := func(t time.Time) string {
		if t.Unix() <= 0 {
			return ""
		}
		return t.UTC().Format("2006-01-02 15:04:05.000Z")
	}
	return []string{fmt.Sprint(e.PID), e.User, short(e.Application), e.Client, e.Database, e.Kind, at(e.BackendStart), e.State, at(e.Transaction), at(e.QueryStart), e.Wait, e.Query}
}

// Evict ends the sessions on this node, once, and returns which there were, as
// they were: ask again until there are none. It needs pg_signal_backend. It
// works on standbys.
func (a *Admin) Evict(ctx context.Context, e Eviction) (ended []Ended, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		// Before PostgreSQL 16 a membership has no options: every one lets act.
		rows, err := c.Query(ctx, `WITH RECURSIVE acting AS (
				SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY ($1)
				UNION
				SELECT m.member FROM pg_catalog.pg_auth_members m JOIN acting ON m.roleid = acting.oid
				WHERE $2 AND (coalesce((to_jsonb(m) ->> 'set_option')::bool, true) OR coalesce((to_jsonb(m) ->> 'inherit_option')::bool, true))
			), doomed AS MATERIALIZED (
				SELECT s.* FROM pg_catalog.pg_stat_activity s JOIN pg_catalog.pg_roles r ON r.oid = s.usesysid
				WHERE pid <> pg_backend_pid() AND usename <> ALL ($3)
					AND (usesysid IN (SELECT oid FROM acting) AND (usename = ANY ($1) OR NOT rolsuper)
						OR usename = $4 AND coalesce(backend_start, 'epoch') < $5)
			)
			SELECT pid, usename::text, coalesce(application_name, ''), coalesce(host(client_addr), 'local'), coalesce(backend_start, 'epoch'), coalesce(state, ''),
				coalesce(datname::text, ''), coalesce(backend_type, ''), coalesce(xact_start, 'epoch'), coalesce(query_start, 'epoch'),
				coalesce(wait_event_type || ': ' || wait_event, ''), left(coalesce(query, ''), `+fmt.Sprint(maxQuery)+`)
			FROM doomed WHERE pg_terminate_backend(pid)`, e.Logins, e.Members, append([]string{}, e.Except...), e.Returning, e.Since)
		if err == nil {
			ended, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Ended])
		}
		for i := range ended {
			ended[i].Query = Screen(ended[i].Query)
		}
		if err = a.named(err); IsRefused(err, NotPermitted) {
			return &hint{err, "the account cannot end sessions: run what `pawl init --admin-sql` prints"}
		}
		return err
	})
	return ended, err
}

// FreeLocks ends Pawl's own other sessions that hold locks on the fence: of a
// process that was paused, or one whose COMMIT waits for a dead standby. What
// they were doing is done again by whoever the log says.
func (a *Admin) FreeLocks(ctx context.Context) error {
	return a.Do(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, `SELECT pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity s USING (pid)
			WHERE l.relation = to_regclass('pawl.fence') AND l.mode = 'RowExclusiveLock' AND l.pid <> pg_backend_pid() AND s.usename = session_user`)
		return a.named(err)
	})
}

// AuthenticationTimeout is how long a login may take on this node: one that began
// before a password was changed may succeed with the old one that long after.
func (a *Admin) AuthenticationTimeout(ctx context.Context) (d time.Duration, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		var seconds int
		err := c.QueryRow(ctx, "SELECT setting::int FROM pg_catalog.pg_settings WHERE name = 'authentication_timeout'").Scan(&seconds)
		d = time.Duration(seconds) * time.Second
		return a.named(err)
	})
	return d, err
}

// locked marks a lock timeout.
func locked(err error) error {
	if IsRefused(err, lockNotAvailable) {
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	return err
}

// Accounts are the roles by which Pawl itself logs in to a cluster: never evicted.
func Accounts(cluster *inventory.Cluster) []string {
	var names []string
	for _, account := range []inventory.Account{cluster.Admin, cluster.Observer} {
		names = append(names, account.Logins()...)
	}
	return names
}

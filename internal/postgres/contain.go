package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
)

// lockTimeout is how long a transaction behind an Urgent fence waits for one lock.
const lockTimeout = 250 * time.Millisecond

// locally is for a fence that is Urgent.
var locally = fmt.Sprintf("SELECT set_config('synchronous_commit', 'local', true), set_config('lock_timeout', '%dms', true)", lockTimeout.Milliseconds())

// ErrLocked is wrapped where another transaction holds what is to be changed: a
// session of the login itself, a prepared transaction, one of ours that hangs.
var ErrLocked = errors.New("locked by another transaction")

// The SQLSTATEs of a lock_timeout, and of a row of the catalogue that somebody else has
// changed meanwhile, among others.
const (
	lockNotAvailable = "55P03"
	internalError    = "XX000"
)

// Eviction says whose sessions are to end.
type Eviction struct {
	Logins  []string
	Members bool // also of who may act as one of them, by membership; never a superuser's
	Except  []string
	// Returned are logins whose sessions end only if they began before that, by the
	// server's clock: with what the login had then.
	Returned map[string]time.Time
	Sessions []SessionID // and these
}

// letsAct is what a membership m says. Before PostgreSQL 16 it has no options: every one
// lets act.
const letsAct = "(coalesce((to_jsonb(m) ->> 'set_option')::bool, true) OR coalesce((to_jsonb(m) ->> 'inherit_option')::bool, true))"

// actingAs are the roles of the logins $2, and those that may act as one of them by
// membership.
const actingAs = `acting AS (
		SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY ($2)
		UNION
		SELECT m.member FROM pg_catalog.pg_auth_members m JOIN acting ON m.roleid = acting.oid
		WHERE ` + letsAct + `
	)`

// Ended is a session as it was when it was ended.
type Ended struct {
	Session
	Database    string
	Kind        string // backend_type, such as "walsender"; empty without pg_read_all_stats
	Transaction time.Time
	QueryStart  time.Time // the zero time where there was none, as above
	Wait        string
	Query       string // screened
	// ActsAs are the logins as one of which the session's role may act, if Members were
	// asked for; nil if the role is gone, so that nobody can tell.
	ActsAs []string
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
		acting := e.Logins
		if !e.Members {
			acting = []string{}
		}
		pids, starts := make([]int, len(e.Sessions)), make([]time.Time, len(e.Sessions))
		for i, s := range e.Sessions {
			pids[i], starts[i] = s.PID, s.BackendStart
		}
		var returned []string
		var since []time.Time
		for login, at := range e.Returned {
			returned, since = append(returned, login), append(since, at)
		}
		rows, err := c.Query(ctx, `WITH RECURSIVE `+actingAs+`, doomed AS MATERIALIZED (
				SELECT s.* FROM pg_catalog.pg_stat_activity s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.usesysid
				WHERE pid <> pg_backend_pid() AND coalesce(usename, '') <> ALL ($3)
					AND (usename = ANY ($1) OR usesysid IN (SELECT oid FROM acting) AND NOT rolsuper
						OR $8 AND backend_type = 'client backend' AND usesysid <> 0 AND r.oid IS NULL -- its role was dropped: nobody can tell as whom it acts
						OR EXISTS (SELECT FROM unnest($4::text[], $5::timestamptz[]) AS returned (login, since) WHERE usename = login AND coalesce(backend_start, 'epoch') < since)
						OR (pid, coalesce(backend_start, 'epoch')) IN (SELECT * FROM unnest($6::int[], $7::timestamptz[])))
			), becomes AS (
				SELECT DISTINCT usesysid AS session, usesysid AS role FROM doomed WHERE $8
				UNION
				SELECT session, m.roleid FROM pg_catalog.pg_auth_members m JOIN becomes ON m.member = becomes.role WHERE `+letsAct+`
			)
			SELECT pid, coalesce(usename::text, ''), coalesce(application_name, ''), coalesce(host(client_addr), 'local'), coalesce(backend_start, 'epoch'), coalesce(state, ''),
				coalesce(datname::text, ''), coalesce(backend_type, ''), coalesce(xact_start, 'epoch'), coalesce(query_start, 'epoch'),
				coalesce(wait_event_type || ': ' || wait_event, ''), left(coalesce(query, ''), `+fmt.Sprint(maxQuery)+`),
				(SELECT array_agg(rolname::text) FROM becomes JOIN pg_catalog.pg_roles r ON r.oid = becomes.role WHERE becomes.session = usesysid AND rolname = ANY ($2))
			FROM doomed WHERE pg_terminate_backend(pid)`, e.Logins, acting, append([]string{}, e.Except...), returned, since, pids, starts, e.Members)
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

// Clock is what a server says of its time.
type Clock struct {
	Now time.Time
	// AuthenticationTimeout is how long a login may take: one that began before a password
	// was changed may succeed with the old one that long after.
	AuthenticationTimeout time.Duration
}

// Clock reads it.
func (a *Admin) Clock(ctx context.Context) (is Clock, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		var seconds int
		err := c.QueryRow(ctx, "SELECT clock_timestamp(), setting::int FROM pg_catalog.pg_settings WHERE name = 'authentication_timeout'").Scan(&is.Now, &seconds)
		is.AuthenticationTimeout = time.Duration(seconds) * time.Second
		return a.named(err)
	})
	return is, err
}

// AuthenticationTimeout is that of its clock.
func (a *Admin) AuthenticationTimeout(ctx context.Context) (time.Duration, error) {
	is, err := a.Clock(ctx)
	return is.AuthenticationTimeout, err
}

// locked marks a lock timeout, and a row that was changed while it was waited for.
func locked(err error) error {
	refused := new(Refused)
	if errors.As(err, &refused) && (refused.SQLSTATE == lockNotAvailable || refused.SQLSTATE == internalError && refused.Message == "tuple concurrently updated") {
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

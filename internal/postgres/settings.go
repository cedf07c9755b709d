package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Health is what a preflight wants to know of a node.
type Health struct {
	Version           int // such as 150018
	InRecovery        bool
	FreeSlots         int // sessions that non-superusers may still open
	Slots             int // that every role may take
	Reserved          int // that are kept for those who may use them; before PostgreSQL 16: 0
	CanUseReserved    bool
	Superuser         bool // the account, which has slots of its own
	CanAlter          bool
	CanCreate         bool   // may create any role, as earlier versions needed; no superuser
	CanEvict          bool   // may end other people's sessions
	Strangers         string // routines that no superuser made, in the schema whose procedures the account calls
	Fsync             bool
	SynchronousCommit string
	Leaks             []string // settings that log or count other people's statements
}

// IsOwnedBy reports whether the role is, or may act as, the owner of the database
// in which the account's sessions are.
func (a *Admin) IsOwnedBy(ctx context.Context, role string) (owned bool, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_database d, pg_catalog.pg_roles r
			WHERE datname = current_database() AND rolname = $1 AND NOT rolsuper AND pg_has_role(r.oid, datdba, 'MEMBER'))`, role).Scan(&owned))
	})
	return owned, err
}

// Look reads the node's health; it changes nothing.
func (a *Admin) Look(ctx context.Context) (h Health, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
			current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
				- coalesce(current_setting('reserved_connections', true), '0')::int
				- (SELECT count(*)::int FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),
			current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - coalesce(current_setting('reserved_connections', true), '0')::int,
			coalesce(current_setting('reserved_connections', true), '0')::int,
			coalesce(pg_has_role(to_regrole('pg_use_reserved_connections'), 'USAGE'), false),
			(SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
			(SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user) OR (`+isNarrow+`),
			(SELECT rolcreaterole AND NOT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
			pg_has_role('pg_signal_backend', 'USAGE'),
			CASE WHEN (`+isNarrow+`) THEN coalesce((`+strangers+`), '') ELSE '' END,
			current_setting('fsync')::bool, current_setting('synchronous_commit'),
			(SELECT coalesce(array_agg(name || '=' || current_setting(name, true)), '{}') FROM (VALUES
				('log_statement', 'none'), ('log_min_duration_statement', '-1'), ('log_min_duration_sample', '-1'), ('log_transaction_sample_rate', '0'),
				('pg_stat_statements.track_utility', 'off'), ('pgaudit.log', 'none')) AS quiet (name, value)
				WHERE current_setting(name, true) <> value)`).
			Scan(&h.Version, &h.InRecovery, &h.FreeSlots, &h.Slots, &h.Reserved, &h.CanUseReserved, &h.Superuser, &h.CanAlter, &h.CanCreate, &h.CanEvict, &h.Strangers, &h.Fsync, &h.SynchronousCommit, &h.Leaks))
	})
	return h, err
}

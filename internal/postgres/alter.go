package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/secret"
)

// quiet keeps the rest of the transaction out of the server's log, of
// pg_stat_statements, of pgaudit and of pg_stat_activity. It is a statement of
// its own: in one string with the others, the whole text would be logged before
// any of it had worked. What is already as wanted is not set, so that an
// account that may not set it can have it as a role setting. The last two make
// the commit durable and let a paused worker's locks go.
const quiet = `SELECT set_config(name, wanted, true) FROM (VALUES
		('log_statement', 'none'), ('log_min_duration_statement', '-1'), ('log_min_duration_sample', '-1'),
		('log_min_error_statement', 'panic'), ('track_activities', 'off'),
		('pg_stat_statements.track_utility', 'off'), ('pgaudit.log', 'none'),
		('synchronous_commit', 'on'), ('idle_in_transaction_session_timeout', '5s')
	) AS settings (name, wanted)
	WHERE current_setting(name, true) <> wanted AND NOT (name = 'synchronous_commit' AND current_setting(name) = 'remote_apply')`

// RoleState reads a role, as Admin.RoleState does.
func (tx *Tx) RoleState(ctx context.Context, name string) (Role, error) {
	return tx.admin.role(ctx, tx.conn, name)
}

// Node is where the transaction is.
func (tx *Tx) Node() string { return tx.admin.Node }

// RoleIfReadable reads a role for work that does not depend on its verifier: if the server
// refuses to show that, unread says why, the role comes without, and the transaction goes on.
func (tx *Tx) RoleIfReadable(ctx context.Context, name string) (role Role, unread, err error) {
	if _, err := tx.conn.Exec(ctx, "SAVEPOINT unread"); err != nil {
		return Role{}, nil, tx.admin.named(err)
	}
	if role, unread = tx.RoleState(ctx, name); unread == nil {
		return role, nil, nil
	}
	if !errors.As(unread, new(*Refused)) {
		return Role{}, nil, unread
	}
	if _, err := tx.conn.Exec(ctx, "ROLLBACK TO unread"); err != nil {
		return Role{}, nil, tx.admin.named(err)
	}
	roles, err := tx.admin.rolesWith(ctx, tx.conn, "''", name)
	return roles[name], unread, err
}

// RoleStates reads several, as Admin.RoleStates does.
func (tx *Tx) RoleStates(ctx context.Context, names ...string) (map[string]Role, error) {
	return tx.admin.roles(ctx, tx.conn, names...)
}

// Sessions lists who is logged in, as Admin.Sessions does.
func (tx *Tx) Sessions(ctx context.Context, users []string) ([]Session, error) {
	return tx.admin.sessions(ctx, tx.conn, users)
}

// SetLogin lets the role log in, or refuses it; its password stays.
func (tx *Tx) SetLogin(ctx context.Context, name string, may bool) error {
	return tx.alter(ctx, name, may, "")
}

// SetVerifier lets the role log in with the verifier's password, or holds the
// verifier ready without letting it; a zero verifier leaves no password.
func (tx *Tx) SetVerifier(ctx context.Context, name string, may bool, verifier secret.String) error {
	if !verifier.IsZero() && !storable(verifier) {
		return fmt.Errorf("role %q: not a verifier: PostgreSQL would take it for a password", name)
	}
	return tx.alter(ctx, name, may, passwordOf(verifier))
}

// passwordOf is the verifier as SQL.
func passwordOf(verifier secret.String) string {
	if verifier.IsZero() {
		return "NULL"
	}
	return literal(verifier.Reveal())
}

// IsMember reports whether role may act as owner.
func (tx *Tx) IsMember(ctx context.Context, role, owner string) (bool, error) {
	return tx.admin.member(ctx, tx.conn, role, owner)
}

// CreateSibling creates the second login of owner: it acts as owner from its
// first statement on, with those settings and owner's connection limit and
// validity. It cannot log in yet.
func (tx *Tx) CreateSibling(ctx context.Context, owner Role, sibling string, settings []Setting) error {
	if tx.narrow {
		return tx.callCreateSibling(ctx, owner.Name, sibling, settings)
	}
	create := fmt.Sprintf("CREATE ROLE %s NOLOGIN INHERIT CONNECTION LIMIT %d IN ROLE %s", identifier(sibling), owner.ConnLimit, identifier(owner.Name))
	if owner.ValidUntil != "" {
		create += " VALID UNTIL " + literal(owner.ValidUntil)
	}
	if err := tx.exec(ctx, create); err != nil {
		return err
	}
	for _, s := range OfLogin(sibling, owner.Name, settings) {
		if err := tx.exec(ctx, s.set(sibling)); err != nil {
			return &hint{fmt.Errorf("copy setting %s of %q: %w", s.Name, owner.Name, err), fmt.Sprintf("have a superuser create role %q like it", sibling)}
		}
	}
	return nil
}

// alter takes the password as SQL; empty: the one there is.
func (tx *Tx) alter(ctx context.Context, name string, may bool, password string) error {
	err := tx.exec(ctx, tx.alteration(name, may, password))
	if tx.calls(name) && (IsRefused(err, noSchema, noFunction) || !tx.narrow && IsRefused(err, NotPermitted)) {
		return &hint{err, "the account cannot alter its own logins: run what `pawl init --admin-sql` prints"}
	}
	return err
}

// alteration is the statement of alter.
func (tx *Tx) alteration(name string, may bool, password string) string {
	if tx.calls(name) {
		return tx.alterationCall(name, may, cmp.Or(password, literal("keep")))
	}
	sql := "ALTER ROLE " + identifier(name) + " " + attribute(may)
	if password != "" {
		sql += " PASSWORD " + password
	}
	return sql
}

func (tx *Tx) exec(ctx context.Context, sql string) error {
	_, err := tx.conn.Exec(ctx, sql, pgx.QueryExecModeExec) // never prepared, never kept
	return tx.admin.named(err)
}

func attribute(login bool) string {
	if login {
		return "LOGIN"
	}
	return "NOLOGIN"
}

func identifier(name string) string { return pgx.Identifier{name}.Sanitize() }

// literal quotes text in an escape string, which means the same in a session that
// has turned standard_conforming_strings off.
func literal(text string) string {
	return " E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(text) + "'"
}

package postgres

import (
	"context"
	"fmt"
	"slices"
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
	if tx.admin.isOwn(name) {
		return tx.alterOwn(ctx, name, may, literal("keep"))
	}
	return tx.alter(ctx, name, attribute(may))
}

// SetVerifier lets the role log in with the verifier's password, or holds the
// verifier ready without letting it; a zero verifier leaves no password.
func (tx *Tx) SetVerifier(ctx context.Context, name string, may bool, verifier secret.String) error {
	password := "NULL"
	if !verifier.IsZero() {
		if !storable(verifier) {
			return fmt.Errorf("role %q: not a verifier: PostgreSQL would take it for a password", name)
		}
		password = literal(verifier.Reveal())
	}
	if tx.admin.isOwn(name) {
		return tx.alterOwn(ctx, name, may, password)
	}
	return tx.alter(ctx, name, attribute(may)+" PASSWORD "+password)
}

// IsMember reports whether role may act as owner.
func (tx *Tx) IsMember(ctx context.Context, role, owner string) (bool, error) {
	return tx.admin.member(ctx, tx.conn, role, owner)
}

// CreateSibling creates the second login of owner: it acts as owner from its
// first statement on, with owner's settings, connection limit and validity. It
// cannot log in yet.
func (tx *Tx) CreateSibling(ctx context.Context, owner Role, sibling string) error {
	create := fmt.Sprintf("CREATE ROLE %s NOLOGIN INHERIT CONNECTION LIMIT %d IN ROLE %s", identifier(sibling), owner.ConnLimit, identifier(owner.Name))
	if owner.ValidUntil != "" {
		create += " VALID UNTIL " + literal(owner.ValidUntil)
	}
	if err := tx.exec(ctx, create); err != nil {
		return err
	}
	settings, err := tx.settings(ctx, owner.Name)
	if err != nil {
		return err
	}
	acts := false
	for _, s := range settings {
		acts = acts || (s.name == "role" && s.database == "")
		if err := tx.exec(ctx, s.statement(sibling)); err != nil {
			return &hint{fmt.Errorf("copy setting %s of %q: %w", s.name, owner.Name, err), fmt.Sprintf("have a superuser create role %q like it", sibling)}
		}
	}
	if acts {
		return nil
	}
	return tx.exec(ctx, setting{name: "role", value: owner.Name}.statement(sibling))
}

type setting struct{ database, name, value string }

func (tx *Tx) settings(ctx context.Context, role string) ([]setting, error) {
	rows, err := tx.conn.Query(ctx, `SELECT coalesce(d.datname::text, ''), split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
		FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
		LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) AS c WHERE r.rolname = $1`, role)
	if err != nil {
		return nil, tx.admin.named(err)
	}
	settings, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s setting, err error) {
		return s, row.Scan(&s.database, &s.name, &s.value)
	})
	return settings, tx.admin.named(err)
}

// statement gives the setting to a role.
func (s setting) statement(role string) string {
	in := ""
	if s.database != "" {
		in = " IN DATABASE " + identifier(s.database)
	}
	value := literal(s.value)
	if listQuoted[strings.ToLower(s.name)] {
		var members []string
		for _, m := range splitList(s.value) {
			members = append(members, literal(m))
		}
		value = strings.Join(members, ", ")
	}
	return fmt.Sprintf("ALTER ROLE %s%s SET %s TO %s", identifier(role), in, identifier(s.name), value)
}

// listQuoted are the settings whose stored value is a list of quoted
// identifiers (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c; the same as in its
// dumputils.c).
var listQuoted = map[string]bool{
	"local_preload_libraries": true, "search_path": true, "session_preload_libraries": true,
	"shared_preload_libraries": true, "temp_tablespaces": true, "unix_socket_directories": true,
}

// splitList splits such a list: a, "b, c", "d""e".
func splitList(list string) []string {
	var members []string
	for rest := strings.TrimSpace(list); rest != ""; {
		var member string
		if strings.HasPrefix(rest, `"`) {
			end := 1
			for end < len(rest) {
				if rest[end] != '"' {
					end++
				} else if strings.HasPrefix(rest[end:], `""`) {
					end += 2
				} else {
					break
				}
			}
			member, rest = strings.ReplaceAll(rest[1:end], `""`, `"`), rest[min(end+1, len(rest)):]
			_, rest, _ = strings.Cut(rest, ",")
		} else {
			member, rest, _ = strings.Cut(rest, ",")
			member = strings.TrimSpace(member)
		}
		members = append(members, member)
		rest = strings.TrimSpace(rest)
	}
	return members
}

func (tx *Tx) alter(ctx context.Context, name, what string) error {
	return tx.exec(ctx, "ALTER ROLE "+identifier(name)+" "+what)
}

// isOwn reports whether name is one of the two logins of an account that Pawl
// turns itself.
func (a *Admin) isOwn(name string) bool {
	return a.account.Credential != "" && slices.Contains(a.account.Logins(), name)
}

// alterOwn alters a login of the account itself, for which from PostgreSQL 16
// on no grant is enough.
func (tx *Tx) alterOwn(ctx context.Context, name string, may bool, password string) error {
	err := tx.exec(ctx, fmt.Sprintf("CALL pawl.alter_own(%s, %t, %s)", literal(name), may, password))
	if IsRefused(err, noSchema, noFunction, NotPermitted) {
		return &hint{err, "the account cannot alter its own logins: run what `pawl init --admin-sql` prints"}
	}
	return err
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

// literal quotes text; E” because a session may have turned
// standard_conforming_strings off.
func literal(text string) string {
	return " E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(text) + "'"
}

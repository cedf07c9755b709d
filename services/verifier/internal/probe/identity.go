package probe

import (
	"context"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/saga"
)

// Identity checks who the session is. A login without the right to become its
// role gets in all the same, with a mere WARNING, and then owns and may do the
// wrong things.
type Identity struct{}

// Name implements Probe.
func (Identity) Name() string { return "identity" }

// actors reads as whom the login ($1) and the owner ($2) are set to act: SET
// role for the database wins over that for all, as in the server.
const actors = `
WITH acts AS (
	SELECT DISTINCT ON (rolname) rolname, substr(setting, length('role=') + 1) AS role
	FROM pg_catalog.pg_db_role_setting JOIN pg_catalog.pg_roles r ON r.oid = setrole, unnest(setconfig) AS setting
	WHERE setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
	  AND setting LIKE 'role=%' AND setting <> 'role=none'
	ORDER BY rolname, setdatabase DESC
)
SELECT coalesce((SELECT role FROM acts WHERE rolname = $1), $1), coalesce((SELECT role FROM acts WHERE rolname = $2), $2)`

// Run implements Probe.
func (Identity) Run(ctx context.Context, l *Login) error {
	// What the server says by itself, and a command that needs no plan: in a
	// session that has just begun, SELECT current_user costs several times as much.
	session := l.Conn.PgConn().ParameterStatus("session_authorization")
	var current, set, want string
	if err := l.Conn.QueryRow(ctx, "SHOW role").Scan(&current); err != nil {
		return Explain("read who the login is", err)
	}
	if current == "none" { // no role of that name can exist
		current = session
	}
	err := l.catalogue(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, actors, l.User, l.Role).Scan(&set, &want) })
	if err != nil {
		return Explain("read as whom the login acts", err)
	}
	switch {
	case session != l.User:
		return saga.Permanentf("logged in as %s, but the session belongs to %s: look for a pooler or a pg_ident map that renames it", quote(l.User), quote(session))
	case current == want:
		return nil
	case set != want:
		return saga.Permanentf("login %s acts as %s instead of %s: ALTER ROLE %s SET role TO %s", quote(l.User), quote(current), quote(want), quote(l.User), quote(want))
	default:
		return saga.Permanentf("login %s acts as %s, for it may not become %s: GRANT %s TO %s", quote(l.User), quote(current), quote(want), quote(want), quote(l.User))
	}
}

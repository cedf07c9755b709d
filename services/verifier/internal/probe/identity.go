package probe

import (
	"context"

	"pawl.dev/internal/saga"
)

// Identity checks who the session is. A login without the right to become its
// role gets in all the same, with a mere WARNING, and then owns and may do the
// wrong things.
type Identity struct{}

// Name implements Probe.
func (Identity) Name() string { return "identity" }

// whoami also reads as whom the login and the owner ($1) are set to act: SET
// role for the database wins over that for all, as in the server.
const whoami = `
WITH acts AS (
	SELECT DISTINCT ON (rolname) rolname, substr(setting, length('role=') + 1) AS role
	FROM pg_catalog.pg_db_role_setting JOIN pg_catalog.pg_roles r ON r.oid = setrole, unnest(setconfig) AS setting
	WHERE setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
	  AND setting LIKE 'role=%' AND setting <> 'role=none'
	ORDER BY rolname, setdatabase DESC
)
SELECT session_user::text, current_user::text,
	coalesce((SELECT role FROM acts WHERE rolname = session_user), session_user),
	coalesce((SELECT role FROM acts WHERE rolname = $1), $1)`

// Run implements Probe.
func (Identity) Run(ctx context.Context, l *Login) error {
	var session, current, set, want string
	if err := l.Conn.QueryRow(ctx, whoami, l.Role).Scan(&session, &current, &set, &want); err != nil {
		return Explain("read who the login is", err)
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

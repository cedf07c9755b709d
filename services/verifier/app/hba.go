package app

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"pawl.dev/services/verifier/internal/probe"
)

// hbaFix is what to do about a login that needs no password.
const hbaFix = "set its method to scram-sha-256 and reload"

// firstRule is the pg_hba line that the server would take for a login ($1) to a
// database ($2) that comes the way this session came: the first that fits.
// Regular expressions and host names are not followed.
const firstRule = `
SELECT line_number, auth_method
FROM pg_catalog.pg_hba_file_rules, (SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()) AS session
WHERE error IS NULL
  AND type IN ('host', CASE WHEN ssl THEN 'hostssl' ELSE 'hostnossl' END)
  AND (database && ARRAY['all', $2::text] OR 'sameuser' = ANY (database) AND $1::text = $2)
  AND (user_name && ARRAY['all', $1] OR EXISTS (
	SELECT FROM pg_catalog.pg_roles u, pg_catalog.pg_roles g
	WHERE u.rolname = $1 AND '+' || g.rolname = ANY (user_name) AND pg_has_role(u.oid, g.oid, 'MEMBER')))
  AND CASE
	WHEN address = 'all' THEN true
	WHEN address IN ('samehost', 'samenet') THEN inet_client_addr() = inet_server_addr()
	WHEN netmask IS NULL OR family(netmask::inet) <> family(inet_client_addr()) THEN false
	ELSE host(inet_client_addr())::inet & netmask::inet = address::inet & netmask::inet END
LIMIT 1`

// readsRules asks without provoking an error in the server's log.
const readsRules = `SELECT has_table_privilege('pg_catalog.pg_hba_file_rules', 'select') AND has_function_privilege('pg_catalog.pg_hba_file_rules()', 'execute')`

// checkRule refuses a login that pg_hba would let in without its password, or
// not at all. Reading the rules needs a superuser, unless it was granted: where
// the observer may not, verify itself finds out.
func checkRule(ctx context.Context, conn *pgx.Conn, login, database string, r report) {
	var may bool
	if err := conn.QueryRow(ctx, readsRules).Scan(&may); err != nil || !may {
		return
	}
	var line int
	var method string
	err := conn.QueryRow(ctx, firstRule, login, database).Scan(&line, &method)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		r.refuse("pg_hba.conf has no line for %q: add one with scram-sha-256 and reload", login)
	case err != nil:
		r.refuse("%v", probe.Explain("read pg_hba rules", err))
	case method == "reject":
		r.refuse("pg_hba.conf line %d rejects %q: put one with scram-sha-256 above it and reload", line, login)
	case method != "scram-sha-256" && method != "md5": // md5 asks for SCRAM where that is what is stored
		r.refuse("pg_hba.conf line %d lets %q in by %s, which proves no password: %s", line, login, method, hbaFix)
	default:
		r.find("pg_hba.conf line %d asks %q for its password", line, login)
	}
}

package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/postgres"
)

// firstRule is the pg_hba line that the server would take for a login of $1 to
// database $2 that comes the way this session came: the first that fits.
// Regular expressions and host names are not followed.
const firstRule = `
SELECT line_number, auth_method
FROM pg_catalog.pg_hba_file_rules, (SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()) AS session
WHERE error IS NULL
  AND type IN ('host', CASE WHEN ssl THEN 'hostssl' ELSE 'hostnossl' END)
  AND (database && ARRAY['all', $2] OR 'sameuser' = ANY (database) AND $1 = $2)
  AND (user_name && ARRAY['all', $1] OR EXISTS (
	SELECT FROM pg_catalog.pg_roles u, pg_catalog.pg_roles g
	WHERE u.rolname = $1 AND '+' || g.rolname = ANY (user_name) AND pg_has_role(u.oid, g.oid, 'MEMBER')))
  AND CASE WHEN address IN ('all', 'samehost', 'samenet') THEN address = 'all' OR inet_client_addr() = inet_server_addr()
	WHEN netmask IS NULL OR family(address::inet) <> family(inet_client_addr()) THEN false
	ELSE host(inet_client_addr())::inet & netmask::inet = address::inet & netmask::inet END
LIMIT 1`

// hba says how pg_hba would let the login in, and whether that would prove its
// password. readable is false where the account may not read the rules.
func hba(ctx context.Context, conn querier, login, database string) (finding string, refused, readable bool, err error) {
	var line int
	var method string
	err = conn.QueryRow(ctx, firstRule, login, database).Scan(&line, &method)
	switch {
	case postgres.IsRefused(postgres.Clean(err), postgres.NotPermitted):
		return "", false, false, nil
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Sprintf("pg_hba has no line for %q: add one with scram-sha-256 and reload", login), true, true, nil
	case err != nil:
		return "", false, true, postgres.Clean(err)
	}
	switch method {
	case "scram-sha-256", "md5": // md5 asks for SCRAM where that is what is stored
		return "", false, true, nil
	case "reject":
		return fmt.Sprintf("pg_hba line %d rejects %q: put a scram-sha-256 line above it and reload", line, login), true, true, nil
	}
	return fmt.Sprintf("pg_hba line %d lets %q in by %s, which proves no password: %s", line, login, method, hbaFix), true, true, nil
}

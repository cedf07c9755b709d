package app

import (
	"context"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/verifier/internal/probe"
)

// hbaFix is what to do about a login that needs no password.
const hbaFix = "set its method to scram-sha-256 and reload"

// covers is whether a pg_hba line (rule) is for a login. One that does not exist
// yet will be a member of what its owner ($2) is. Regular expressions (from
// PostgreSQL 16 on) begin with a slash.
const covers = `
rules AS (SELECT *, row_number() OVER () AS n FROM pg_catalog.pg_hba_file_rules WHERE error IS NULL),
covers AS (
	SELECT n, login, login = ANY (user_name) AS named
	FROM rules, unnest($1::text[]) AS login
	WHERE user_name && ARRAY['all', login] OR EXISTS (
		SELECT FROM pg_catalog.pg_roles g WHERE '+' || g.rolname = ANY (user_name)
			AND pg_has_role(coalesce((SELECT oid FROM pg_catalog.pg_roles WHERE rolname = login), (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $2)), g.oid, 'MEMBER'))
	OR EXISTS (
		SELECT FROM unnest(user_name) AS pattern
		WHERE pattern LIKE '/%' AND current_setting('server_version_num')::int >= 160000 AND login ~ substr(pattern, 2))
)`

// firstRules are the lines that the server would take for logins ($1) to a
// database ($3) that come the way this session came: the first that fits each.
// Host names are not followed.
const firstRules = `
WITH ` + covers + `
SELECT l.login, coalesce(r.line_number, 0), coalesce(r.auth_method, '')
FROM unnest($1::text[]) WITH ORDINALITY AS l(login, ordinal) LEFT JOIN LATERAL (
	SELECT line_number, auth_method
	FROM rules JOIN covers USING (n), (SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()) AS session
	WHERE covers.login = l.login
	  AND type IN ('host', CASE WHEN ssl THEN 'hostssl' ELSE 'hostnossl' END)
	  AND (database && ARRAY['all', $3::text] OR 'sameuser' = ANY (database) AND l.login = $3)
	  AND CASE
		WHEN address = 'all' THEN true
		WHEN address IN ('samehost', 'samenet') THEN inet_client_addr() = inet_server_addr()
		WHEN netmask IS NULL OR family(netmask::inet) <> family(inet_client_addr()) THEN false
		ELSE host(inet_client_addr())::inet & netmask::inet = address::inet & netmask::inet END
	ORDER BY n LIMIT 1
) r ON true
ORDER BY ordinal`

// loneRules are the lines that name one of two logins and let it in from where
// no line lets in the other: there an application is refused after its restart.
// Which line wins is not asked, as no address to ask for is known.
const loneRules = `
WITH ` + covers + `
SELECT login, line_number, other
FROM (
	SELECT r.*, c.login, (SELECT o FROM unnest($1::text[]) AS o WHERE o <> c.login) AS other
	FROM rules r JOIN covers c USING (n)
	WHERE c.named AND auth_method <> 'reject' AND database && ARRAY['all', 'sameuser', 'samerole', $3::text]
) r
WHERE NOT EXISTS (
	SELECT FROM rules o JOIN covers c USING (n)
	WHERE c.login = r.other AND o.auth_method <> 'reject'
	  AND (o.type = r.type OR o.type = 'host' AND r.type LIKE 'host%')
	  AND o.database && ARRAY['all', 'samerole', $3::text]
	  AND (o.address = 'all' OR o.address IS NOT DISTINCT FROM r.address AND o.netmask IS NOT DISTINCT FROM r.netmask
		OR CASE WHEN o.netmask IS NULL OR r.netmask IS NULL OR family(o.netmask::inet) <> family(r.netmask::inet) THEN false
			ELSE r.address::inet & o.netmask::inet = o.address::inet & o.netmask::inet AND r.netmask::inet & o.netmask::inet = o.netmask::inet END))
ORDER BY n`

// readsRules asks without provoking an error in the server's log.
const readsRules = `SELECT has_table_privilege('pg_catalog.pg_hba_file_rules', 'select') AND has_function_privilege('pg_catalog.pg_hba_file_rules()', 'execute')`

// rule is a line of pg_hba.conf for a login: by which method, or whom it lacks.
type rule struct {
	Login string
	Line  int
	What  string
}

// checkRules refuses a login that pg_hba would let in without its password, or
// not at all, or where only its sibling. Reading the rules needs a superuser,
// unless it was granted: where the observer may not, verify itself finds out,
// for where it comes from.
func checkRules(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r *report) {
	var may bool
	if err := conn.QueryRow(ctx, readsRules).Scan(&may); err != nil {
		r.refuse("%v", probe.Explain("read the observer's rights", err))
		return
	}
	if !may {
		r.find("pg_hba.conf is not checked: observer %q may not read its rules (GRANT SELECT ON pg_hba_file_rules and EXECUTE ON FUNCTION pg_hba_file_rules() TO it)", c.Cluster.Observer.User)
		return
	}
	first, err := readRules(ctx, conn, firstRules, c)
	if err != nil {
		r.refuse("%v", probe.Explain("read pg_hba rules", err))
		return
	}
	for _, f := range first {
		checkRule(f, r)
	}
	if c.Strategy != inventory.Alternating {
		return
	}
	lone, err := readRules(ctx, conn, loneRules, c)
	if err != nil {
		r.refuse("%v", probe.Explain("compare pg_hba rules", err))
	}
	for _, l := range lone {
		r.refuse("pg_hba.conf line %d names %q, and no line lets %q in from there: name both in it, and reload", l.Line, l.Login, l.What)
	}
}

func readRules(ctx context.Context, conn *pgx.Conn, query string, c *inventory.Credential) ([]rule, error) {
	rows, err := conn.Query(ctx, query, c.Logins(), c.Role, c.LoginDatabase())
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[rule])
}

func checkRule(f rule, r *report) {
	switch {
	case f.Line == 0:
		r.refuse("pg_hba.conf has no line for %q: add one with scram-sha-256 and reload", f.Login)
	case f.What == "reject":
		r.refuse("pg_hba.conf line %d rejects %q: put one with scram-sha-256 above it and reload", f.Line, f.Login)
	case f.What != "scram-sha-256" && f.What != "md5": // md5 asks for SCRAM where that is what is stored
		r.refuse("pg_hba.conf line %d lets %q in by %s, which proves no password: %s", f.Line, f.Login, f.What, hbaFix)
	default:
		r.find("pg_hba.conf line %d asks %q for its password", f.Line, f.Login)
	}
}

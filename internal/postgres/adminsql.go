package postgres

import (
	"fmt"
	"strings"
)

// AdminSQL returns what a superuser runs once on every node, in the database
// that the admin account connects to, so that Pawl needs no superuser: the two
// accounts, the fence table, pawl.verifier, and the right to work unlogged.
// roles are the logins that Pawl is to turn (configured roles and siblings).
// For PostgreSQL 13 to 18; running it again is harmless, and needed after
// another role was configured.
func AdminSQL(admin, observer string, roles []string) string {
	accounts := []string{admin}
	if observer != "" && observer != admin {
		accounts = append(accounts, observer)
	}
	var sql strings.Builder
	sql.WriteString("-- Run as a superuser on every node, in the admin's database; then give the\n" +
		"-- accounts their passwords with \\password, which keeps them out of the log.\n")
	for _, account := range accounts {
		fmt.Fprintf(&sql, "DO $do$ BEGIN IF to_regrole(quote_ident(%[1]s)) IS NULL THEN CREATE ROLE %[2]s LOGIN NOINHERIT; END IF; END $do$;\n",
			literal(account), identifier(account))
	}
	fmt.Fprintf(&sql, "ALTER ROLE %s CREATEROLE INHERIT;\nGRANT pg_read_all_stats TO %[1]s;\n", identifier(admin))
	if len(accounts) == 2 {
		fmt.Fprintf(&sql, "ALTER ROLE %s INHERIT;\nGRANT pg_monitor TO %[1]s;\n", identifier(observer))
	}
	sql.WriteString("\n" + createFence)
	sql.WriteString(verifierFunction(roles))
	for _, account := range accounts {
		fmt.Fprintf(&sql, "GRANT USAGE ON SCHEMA pawl TO %s;\nGRANT EXECUTE ON FUNCTION pawl.verifier(name) TO %[1]s;\n", identifier(account))
	}
	fmt.Fprintf(&sql, "GRANT SELECT, INSERT, UPDATE ON pawl.fence TO %s;\n", identifier(admin))
	fmt.Fprintf(&sql, grantRoles, array(roles), literal(admin))
	fmt.Fprintf(&sql, grantQuiet, literal(admin))
	return sql.String()
}

// verifierFunction refuses other roles instead of returning nothing, which
// would read as "no password".
func verifierFunction(roles []string) string {
	return fmt.Sprintf(`
CREATE OR REPLACE FUNCTION pawl.verifier(r name) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pawl$
BEGIN
	IF r <> ALL (%s) THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I is not one that Pawl may read', r);
	END IF;
	RETURN (SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = r AND NOT rolsuper);
END $pawl$;
REVOKE ALL ON FUNCTION pawl.verifier(name) FROM PUBLIC;
`, array(roles))
}

// From PostgreSQL 16 on, CREATEROLE alone alters nobody else's password.
const grantRoles = `
DO $do$
DECLARE r name;
BEGIN
	IF current_setting('server_version_num')::int >= 160000 THEN
		FOR r IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY (%s) AND NOT rolsuper LOOP
			EXECUTE format('GRANT %%I TO %%I WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', r, %s);
		END LOOP;
	END IF;
END $do$;
`

// Before PostgreSQL 15 the right to set one parameter cannot be granted: there
// the account has the values for all it does.
const grantQuiet = `
DO $do$
DECLARE p record;
BEGIN
	FOR p IN SELECT * FROM (VALUES
		('log_statement', 'none'), ('log_min_duration_statement', '-1'), ('log_min_duration_sample', '-1'),
		('log_min_error_statement', 'panic'), ('log_transaction_sample_rate', '0'), ('track_activities', 'off'),
		('pg_stat_statements.track_utility', 'off'), ('pgaudit.log', 'none')
	) AS quiet (name, value) WHERE current_setting(name, true) IS NOT NULL LOOP
		IF current_setting('server_version_num')::int >= 150000 THEN
			EXECUTE format('GRANT SET ON PARAMETER %%s TO %%I', p.name, %[1]s);
		ELSE
			EXECUTE format('ALTER ROLE %%I SET %%s TO %%L', %[1]s, p.name, p.value);
		END IF;
	END LOOP;
END $do$;
`

func array(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = literal(name)
	}
	return "ARRAY[" + strings.Join(quoted, ", ") + "]::name[]"
}

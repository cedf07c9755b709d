package postgres

import (
	"fmt"
	"slices"
	"strings"

	"pawl.dev/internal/inventory"
)

// AdminSQL returns what a superuser runs once on every primary, in the database
// of the admin account, so that Pawl needs no superuser afterwards: the two
// accounts, the fence table, pawl.verifier, and the right to work unlogged.
// roles are the logins that Pawl is to turn (configured roles and siblings);
// where the admin is among them, both of its logins are made, and
// pawl.alter_own, by which they alter each other. For PostgreSQL 13 to 18;
// running it again is harmless, and needed after another role was configured.
func AdminSQL(admin, observer inventory.Account, roles []string) string {
	accounts := []string{admin.User}
	if observer.User != "" && observer.User != admin.User {
		accounts = append(accounts, observer.User)
	}
	own := admin.Logins()
	var sql strings.Builder
	fmt.Fprintf(&sql, "-- Run as a superuser in database %s of every primary (its standbys replicate it\n"+
		"-- and need nothing); then give the accounts their passwords with \\password,\n"+
		"-- which keeps them out of the log. It is one transaction: after an error nothing\n"+
		"-- of it has happened.\n%s%s", identifier(admin.Database), worth, beginAdminSQL)
	for _, account := range accounts {
		fmt.Fprintf(&sql, createRole, literal(account), identifier(account), "LOGIN NOINHERIT")
	}
	fmt.Fprintf(&sql, "ALTER ROLE %s CREATEROLE INHERIT;\nGRANT pg_read_all_stats, pg_signal_backend TO %[1]s;\n", identifier(admin.User))
	if len(accounts) == 2 {
		fmt.Fprintf(&sql, "ALTER ROLE %s INHERIT;\nGRANT pg_monitor TO %[1]s;\n", identifier(observer.User))
	}
	sql.WriteString("\n" + createFence)
	sql.WriteString(verifierFunction(roles))
	for _, account := range accounts {
		fmt.Fprintf(&sql, "GRANT USAGE ON SCHEMA pawl TO %s;\nGRANT EXECUTE ON FUNCTION pawl.verifier(name) TO %[1]s;\n", identifier(account))
	}
	fmt.Fprintf(&sql, "GRANT SELECT, INSERT, UPDATE ON pawl.fence TO %s;\n", identifier(admin.User))
	fmt.Fprintf(&sql, readRules, identifier(accounts[len(accounts)-1]))
	others := slices.DeleteFunc(slices.Clone(roles), func(role string) bool { return slices.Contains(own, role) })
	fmt.Fprintf(&sql, grantRoles, array(others), literal(admin.User))
	for _, login := range own {
		if login != admin.User {
			sql.WriteString(pair(admin.User, login, own))
		}
	}
	fmt.Fprintf(&sql, grantQuiet, array(own), literal(admin.User))
	sql.WriteString("COMMIT;\n")
	return sql.String()
}

// worth is what somebody gains who steals the admin's password.
const worth = `--
-- What the admin account can do, and so can whoever has its password:
--   PostgreSQL 13 to 15: nearly all that a superuser can. CREATEROLE gives itself any
--     role but a superuser's, and pg_execute_server_program runs programs on the server.
--   PostgreSQL 16 to 18: act as each role that is named below, change its password, and
--     create roles. It cannot give itself any other role.
--   Every version: end sessions of all but superusers, read everybody's statements, and
--     read the verifiers of the roles that are named below.
-- Pawl logs in as the admin to this database alone. Use one that no application owns.
`

// beginAdminSQL keeps what the owner of the database may have set there from
// changing what a superuser's statements mean.
const beginAdminSQL = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL role = none;
SET LOCAL standard_conforming_strings = on;
SET LOCAL quote_all_identifiers = off;
SET LOCAL transform_null_equals = off;
SET LOCAL array_nulls = on;
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = 0;
SET LOCAL client_min_messages = warning;
`

const createRole = "DO $do$ BEGIN IF to_regrole(quote_ident(%[1]s)) IS NULL THEN CREATE ROLE %[2]s %[3]s; END IF; END $do$;\n"

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

// readRules lets preflight see which line of pg_hba.conf a login would meet.
const readRules = `GRANT SELECT ON pg_catalog.pg_hba_file_rules TO %[1]s;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO %[1]s;
`

// pair is the admin's second login, and how the two alter each other: from
// PostgreSQL 16 on no grant can say that. It is a procedure, since what is
// called by CALL no extension takes for a query to be explained or counted; and
// what fails in it is raised anew, since the server's log would quote the
// statement that failed.
func pair(admin, sibling string, own []string) string {
	return "\n" + fmt.Sprintf(createRole, literal(sibling), identifier(sibling), "NOLOGIN INHERIT") +
		fmt.Sprintf(`GRANT %[1]s TO %[2]s;
ALTER ROLE %[2]s SET role TO %[1]s;
DO $do$
DECLARE r record;
BEGIN
	SELECT rolconnlimit, coalesce(rolvaliduntil, 'infinity') AS until INTO r FROM pg_catalog.pg_roles WHERE rolname = %[3]s;
	EXECUTE format('ALTER ROLE %%I CONNECTION LIMIT %%s VALID UNTIL %%L', %[4]s, r.rolconnlimit, r.until);
END $do$;

-- verifier: a SCRAM verifier, NULL for no password, 'keep' for the one there is.
CREATE OR REPLACE PROCEDURE pawl.alter_own(login name, may boolean, verifier text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pawl$
DECLARE
	statement text := format('ALTER ROLE %%I ', login) || CASE WHEN may THEN 'LOGIN' ELSE 'NOLOGIN' END;
BEGIN
	IF login <> ALL (%[5]s) OR may IS NULL THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I is not one of Pawl''s own', login);
	END IF;
	IF verifier IS NULL THEN
		statement := statement || ' PASSWORD NULL';
	ELSIF verifier ~ '^SCRAM-SHA-256[$][0-9]+:[A-Za-z0-9+/=]+[$][A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$' THEN
		statement := statement || format(' PASSWORD %%L', verifier);
	ELSIF verifier <> 'keep' THEN
		RAISE insufficient_privilege USING MESSAGE = 'not a SCRAM-SHA-256 verifier';
	END IF;
	EXECUTE statement;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM;
END $pawl$;
REVOKE ALL ON PROCEDURE pawl.alter_own(name, boolean, text) FROM PUBLIC;
GRANT EXECUTE ON PROCEDURE pawl.alter_own(name, boolean, text) TO %[1]s;
`, identifier(admin), identifier(sibling), literal(admin), literal(sibling), array(own))
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
// each login has the values for all it does.
const grantQuiet = `
DO $do$
DECLARE
	p record;
	login name;
BEGIN
	FOR p IN SELECT * FROM (VALUES
		('log_statement', 'none'), ('log_min_duration_statement', '-1'), ('log_min_duration_sample', '-1'),
		('log_min_error_statement', 'panic'), ('log_transaction_sample_rate', '0'), ('track_activities', 'off'),
		('pg_stat_statements.track_utility', 'off'), ('pgaudit.log', 'none')
	) AS quiet (name, value) WHERE current_setting(name, true) IS NOT NULL LOOP
		IF current_setting('server_version_num')::int >= 150000 THEN
			EXECUTE format('GRANT SET ON PARAMETER %%s TO %%I', p.name, %[2]s);
		ELSE
			FOREACH login IN ARRAY %[1]s LOOP
				EXECUTE format('ALTER ROLE %%I SET %%s TO %%L', login, p.name, p.value);
			END LOOP;
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

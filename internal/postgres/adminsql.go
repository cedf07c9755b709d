package postgres

import (
	"fmt"
	"strings"

	"pawl.dev/internal/inventory"
)

// AdminSQL returns what a superuser runs once on every primary, in the database
// of the admin account, so that Pawl needs no superuser afterwards: the two
// accounts, the fence table, pawl.verifier, the procedures by which the admin
// alters the roles and no others, and the right to work unlogged. roles are the
// logins that Pawl rotates (configured roles and siblings); if the admin is among
// them, both of its logins are made. For PostgreSQL 13 to 18; running it again is
// harmless, and needed after another role was configured. What earlier versions
// gave the admin beyond that, it takes away. inPlace are those of the roles that are no
// second login, though the name may be one's.
func AdminSQL(admin, observer inventory.Account, roles []string, inPlace ...string) string {
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
	fmt.Fprintf(&sql, "ALTER ROLE %s INHERIT;\nGRANT pg_read_all_stats, pg_signal_backend TO %[1]s;\n", identifier(admin.User))
	fmt.Fprintf(&sql, grantReserved, identifier(admin.User))
	if len(accounts) == 2 {
		fmt.Fprintf(&sql, "ALTER ROLE %s INHERIT;\nGRANT pg_monitor TO %[1]s;\n", identifier(observer.User))
	}
	sql.WriteString("\n" + createFence + ownedBySuperuser + verifierFunction(roles) + procedures(own, roles, inPlace) + noneOfOthers + ownersAlone)
	for _, account := range accounts {
		fmt.Fprintf(&sql, "GRANT USAGE ON SCHEMA pawl TO %s;\nGRANT EXECUTE ON FUNCTION pawl.verifier(name) TO %[1]s;\n", identifier(account))
	}
	fmt.Fprintf(&sql, "GRANT SELECT, INSERT, UPDATE ON pawl.fence TO %s;\n", identifier(admin.User))
	fmt.Fprintf(&sql, callProcedures, identifier(admin.User))
	fmt.Fprintf(&sql, readRules, identifier(accounts[len(accounts)-1]))
	for _, login := range own {
		if login != admin.User {
			sql.WriteString(pair(admin.User, login))
		}
	}
	for _, login := range own {
		fmt.Fprintf(&sql, "ALTER ROLE %s NOCREATEROLE NOCREATEDB;\n", identifier(login))
	}
	fmt.Fprintf(&sql, revokeWide, array(own), literal(admin.User), pairs(own, roles))
	fmt.Fprintf(&sql, grantQuiet, array(own), literal(admin.User))
	sql.WriteString("COMMIT;\n")
	return sql.String()
}

// worth is what somebody gains who steals the admin's password.
const worth = `--
-- What the admin account can do, and so can whoever has its password, on PostgreSQL 13 to 18:
--   let each role that is named below log in or not, and set its password, so be it;
--   make the second logins named below, and logins that expire within a minute, as members of these roles;
--   end sessions of all but superusers, read everybody's statements, and read the verifiers of these roles.
-- It can make no other role, alter no other role, and give nobody a role, but what one of these roles
-- may do itself (up to PostgreSQL 15: let others act as it). To a role that is, or may act
-- as, a superuser, or that can create roles, replicate or reach the server's files, it gives no password.
-- Earlier versions of Pawl gave it CREATEROLE, which is taken from it here, with every membership that
-- it does not need. That was worth more:
--   PostgreSQL 13 to 15: nearly all that a superuser can. CREATEROLE gives itself any
--     role but a superuser's, and pg_execute_server_program runs programs on the server.
--   PostgreSQL 16 to 18: act as each role that is named below, and create roles.
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

// grantReserved has an emergency find a connection slot, whoever takes all the others.
const grantReserved = `DO $do$ BEGIN
	IF current_setting('server_version_num')::int >= 160000 THEN GRANT pg_use_reserved_connections TO %s; END IF;
END $do$;
`

// ownedBySuperuser leaves nothing in the schema that somebody else has put there, for
// it would run with a superuser's rights, or in the place of what Pawl calls. A table
// that is not as this script makes it may have rules, triggers or expressions on it: its
// rows are copied, and it goes. Only what is locked is judged: until then its owner can
// put something else in its place.
const ownedBySuperuser = `DO $do$
DECLARE
	old oid;
BEGIN
	ALTER SCHEMA pawl OWNER TO CURRENT_USER;
	LOCK TABLE ONLY pawl.fence IN ACCESS SHARE MODE;
	old := to_regclass('pawl.fence');
	IF (SELECT relkind FROM pg_catalog.pg_class WHERE oid = old) IS DISTINCT FROM 'r' THEN
		RAISE EXCEPTION 'pawl.fence is no table: look who made it, drop it, and run this again';
	END IF;
	IF EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles o ON o.oid = c.relowner
			WHERE c.oid = old AND o.rolsuper AND NOT relhasrules AND NOT relhastriggers AND NOT relrowsecurity AND NOT relhassubclass
			AND (SELECT count(*) FROM pg_catalog.pg_index WHERE indrelid = old) = 1 AND EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = old AND contype = 'p')
			AND NOT EXISTS (SELECT FROM pg_catalog.pg_statistic_ext WHERE stxrelid = old)
			AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = old AND contype NOT IN ('p', 'n'))) THEN
		RETURN;
	END IF;
	LOCK TABLE ONLY pawl.fence IN ACCESS EXCLUSIVE MODE;
	IF to_regclass('pawl.fence') IS DISTINCT FROM old
		OR (SELECT array_agg(attname || ' ' || atttypid::regtype || attgenerated::text ORDER BY attnum) FROM pg_catalog.pg_attribute WHERE attrelid = old AND attnum > 0 AND NOT attisdropped)
			IS DISTINCT FROM ARRAY['role name', 'generation bigint', 'phase integer', 'rotation text', 'updated_at timestamp with time zone', 'idle_since timestamp with time zone', 'looked_at timestamp with time zone']
		OR EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = old AND relkind <> 'r') THEN
		RAISE EXCEPTION 'pawl.fence has not the columns that Pawl gave it: look who made it, drop it, and run this again';
	END IF;
	CREATE TABLE pawl.fence_anew (role name PRIMARY KEY, generation bigint NOT NULL, phase int NOT NULL, rotation text NOT NULL,
		updated_at timestamptz NOT NULL, idle_since timestamptz, looked_at timestamptz);
	INSERT INTO pawl.fence_anew SELECT role, generation, phase, rotation, updated_at, idle_since, looked_at FROM ONLY pawl.fence;
	DROP TABLE pawl.fence;
	ALTER TABLE pawl.fence_anew RENAME TO fence;
	ALTER INDEX pawl.fence_anew_pkey RENAME TO fence_pkey;
END $do$;
`

// strangers are the routines in the schema that no superuser made, as one text.
const strangers = `SELECT string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.oid) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_roles o ON o.oid = p.proowner
		WHERE p.pronamespace = to_regnamespace('pawl') AND NOT o.rolsuper`

// noneOfOthers is run when Pawl's own procedures are there. It does not see what
// another transaction has not committed: see Health.Strangers.
const noneOfOthers = `DO $do$
DECLARE
	theirs text := (` + strangers + `);
BEGIN
	IF theirs IS NOT NULL THEN
		RAISE EXCEPTION 'schema pawl holds what no superuser made, and what could be called in the place of Pawl''s own: %. Look who made it, drop it, and run this again', theirs;
	END IF;
END $do$;
`

// ownersAlone takes what others may do in the schema, by default privileges or by who
// owned it before. What the accounts need is granted after it.
const ownersAlone = `DO $do$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT DISTINCT o.what, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
		FROM (SELECT 'SCHEMA pawl' AS what, nspowner AS owner, coalesce(nspacl, acldefault('n', nspowner)) AS acl FROM pg_catalog.pg_namespace WHERE nspname = 'pawl'
			UNION ALL SELECT 'TABLE pawl.fence', relowner, coalesce(relacl, acldefault('r', relowner)) FROM pg_catalog.pg_class WHERE oid = 'pawl.fence'::regclass
			UNION ALL SELECT format('ROUTINE %s', oid::regprocedure), proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_catalog.pg_proc WHERE pronamespace = 'pawl'::regnamespace) AS o,
			aclexplode(o.acl) AS a WHERE a.grantee <> o.owner LOOP
		EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', r.what, r.grantee);
	END LOOP;
END $do$;
`

// verifierFunction refuses other roles instead of returning nothing, which
// would read as "no password".
func verifierFunction(roles []string) string {
	return fmt.Sprintf(`
DROP FUNCTION IF EXISTS pawl.verifier(name); -- with whoever owned it, and might call it
CREATE FUNCTION pawl.verifier(r name) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pawl$
BEGIN
	IF r <> ALL (%s) THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I is not one that Pawl may read', r);
	END IF;
	-- What is stored for MD5 is as good as the password: of a role that is more than an
	-- application only that there is one.
	RETURN (SELECT CASE WHEN rolpassword LIKE 'md5%%' AND pawl.refusal(r, true) IS NOT NULL THEN 'md5' ELSE rolpassword END
		FROM pg_catalog.pg_authid WHERE rolname = r AND NOT rolsuper);
END $pawl$;
`, array(roles))
}

// readRules lets preflight see which line of pg_hba.conf a login would meet.
const readRules = `GRANT SELECT ON pg_catalog.pg_hba_file_rules TO %[1]s;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_hba_file_rules() TO %[1]s;
`

// pair is the admin's second login.
func pair(admin, sibling string) string {
	return "\n" + fmt.Sprintf(createRole, literal(sibling), identifier(sibling), "NOLOGIN INHERIT") +
		fmt.Sprintf(`GRANT %[1]s TO %[2]s;
ALTER ROLE %[2]s SET role TO %[1]s;
DO $do$
DECLARE r record;
BEGIN
	SELECT rolconnlimit, coalesce(rolvaliduntil, 'infinity') AS until INTO r FROM pg_catalog.pg_roles WHERE rolname = %[3]s;
	EXECUTE format('ALTER ROLE %%I CONNECTION LIMIT %%s VALID UNTIL %%L', %[4]s, r.rolconnlimit, r.until);
END $do$;
`, identifier(admin), identifier(sibling), literal(admin), literal(sibling))
}

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

package postgres

import (
	"fmt"
	"slices"
	"strings"

	"pawl.dev/internal/inventory"
)

// procedures returns what the admin may do to the roles that are named, and no
// others. They are procedures, since what is called by CALL no extension takes for
// a query to be explained or counted. What fails in them is raised anew, and
// log_error_verbosity keeps the context of what cannot be caught out of the
// server's log: either would quote the statement, verifier and all.
//
// Each is dropped first: CREATE OR REPLACE would keep the owner and the grants of
// one that somebody else has put there.
func procedures(own, roles, inPlace []string) string {
	return dropProcedures + fmt.Sprintf(refusalFunction, array(roles), pairs(own, roles), array(inPlace), array(own)) +
		fmt.Sprintf(alterLogin, verifierPattern) + fmt.Sprintf(createSibling, pairs(own, roles)) + fmt.Sprintf(restoreSetting, pairs(own, roles)) + fmt.Sprintf(lendLogin, lentPattern, array(own), verifierPattern) + fmt.Sprintf(takeBack, lentPattern)
}

const callProcedures = `GRANT EXECUTE ON FUNCTION pawl.refusal(name, boolean) TO %[1]s;
GRANT EXECUTE ON PROCEDURE pawl.alter_login(name, boolean, text), pawl.create_sibling(name, name, jsonb), pawl.restore_setting(name, text, text, text),
	pawl.lend_login(name, name, text), pawl.take_back(name) TO %[1]s;
`

// pairs are the second logins that may be made, each with its owner. Those of the
// admin itself are made by the script.
func pairs(own, roles []string) string {
	rows := []string{"(NULL::name, NULL::name)"}
	for _, owner := range roles {
		if sibling := (&inventory.Credential{Role: owner}).Sibling(); slices.Contains(roles, sibling) && !slices.Contains(own, owner) {
			rows = append(rows, fmt.Sprintf("(%s, %s)", literal(sibling), literal(owner)))
		}
	}
	return strings.Join(rows, ", ")
}

const (
	verifierPattern = `'^SCRAM-SHA-256[$][0-9]{1,7}:[A-Za-z0-9+/]{1,128}=*[$][A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$'`
	// lentPattern are those of RollbackPrepared.
	lentPattern = `'^pawl_prepared_[a-z2-7]{12}$'`
)

const dropProcedures = `
DROP PROCEDURE IF EXISTS pawl.alter_own(name, boolean, text); -- of earlier versions
DROP PROCEDURE IF EXISTS pawl.alter_login(name, boolean, text);
DROP PROCEDURE IF EXISTS pawl.create_sibling(name, name, jsonb);
DROP PROCEDURE IF EXISTS pawl.restore_setting(name, text, text, text);
DROP PROCEDURE IF EXISTS pawl.lend_login(name, name, text);
DROP PROCEDURE IF EXISTS pawl.take_back(name);
DROP FUNCTION IF EXISTS pawl.refusal(name, boolean);
`

// refusalFunction is asked at each call, for a role may have become more than it
// was. Who holds the admin's password must not become more than the applications
// are, nor somebody else's role that only has the name of a second login; but their
// logins may always be refused, as an emergency does.
const refusalFunction = `
-- Why the role may not be altered, or not be given a password or a login: NULL if it may.
CREATE FUNCTION pawl.refusal(login name, gives boolean) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $pawl$
DECLARE
	more text;
BEGIN
	-- An older snapshot would show what the role was, not what it is.
	IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
		RETURN 'is altered in a transaction of READ COMMITTED alone';
	END IF;
	IF (login = ANY (%s)) IS NOT TRUE THEN
		RETURN 'is not one that Pawl was given: run what ` + "`pawl init --admin-sql`" + ` prints';
	END IF;
	SELECT format('exists and is no member of %%I: drop it, or grant it that role and SET role', p.owner) INTO more
		FROM (VALUES %s) AS p (sibling, owner) JOIN pg_catalog.pg_roles s ON s.rolname = p.sibling LEFT JOIN pg_catalog.pg_roles o ON o.rolname = p.owner
		WHERE p.sibling = login AND login <> ALL (%s) AND gives IS NOT FALSE AND NOT coalesce(pg_has_role(s.oid, o.oid, 'MEMBER'), false);
	IF more IS NOT NULL THEN
		RETURN more;
	END IF;
	SELECT CASE WHEN p.rolsuper THEN 'SUPERUSER' WHEN p.rolcreaterole THEN 'CREATEROLE' WHEN p.rolreplication THEN 'REPLICATION' ELSE p.rolname END
			|| CASE WHEN p.oid = l.oid OR starts_with(p.rolname, 'pg_') THEN '' ELSE format(' through %%I', p.rolname) END INTO more
		FROM pg_catalog.pg_roles l JOIN pg_catalog.pg_roles p ON pg_has_role(l.oid, p.oid, 'MEMBER')
		WHERE l.rolname = login AND (l.rolsuper AND p.oid = l.oid OR gives IS NOT FALSE AND login <> ALL (%s)
			AND (p.rolsuper OR p.rolcreaterole OR p.rolreplication OR p.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')))
		ORDER BY p.oid <> l.oid, p.rolname LIMIT 1;
	RETURN 'has ' || more || ', and Pawl''s admin gives no password to such a role. Fix: take that from it';
END $pawl$;
`

const alterLogin = `
-- verifier: a SCRAM verifier, NULL for no password, 'keep' for the one there is.
CREATE PROCEDURE pawl.alter_login(login name, may boolean, verifier text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET log_error_verbosity = terse AS $pawl$
DECLARE
	statement text := format('ALTER ROLE %%I ', login) || CASE WHEN may THEN 'LOGIN' ELSE 'NOLOGIN' END;
	refused text := pawl.refusal(login, may OR coalesce(verifier <> 'keep', false));
BEGIN
	IF verifier IS NULL THEN
		statement := statement || ' PASSWORD NULL';
	ELSIF verifier ~ %s THEN
		statement := statement || format(' PASSWORD %%L', verifier);
	ELSIF verifier <> 'keep' THEN
		refused := 'can be given a SCRAM-SHA-256 verifier alone';
	END IF;
	IF may IS NULL OR refused IS NOT NULL THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I %%s', login, coalesce(refused, 'may log in, or may not'));
	END IF;
	EXECUTE statement;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM;
END $pawl$;
`

// createSibling gives the second login no setting but what its owner has, or
// could set for itself. It writes them as the catalogue holds them: there is no ALTER
// ROLE … SET role in a function that has other rights than its caller.
const createSibling = `
-- settings: [{"database": "", "name": "search_path", "value": "\"a b\", public"}]
CREATE PROCEDURE pawl.create_sibling(login name, owner name, settings jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = iso SET timezone = 'UTC' AS $pawl$
DECLARE
	o record;
	s record;
	refused text := pawl.refusal(owner, true);
	given jsonb := coalesce(settings, '[]');
BEGIN
	IF refused IS NOT NULL OR ((login, owner) IN (VALUES %s)) IS NOT TRUE THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I %%s', owner, coalesce(refused, format('has no second login %%I', login)));
	END IF;
	SELECT oid, rolconnlimit, rolvaliduntil INTO STRICT o FROM pg_catalog.pg_roles WHERE rolname = owner;
	EXECUTE format('CREATE ROLE %%I NOLOGIN INHERIT CONNECTION LIMIT %%s IN ROLE %%I', login, o.rolconnlimit, owner)
		|| CASE WHEN o.rolvaliduntil IS NULL THEN '' ELSE format(' VALID UNTIL %%L', o.rolvaliduntil) END;
	FOR s IN SELECT g.* FROM jsonb_to_recordset(given) AS g (database text, name text, value text)
		WHERE g.database IS NULL OR g.value IS NULL
			OR g.database <> '' AND NOT EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.datname = g.database)
			OR NOT EXISTS (SELECT FROM pg_catalog.pg_settings p WHERE p.name = g.name AND p.context = 'user')
			AND NOT EXISTS (SELECT FROM pg_catalog.pg_db_role_setting h LEFT JOIN pg_catalog.pg_database d ON d.oid = h.setdatabase
				WHERE h.setrole = o.oid AND coalesce(d.datname, '') = g.database AND g.name || '=' || g.value = ANY (h.setconfig)) LOOP
		RAISE insufficient_privilege USING MESSAGE = format('setting %%s is none that role %%I has', s.name, owner);
	END LOOP;
	IF NOT given @> '[{"database": "", "name": "role"}]' THEN
		given := given || jsonb_build_object('database', '', 'name', 'role', 'value', owner);
	END IF;
	INSERT INTO pg_catalog.pg_db_role_setting (setdatabase, setrole, setconfig)
		SELECT coalesce((SELECT oid FROM pg_catalog.pg_database WHERE datname = g.database), 0), (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = login),
			array_agg(g.name || '=' || g.value)
		FROM jsonb_to_recordset(given) AS g (database text, name text, value text) GROUP BY g.database;
END $pawl$;
`

// restoreSetting changes what the login could change itself, and that a second login
// acts as its owner.
const restoreSetting = `
-- value: as the catalogue holds it; NULL for none.
CREATE PROCEDURE pawl.restore_setting(login name, in_database text, parameter text, value text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET log_error_verbosity = terse AS $pawl$
DECLARE
	refused text := pawl.refusal(login, true); -- what a more powerful role finds decides what it does
	pair boolean := EXISTS (SELECT FROM (VALUES %s) AS p (sibling, owner) WHERE sibling = login AND (value IS NULL OR owner <> value));
	role oid;
	db oid := 0;
BEGIN
	IF refused IS NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_settings p WHERE p.name = parameter AND p.context = 'user')
		AND (parameter = 'role' AND in_database = '' AND NOT pair AND (value IS NULL OR EXISTS (SELECT FROM (VALUES %[1]s) AS p (sibling, owner) WHERE sibling = login AND owner = value))) IS NOT TRUE THEN
		refused := format('has no setting %%s that it could change itself', parameter);
	END IF;
	IF refused IS NOT NULL THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I %%s', login, refused);
	END IF;
	SELECT oid INTO STRICT role FROM pg_catalog.pg_roles WHERE rolname = login;
	IF in_database <> '' THEN
		SELECT oid INTO STRICT db FROM pg_catalog.pg_database WHERE datname = in_database;
	END IF;
	UPDATE pg_catalog.pg_db_role_setting SET setconfig = array(SELECT c FROM unnest(setconfig) AS c WHERE split_part(c, '=', 1) <> parameter)
		|| CASE WHEN value IS NULL THEN ARRAY[]::text[] ELSE ARRAY[parameter || '=' || value] END
		WHERE setrole = role AND setdatabase = db;
	IF NOT FOUND AND value IS NOT NULL THEN
		INSERT INTO pg_catalog.pg_db_role_setting (setdatabase, setrole, setconfig) VALUES (db, role, ARRAY[parameter || '=' || value]);
	END IF;
	DELETE FROM pg_catalog.pg_db_role_setting WHERE setrole = role AND setdatabase = db AND setconfig = ARRAY[]::text[];
END $pawl$;
`

// lendLogin makes the login by which a prepared transaction is rolled back. It is
// a member of its owner, so no member of the admin is made.
const lendLogin = `
CREATE PROCEDURE pawl.lend_login(login name, owner name, verifier text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET datestyle = iso SET timezone = 'UTC' SET log_error_verbosity = terse AS $pawl$
DECLARE
	refused text := pawl.refusal(owner, true);
BEGIN
	IF refused IS NOT NULL OR (login ~ %s AND owner <> ALL (%s) AND verifier ~ %s) IS NOT TRUE THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I %%s', owner, coalesce(refused, 'is lent no such login'));
	END IF;
	EXECUTE format('CREATE ROLE %%I LOGIN CONNECTION LIMIT 1 VALID UNTIL %%L IN ROLE %%I PASSWORD %%L', login, clock_timestamp() + interval '1 minute', owner, verifier);
EXCEPTION WHEN query_canceled OR OTHERS THEN
	RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM;
END $pawl$;
`

const takeBack = `
CREATE PROCEDURE pawl.take_back(login name)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pawl$
BEGIN
	IF (login ~ %s) IS NOT TRUE THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I is not one that was lent', login);
	END IF;
	-- A session outlives its role, and then nobody can tell whose it is.
	PERFORM pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE usename = login;
	EXECUTE format('DROP ROLE IF EXISTS %%I', login);
END $pawl$;
`

// revokeWide takes every membership of the admin's logins that this script does not
// grant: earlier versions gave ADMIN OPTION on each role, and up to PostgreSQL 15
// CREATEROLE let the admin join any. Memberships that hang on these go with them, but
// for those of second logins, which are granted anew. Whoever runs the script reads
// what is gone.
const revokeWide = `DO $do$
DECLARE
	own oid[] := ARRAY(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY (%[1]s));
	admin oid := quote_ident(%[2]s)::regrole;
	had text[] := ARRAY(SELECT roleid::regrole || CASE WHEN admin_option THEN ' WITH ADMIN OPTION' ELSE '' END || ' from ' || member::regrole FROM pg_catalog.pg_auth_members);
	traceable boolean := current_setting('server_version_num')::int >= 160000;
	m record;
BEGIN
	IF traceable THEN
		FOR m IN SELECT roleid::regrole AS role, member::regrole AS member, inherit_option, set_option FROM pg_catalog.pg_auth_members
			WHERE grantor = ANY (own) AND NOT admin_option
				AND (SELECT (second.rolname, owner.rolname) IN (VALUES %[3]s) FROM pg_catalog.pg_roles second, pg_catalog.pg_roles owner WHERE second.oid = member AND owner.oid = roleid) LOOP
			EXECUTE format('GRANT %%s TO %%s WITH INHERIT %%s, SET %%s', m.role, m.member, m.inherit_option::text, m.set_option::text);
		END LOOP;
	END IF;
	LOOP
		SELECT g.*, r.needed INTO m FROM pg_catalog.pg_auth_members g, LATERAL (SELECT CASE WHEN g.member = admin
				THEN g.roleid::regrole::text IN ('pg_read_all_stats', 'pg_signal_backend', 'pg_use_reserved_connections') ELSE g.roleid = admin END) AS r (needed)
			WHERE g.member = ANY (own) AND (g.admin_option OR NOT r.needed) LIMIT 1;
		EXIT WHEN NOT FOUND;
		EXECUTE format('REVOKE %%s%%s FROM %%s', CASE WHEN m.needed THEN 'ADMIN OPTION FOR ' ELSE '' END, m.roleid::regrole, m.member::regrole)
			|| CASE WHEN traceable THEN format(' GRANTED BY %%s', m.grantor::regrole) ELSE '' END || ' CASCADE';
		IF EXISTS (SELECT FROM pg_catalog.pg_auth_members a WHERE (a.roleid, a.member, a.grantor) = (m.roleid, m.member, m.grantor) AND (a.admin_option OR NOT m.needed)) THEN
			RAISE EXCEPTION 'role %% is still a member of %%, by a grant of %%: revoke that, and run this again', m.member::regrole, m.roleid::regrole, m.grantor::regrole;
		END IF;
	END LOOP;
	had := ARRAY(SELECT DISTINCT h FROM unnest(had) AS h EXCEPT
		SELECT roleid::regrole || CASE WHEN admin_option THEN ' WITH ADMIN OPTION' ELSE '' END || ' from ' || member::regrole FROM pg_catalog.pg_auth_members ORDER BY 1);
	IF had <> '{}' THEN
		RAISE WARNING 'revoked what Pawl''s admin had and does not need, and what hung on it: %%', array_to_string(had, ', ');
	END IF;
END $do$;
`

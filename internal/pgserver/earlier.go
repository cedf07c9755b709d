package pgserver

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Earlier turns what postgres.AdminSQL has given an admin into what versions before
// its procedures gave: CREATEROLE, from PostgreSQL 16 on ADMIN OPTION on the roles,
// and pawl.alter_own for the two logins of an admin that Pawl rotates.
func Earlier(admin string, roles []string) string {
	names, others := make([]string, len(roles)), []string{"NULL"}
	own := false
	for i, role := range roles {
		names[i] = "'" + strings.ReplaceAll(role, "'", "''") + "'"
		if role == admin {
			own = true
		} else if role != admin+"_b" {
			others = append(others, names[i])
		}
	}
	quoted := pgx.Identifier{admin}.Sanitize()
	sql := fmt.Sprintf(`SET search_path = pg_catalog, pg_temp;
DROP PROCEDURE pawl.alter_login(name, boolean, text);
DROP PROCEDURE pawl.create_sibling(name, name, jsonb);
DROP PROCEDURE pawl.restore_setting(name, text, text, text);
DROP PROCEDURE pawl.lend_login(name, name, text);
DROP PROCEDURE pawl.take_back(name);
DROP FUNCTION pawl.refusal(name, boolean);
ALTER ROLE %s CREATEROLE;
DO $do$
DECLARE r name;
BEGIN
	IF current_setting('server_version_num')::int >= 160000 THEN
		FOR r IN SELECT rolname FROM pg_roles WHERE rolname IN (%s) AND NOT rolsuper LOOP
			EXECUTE format('GRANT %%I TO %%I WITH ADMIN TRUE, INHERIT FALSE, SET FALSE', r, '%s');
		END LOOP;
	END IF;
END $do$;
CREATE OR REPLACE FUNCTION pawl.verifier(r name) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pawl$
BEGIN
	IF r <> ALL (ARRAY[%s]::name[]) THEN
		RAISE insufficient_privilege USING MESSAGE = format('role %%I is not one that Pawl may read', r);
	END IF;
	RETURN (SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = r AND NOT rolsuper);
END $pawl$;
`, quoted, strings.Join(others, ", "), strings.ReplaceAll(admin, "'", "''"), strings.Join(names, ", "))
	if !own {
		return sql
	}
	return sql + fmt.Sprintf(`CREATE OR REPLACE PROCEDURE pawl.alter_own(login name, may boolean, verifier text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $pawl$
BEGIN
	IF login <> ALL (ARRAY[%s]::name[]) OR may IS NULL THEN
		RAISE insufficient_privilege;
	END IF;
	EXECUTE format('ALTER ROLE %%I ', login) || CASE WHEN may THEN 'LOGIN' ELSE 'NOLOGIN' END || CASE WHEN verifier = 'keep' THEN '' ELSE format(' PASSWORD %%L', verifier) END;
EXCEPTION WHEN query_canceled OR OTHERS THEN
	RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = SQLERRM;
END $pawl$;
REVOKE ALL ON PROCEDURE pawl.alter_own(name, boolean, text) FROM PUBLIC;
GRANT EXECUTE ON PROCEDURE pawl.alter_own(name, boolean, text) TO %s;
`, strings.Join(names, ", "), quoted)
}

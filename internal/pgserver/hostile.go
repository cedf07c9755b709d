package pgserver

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// HostileCall marks a line of the server's log: something of the schema hostile
// was called. It names what, and by whom.
const HostileCall = "HOSTILE CALL"

// Hostile makes the database that conn is connected to what its owner can make of
// it: a schema with a function, operator, type and view of every name that
// pg_catalog has, first in everybody's search_path, each of which tells the log
// that it was called; and a value of its own for every setting that an owner may
// set. conn must be a superuser's, who stands for the owner here.
func Hostile(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{hostileSchema, hostileFunctions, hostileOperators, hostileTypes, hostileViews, hostileSettings} {
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("hostile database: %w", err)
		}
	}
	return nil
}

var hostileCall = regexp.MustCompile(HostileCall + ` (\S+) by (\S+)`)

// HostileCalls lists what Pawl's sessions have called of the schema hostile, from
// the server's log.
func (s *Server) HostileCalls() (calls []string, err error) {
	text, err := os.ReadFile(s.LogFile)
	if err != nil {
		return nil, err
	}
	for _, m := range hostileCall.FindAllStringSubmatch(string(text), -1) {
		if by := m[2]; strings.HasPrefix(by, "pawl/") {
			calls = append(calls, m[1]+" by "+by)
		}
	}
	slices.Sort(calls)
	return slices.Compact(calls), nil
}

var entered = regexp.MustCompile(`connection authorized: user=(.+?) database=(.+?)(?: application_name=.*| SSL enabled .*)?\n`)

// Entered lists who has logged in to the database, from the log of a server with
// log_connections on.
func (s *Server) Entered(database string) (users []string, err error) {
	text, err := os.ReadFile(s.LogFile)
	if err != nil {
		return nil, err
	}
	for _, m := range entered.FindAllStringSubmatch(string(text), -1) {
		if m[2] == database {
			users = append(users, m[1])
		}
	}
	slices.Sort(users)
	return slices.Compact(users), nil
}

// A call is told by RAISE LOG, which is neither undone with its transaction nor
// refused in one that may not write. The application_name tells whose it is.
const hostileSchema = `
CREATE SCHEMA hostile;
GRANT USAGE ON SCHEMA hostile TO PUBLIC;
CREATE FUNCTION hostile.tell(what text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $f$
BEGIN RAISE LOG 'HOSTILE CALL % by %/%', replace(what, ' ', '_'), current_setting('application_name'), session_user; END $f$;`

// What cannot be made (of internal types, say) is left out.
const hostileFunctions = `
DO $do$
DECLARE f record;
BEGIN
	FOR f IN SELECT p.proname, p.oid, pg_get_function_identity_arguments(p.oid) AS args, pg_get_function_result(p.oid) AS result
		FROM pg_proc p WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND pg_get_function_result(p.oid) !~ '^(internal|trigger|event_trigger|.*_handler)$' LOOP
		BEGIN
			EXECUTE format('CREATE FUNCTION hostile.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', f.proname, f.args, f.result,
				format('BEGIN PERFORM hostile.tell(%L); RETURN%s; END', f.proname, CASE WHEN f.result ~ '^(SETOF|TABLE)' OR f.result = 'void' THEN '' ELSE ' NULL' END));
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
END $do$;`

const hostileOperators = `
DO $do$
DECLARE o record; n int := 0;
BEGIN
	FOR o IN SELECT oprname, format_type(oprleft, NULL) AS l, format_type(oprright, NULL) AS r, format_type(oprresult, NULL) AS result, oprleft
		FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprright <> 0 LOOP
		BEGIN
			n := n + 1;
			IF o.oprleft = 0 THEN
				EXECUTE format('CREATE FUNCTION hostile.o%s(%s) RETURNS %s LANGUAGE plpgsql AS %L', n, o.r, o.result, format('BEGIN PERFORM hostile.tell(%L); RETURN NULL; END', 'operator' || o.oprname));
				EXECUTE format('CREATE OPERATOR hostile.%s (RIGHTARG = %s, FUNCTION = hostile.o%s)', o.oprname, o.r, n);
			ELSE
				EXECUTE format('CREATE FUNCTION hostile.o%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', n, o.l, o.r, o.result, format('BEGIN PERFORM hostile.tell(%L); RETURN NULL; END', 'operator' || o.oprname));
				EXECUTE format('CREATE OPERATOR hostile.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = hostile.o%s)', o.oprname, o.l, o.r, n);
			END IF;
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
END $do$;`

// A cast to a type by its bare name meets a domain whose check tells.
const hostileTypes = `
CREATE FUNCTION hostile.checks(what text) RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN PERFORM hostile.tell(what); RETURN true; END $f$;
DO $do$
DECLARE t record;
BEGIN
	FOR t IN SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' AND typname !~ '^_' LOOP
		BEGIN
			EXECUTE format('CREATE DOMAIN hostile.%I AS pg_catalog.%1$I CHECK (hostile.checks(%L::pg_catalog.text))', t.typname, 'type ' || t.typname);
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
END $do$;`

const hostileViews = `
DO $do$
DECLARE v record;
BEGIN
	FOR v IN SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v') LOOP
		BEGIN
			EXECUTE format('CREATE VIEW hostile.%I AS SELECT * FROM pg_catalog.%1$I WHERE hostile.checks(%L)', v.relname, 'relation ' || v.relname);
			EXECUTE format('GRANT SELECT ON hostile.%I TO PUBLIC', v.relname);
		EXCEPTION WHEN OTHERS THEN NULL;
		END;
	END LOOP;
END $do$;`

// What an owner may set, at values that change what statements mean, or end them.
const hostileSettings = `
DO $do$
DECLARE s record;
BEGIN
	FOR s IN SELECT * FROM (VALUES
		('search_path', 'hostile, pg_catalog'), ('default_transaction_read_only', 'on'), ('default_transaction_isolation', 'serializable'), ('default_transaction_deferrable', 'on'),
		('statement_timeout', '50'), ('lock_timeout', '1'), ('idle_in_transaction_session_timeout', '50'), ('idle_session_timeout', '1000'), ('transaction_timeout', '50'),
		('standard_conforming_strings', 'off'), ('backslash_quote', 'on'), ('array_nulls', 'off'), ('transform_null_equals', 'on'), ('quote_all_identifiers', 'on'),
		('datestyle', 'SQL, DMY'), ('intervalstyle', 'iso_8601'), ('timezone', 'Asia/Kathmandu'), ('bytea_output', 'escape'), ('extra_float_digits', '-15'),
		('client_min_messages', 'debug5'), ('row_security', 'off'), ('client_encoding', 'LATIN1'), ('xmloption', 'document'), ('createrole_self_grant', 'set, inherit'),
		('synchronous_commit', 'off')
	) AS hostile (name, value) WHERE current_setting(name, true) IS NOT NULL LOOP
		EXECUTE format('ALTER DATABASE %I SET %s = %s', current_database(), s.name, CASE WHEN s.value ~ ',' AND s.name IN ('search_path') THEN s.value ELSE quote_literal(s.value) END);
	END LOOP;
END $do$;`

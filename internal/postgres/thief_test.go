package postgres

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/secret"
)

// thiefOf sets up an admin for the roles, and returns a session of somebody who has
// its password.
func thiefOf(t *testing.T, user string, roles ...string) *pgx.Conn {
	t.Helper()
	_, cluster := leastAdmin(t, user, roles...)
	login, err := cluster.Admin.Login()
	if err != nil {
		t.Fatal(err)
	}
	target := superuser()
	target.User, target.Password = login.User, login.Password
	return connect(t, target)
}

// snapshot is all that there is about roles, a line each.
func snapshot(t *testing.T) []string {
	t.Helper()
	var text string
	err := connect(t, superuser()).QueryRow(t.Context(), `SELECT (SELECT string_agg(r::text, E'\n' ORDER BY rolname) FROM pg_roles r)
		|| E'\n' || (SELECT string_agg(a.rolname || coalesce(' password ' || md5(rolpassword), ''), E'\n' ORDER BY a.rolname) FROM pg_authid a)
		|| E'\n' || (SELECT coalesce(string_agg(m::text, E'\n' ORDER BY m::text), '') FROM pg_auth_members m)
		|| E'\n' || (SELECT coalesce(string_agg(s::text, E'\n' ORDER BY s::text), '') FROM pg_db_role_setting s)`).Scan(&text)
	if err != nil {
		t.Fatal(clean(err))
	}
	return strings.Split(text, "\n")
}

// nullNotAllowed is the SQLSTATE where a name is NULL.
const nullNotAllowed = "22004"

// refuses asserts that each of the statements is refused, and that all of them have
// changed nothing about any role.
func refuses(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	before := snapshot(t)
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); !IsRefused(clean(err), NotPermitted, nullNotAllowed) {
			t.Errorf("%s: %v, want it refused", sql, clean(err))
		}
	}
	after := snapshot(t)
	for _, line := range append(before, after...) {
		if !slices.Contains(before, line) || !slices.Contains(after, line) {
			t.Errorf("of roles this was changed: %s", line)
		}
	}
}

func alterLoginSQL(name string, may string, verifier secret.String) string {
	return fmt.Sprintf("CALL pawl.alter_login('%s', %s, '%s')", name, may, verifier.Reveal())
}

func TestThiefOfTheNarrowAdminMakesNoRole(t *testing.T) {
	run(t, "CREATE ROLE makes_none LOGIN", "CREATE ROLE makes_none_either LOGIN")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_making", "makes_none", "makes_none_b", "makes_none_either")
	refuses(t, thief, "CREATE ROLE theirs", "CREATE USER theirs IN ROLE makes_none", "DROP ROLE makes_none", "ALTER ROLE makes_none RENAME TO theirs",
		"CALL pawl.create_sibling('theirs', 'makes_none', '[]')", "CALL pawl.create_sibling('makes_none_either_b', 'makes_none_either', '[]')",
		"CALL pawl.create_sibling('makes_none_b', 'makes_none_either', '[]')", "CALL pawl.create_sibling('makes_none_b', NULL, '[]')", "CALL pawl.create_sibling(NULL, 'makes_none', '[]')",
		"CALL pawl.lend_login('theirs', 'makes_none', '"+verifier.Reveal()+"')", "CALL pawl.lend_login(NULL, 'makes_none', '"+verifier.Reveal()+"')",
		"CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', 'makes_none', 'plain')", "CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', 'makes_none', NULL)",
		"CALL pawl.take_back('makes_none')", "CALL pawl.take_back('"+server.Superuser+"')", "CALL pawl.take_back(NULL)")
}

// TestThiefOfTheNarrowAdminLendsNothingThatLasts: what he may make expires, whatever
// his session says of dates, and is a member of a role that is Pawl's to rotate.
func TestThiefOfTheNarrowAdminLendsNothingThatLasts(t *testing.T) {
	run(t, "CREATE ROLE lends LOGIN", "CREATE ROLE lends_not LOGIN")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_lending", "lends")
	refuses(t, thief, "CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', 'lends_not', '"+verifier.Reveal()+"')", "CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', 'thief_lending', '"+verifier.Reveal()+"')",
		"CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', 'pg_read_all_data', '"+verifier.Reveal()+"')", "CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', '"+server.Superuser+"', '"+verifier.Reveal()+"')")
	for _, sql := range []string{"SET datestyle = 'SQL, DMY'", "SET timezone = 'EST-100'", "CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', 'lends', '" + verifier.Reveal() + "')"} {
		if _, err := thief.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(clean(err))
		}
	}
	var soon bool
	if err := connect(t, superuser()).QueryRow(t.Context(), `SELECT rolvaliduntil <= clock_timestamp() + interval '1 minute' AND rolconnlimit = 1
		AND NOT (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls) FROM pg_roles WHERE rolname = 'pawl_prepared_aaaaaaaaaaaa'`).Scan(&soon); err != nil || !soon {
		t.Errorf("what was lent expires within a minute and has no attributes: %v, %v", soon, clean(err))
	}
	refuses(t, thief, alterLoginSQL("pawl_prepared_aaaaaaaaaaaa", "true", verifier))
	if _, err := thief.Exec(t.Context(), "CALL pawl.take_back('pawl_prepared_aaaaaaaaaaaa')"); err != nil {
		t.Error(clean(err))
	}
}

func TestThiefOfTheNarrowAdminJoinsNoRole(t *testing.T) {
	run(t, "CREATE ROLE joins_not LOGIN")
	thief := thiefOf(t, "thief_joining", "joins_not", "joins_not_b")
	statements := []string{"SET ROLE joins_not"}
	for _, role := range []string{"pg_execute_server_program", "pg_read_server_files", "pg_monitor", "joins_not", server.Superuser} {
		statements = append(statements, "GRANT "+identifier(role)+" TO thief_joining", "GRANT "+identifier(role)+" TO joins_not")
	}
	refuses(t, thief, statements...)
}

func TestThiefOfTheNarrowAdminAltersNoOtherRole(t *testing.T) {
	run(t, "CREATE ROLE alters LOGIN", "CREATE ROLE alters_not LOGIN")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_altering", "alters")
	statements := []string{"CALL pawl.alter_login(NULL, false, 'keep')"}
	for _, role := range []string{"alters_not", server.Superuser, "pg_monitor", "thief_altering"} {
		statements = append(statements, alterLoginSQL(role, "true", verifier), "CALL pawl.alter_login('"+role+"', true, 'keep')", "CALL pawl.alter_login('"+role+"', false, NULL)", "CALL pawl.alter_login('"+role+"', NULL, 'keep')")
	}
	refuses(t, thief, append(statements, "ALTER ROLE alters_not PASSWORD NULL", "ALTER ROLE alters PASSWORD NULL", "SELECT pawl.verifier('alters_not')")...)
}

func TestThiefOfTheNarrowAdminChangesNoOtherAttribute(t *testing.T) {
	run(t, "CREATE ROLE keeps LOGIN CONNECTION LIMIT 3", "ALTER ROLE keeps SET statement_timeout TO '1s'")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_changing", "keeps", "keeps_b")
	if _, err := thief.Exec(t.Context(), "SET standard_conforming_strings = off; SET quote_all_identifiers = on; SET backslash_quote = on", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(clean(err))
	}
	var statements []string
	for _, attribute := range []string{"SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS", "CONNECTION LIMIT 9", "VALID UNTIL 'infinity'", "SET work_mem TO 1000"} {
		statements = append(statements, "ALTER ROLE keeps "+attribute,
			"CALL pawl.alter_login('keeps', true, "+literal(verifier.Reveal()+"' "+attribute+" --")+")", "CALL pawl.alter_login('keeps', true, "+literal(`keep\' `+attribute+" --")+")")
	}
	for _, setting := range []string{`"name": "session_preload_libraries", "value": "theirs"`, `"name": "log_statement", "value": "none"`, `"name": "LOG_STATEMENT", "value": "none"`,
		`"name": "role", "value": "` + server.Superuser + `"`, `"name": "session_authorization", "value": "postgres"`, `"name": "app.theirs", "value": "1"`, `"name": "role"`, `"name": "work_mem"`, `"value": "role=postgres"`} {
		statements = append(statements, `CALL pawl.create_sibling('keeps_b', 'keeps', '[{"database": "", `+setting+`}]')`)
	}
	for _, setting := range []string{"'', 'log_statement', 'none'", "'', 'session_preload_libraries', 'theirs'", "'', 'LOG_STATEMENT', NULL", "'', 'role', '" + server.Superuser + "'", "'postgres', 'role', 'keeps'", "'', NULL, 'x'", "'', 'app.theirs', '1'"} {
		statements = append(statements, "CALL pawl.restore_setting('keeps', "+setting+")")
	}
	refuses(t, thief, append(statements, "CALL pawl.restore_setting('"+server.Superuser+"', '', 'work_mem', '64')", "CALL pawl.restore_setting('thief_changing', '', 'work_mem', '64')")...)
}

// TestThiefOfTheNarrowAdminLetsNobodyInWhoIsMore: the procedures ask what a role is
// now, not what it was when they were made. Its logins can be refused all the same.
func TestThiefOfTheNarrowAdminLetsNobodyInWhoIsMore(t *testing.T) {
	run(t, "CREATE ROLE grows", "CREATE ROLE grows_group")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_letting", "grows", "grows_b")
	for _, c := range []struct{ grow, shrink string }{
		{"ALTER ROLE grows SUPERUSER", "ALTER ROLE grows NOSUPERUSER"},
		{"ALTER ROLE grows CREATEROLE", "ALTER ROLE grows NOCREATEROLE"},
		{"ALTER ROLE grows REPLICATION", "ALTER ROLE grows NOREPLICATION"},
		{"GRANT " + identifier(server.Superuser) + " TO grows_group; GRANT grows_group TO grows", "REVOKE grows_group FROM grows; REVOKE " + identifier(server.Superuser) + " FROM grows_group"},
		{"ALTER ROLE grows_group CREATEROLE; GRANT grows_group TO grows", "REVOKE grows_group FROM grows; ALTER ROLE grows_group NOCREATEROLE"},
		{"GRANT pg_execute_server_program TO grows", "REVOKE pg_execute_server_program FROM grows"},
		{"GRANT pg_write_server_files TO grows_group; GRANT grows_group TO grows", "REVOKE grows_group FROM grows; REVOKE pg_write_server_files FROM grows_group"},
	} {
		run(t, c.grow)
		refuses(t, thief, alterLoginSQL("grows", "true", verifier), alterLoginSQL("grows", "false", verifier), "CALL pawl.alter_login('grows', true, 'keep')", "CALL pawl.alter_login('grows', true, NULL)",
			"CALL pawl.create_sibling('grows_b', 'grows', '[]')", "CALL pawl.lend_login('pawl_prepared_aaaaaaaaaaaa', 'grows', '"+verifier.Reveal()+"')",
			"CALL pawl.restore_setting('grows', '', 'search_path', 'theirs')")
		_, err := thief.Exec(t.Context(), "CALL pawl.alter_login('grows', false, NULL)")
		if super := strings.HasSuffix(c.grow, "grows SUPERUSER"); super != (err != nil) {
			t.Errorf("%s: logins refused: %v, want that of all but a superuser", c.grow, clean(err))
		}
		run(t, c.shrink)
	}
	if _, err := thief.Exec(t.Context(), alterLoginSQL("grows", "true", verifier), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Errorf("shrunk again: %v", clean(err))
	}
}

// TestThiefOfTheNarrowAdminCallsNothingByAnOldSnapshot: there a role is what it was
// when the transaction began.
func TestThiefOfTheNarrowAdminCallsNothingByAnOldSnapshot(t *testing.T) {
	run(t, "CREATE ROLE grows_meanwhile")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_waiting", "grows_meanwhile", "grows_meanwhile_b")
	for _, level := range []string{"REPEATABLE READ", "SERIALIZABLE"} {
		for _, call := range []string{alterLoginSQL("grows_meanwhile", "true", verifier), "CALL pawl.create_sibling('grows_meanwhile_b', 'grows_meanwhile', '[]')",
			"CALL pawl.restore_setting('grows_meanwhile', '', 'work_mem', '64')", "CALL pawl.lend_login('pawl_prepared_cccccccccccc', 'grows_meanwhile', '" + verifier.Reveal() + "')"} {
			if _, err := thief.Exec(t.Context(), "BEGIN ISOLATION LEVEL "+level+"; SELECT 1", pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatal(clean(err))
			}
			run(t, "ALTER ROLE grows_meanwhile CREATEROLE")
			refuses(t, thief, call)
			if _, err := thief.Exec(t.Context(), "ROLLBACK"); err != nil {
				t.Fatal(clean(err))
			}
			run(t, "ALTER ROLE grows_meanwhile NOCREATEROLE")
		}
	}
}

// TestThiefOfTheNarrowAdminStoresNoVerifierThatCostsOthers: a huge one is sent with
// each look at the role, and one of very many rounds has the server compute for long.
func TestThiefOfTheNarrowAdminStoresNoVerifierThatCostsOthers(t *testing.T) {
	run(t, "CREATE ROLE costs LOGIN")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_costing", "costs")
	stored := strings.TrimPrefix(verifier.Reveal(), "SCRAM-SHA-256$4096:")
	refuses(t, thief, "CALL pawl.alter_login('costs', true, 'SCRAM-SHA-256$000000004096:"+stored+"')", "CALL pawl.alter_login('costs', true, 'SCRAM-SHA-256$4096:"+strings.Repeat("A", 1000)+stored+"')")
}

// TestThiefOfTheNarrowAdminReplacesNoProcedure, not even where it made the schema
// before the script ran; and nobody else may call one.
func TestThiefOfTheNarrowAdminReplacesNoProcedure(t *testing.T) {
	run(t, "CREATE ROLE replaces LOGIN", "CREATE ROLE stranger_to_pawl LOGIN")
	a, _ := leastAdmin(t, "thief_replacing", "replaces")
	run(t, "ALTER SCHEMA pawl OWNER TO thief_replacing", "ALTER PROCEDURE pawl.alter_login(name, boolean, text) OWNER TO thief_replacing",
		"GRANT EXECUTE ON ALL PROCEDURES IN SCHEMA pawl TO PUBLIC", AdminSQL(ownAccount("thief_replacing", ""), inventory.Account{}, []string{"replaces"}))
	err := a.Do(t.Context(), func(conn *pgx.Conn) error {
		refuses(t, conn, "DROP PROCEDURE pawl.alter_login(name, boolean, text)", "CREATE FUNCTION pawl.theirs() RETURNS int LANGUAGE sql AS 'SELECT 1'", "DROP TABLE pawl.fence",
			"CREATE OR REPLACE PROCEDURE pawl.alter_login(login name, may boolean, verifier text) LANGUAGE sql AS ''", "ALTER PROCEDURE pawl.take_back(name) RESET ALL")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var open int
	if err := connect(t, superuser()).QueryRow(t.Context(), `SELECT count(*) FROM pg_proc p WHERE pronamespace = 'pawl'::regnamespace
		AND (has_function_privilege('stranger_to_pawl', p.oid, 'execute') OR proowner <> current_user::regrole)`).Scan(&open); err != nil || open > 0 {
		t.Errorf("%d can be called by anybody, or belong to somebody else (%v)", open, clean(err))
	}
}

// TestAnEarlierAdminIsNarrowedByTheScript, and loses no second login by it.
func TestAnEarlierAdminIsNarrowedByTheScript(t *testing.T) {
	run(t, "CREATE ROLE narrowed LOGIN")
	a, _ := leastAdmin(t, "wide_before", "narrowed", "narrowed_b")
	run(t, pgserver.Earlier("wide_before", []string{"narrowed", "narrowed_b"}))
	create := func(ctx context.Context, tx *Tx) error {
		if tx.narrow {
			t.Error("it works by procedures before the script ran")
		}
		return tx.CreateSibling(ctx, Role{Name: "narrowed", ConnLimit: -1}, "narrowed_b", nil)
	}
	if err := a.Fenced(t.Context(), Fence{Role: "narrowed", Generation: 1, Phase: 1, Rotation: "r"}, create); err != nil {
		t.Fatal(err)
	}
	script := AdminSQL(ownAccount("wide_before", ""), inventory.Account{}, []string{"narrowed", "narrowed_b"})
	run(t, script, script)
	// Its open sessions go on, by the procedures.
	restore := func(ctx context.Context, tx *Tx) error {
		all := []Difference{{Login: "narrowed", Found: &Setting{Name: "search_path"}}, {Login: "narrowed", Recorded: &Setting{Name: "work_mem", Value: secret.New("64kB")}},
			{Login: "narrowed_b", Recorded: &Setting{Name: "role", Value: secret.New("narrowed")}}}
		known, refused, err := tx.RestoreSettings(ctx, all, time.Now().Add(time.Minute))
		if known != len(all) || len(refused) > 0 {
			t.Errorf("%d of %d, %v", known, len(all), refused)
		}
		return err
	}
	run(t, "ALTER ROLE narrowed SET search_path TO theirs", "ALTER ROLE narrowed_b RESET role")
	if err := a.Fenced(t.Context(), Fence{Role: "narrowed", Generation: 2, Phase: 1, Rotation: "r"}, restore); err != nil {
		t.Error(err)
	}
	if has, err := a.Settings(t.Context(), "narrowed"); err != nil || len(has["narrowed"]) != 1 || has["narrowed"][0].Name != "work_mem" {
		t.Errorf("%v, %v; want work_mem alone", has, err)
	}
	password, verifier := newPassword(t)
	if err := a.Fenced(t.Context(), Fence{Role: "narrowed", Generation: 2, Phase: 1, Rotation: "r"}, setVerifier("narrowed_b", verifier)); err != nil {
		t.Fatal(err)
	}
	target := superuser()
	target.User, target.Password = "narrowed_b", password
	var acts string
	if err := connect(t, target).QueryRow(t.Context(), "SELECT current_user").Scan(&acts); err != nil || acts != "narrowed" {
		t.Errorf("acts as %q (%v)", acts, err)
	}
	err := a.Do(t.Context(), func(conn *pgx.Conn) error {
		refuses(t, conn, "CREATE ROLE theirs", "GRANT narrowed TO wide_before", "GRANT narrowed_b TO wide_before", "ALTER ROLE narrowed PASSWORD NULL", "DROP ROLE narrowed_b", "SET ROLE narrowed")
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestVerifierOfASessionThatIsEndedIsNotLogged: what ends it cannot be caught by a
// procedure, and neither can what the log says of a lock that is waited for.
func TestVerifierOfASessionThatIsEndedIsNotLogged(t *testing.T) {
	run(t, "CREATE ROLE waits_for_lock LOGIN")
	// Set before it logs in, since it keeps a session open from then on.
	a, _ := givenAdmin(t, "waiting_admin", AdminSQL(ownAccount("waiting_admin", ""), inventory.Account{}, []string{"waits_for_lock"})+
		"ALTER ROLE waiting_admin SET log_lock_waits TO on; ALTER ROLE waiting_admin SET deadlock_timeout TO '10ms'; ALTER ROLE waiting_admin SET log_error_verbosity TO verbose")
	holder := connect(t, superuser())
	if _, err := holder.Exec(t.Context(), "BEGIN; ALTER ROLE waits_for_lock CONNECTION LIMIT 5", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(clean(err))
	}
	_, verifier := newPassword(t)
	done := make(chan error, 1)
	go func() {
		done <- a.Fenced(t.Context(), Fence{Role: "waits_for_lock", Generation: 1, Phase: 1, Rotation: "r"}, setVerifier("waits_for_lock", verifier))
	}()
	logged := func() string {
		text, err := os.ReadFile(server.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(logged(), "still waiting for ShareLock") {
		select {
		case <-tick.C:
		case err := <-done:
			t.Fatalf("did not wait: %v", err)
		case <-t.Context().Done():
			t.Fatal("it was not logged")
		}
	}
	run(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'waiting_admin'")
	if err := <-done; err == nil {
		t.Error("the session was not ended")
	}
	if _, err := holder.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(clean(err))
	}
	text := logged()
	if !strings.Contains(text, "terminating connection due to administrator command") {
		t.Error("the log says nothing of its end: this test proves nothing")
	}
	assertQuiet(t, verifier)
}

package postgres

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
)

// asRole returns a session of a superuser that has become the role.
func asRole(t *testing.T, role string, statements ...string) *pgx.Conn {
	t.Helper()
	conn := connect(t, superuser())
	for _, sql := range append([]string{"SET SESSION AUTHORIZATION " + role}, statements...) {
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, clean(err))
		}
	}
	return conn
}

// waitsForLock returns when the session waits for a lock.
func waitsForLock(t *testing.T, pid uint32, done <-chan error) {
	t.Helper()
	watcher := connect(t, superuser())
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for waits := false; !waits; {
		select {
		case err := <-done:
			t.Fatalf("it ended without waiting: %v", err)
		case <-tick.C:
		}
		if err := watcher.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", pid).Scan(&waits); err != nil {
			t.Fatal(clean(err))
		}
	}
}

// TestFenceThatIsReplacedWhileTheScriptWaitsRunsNothing: a view in its place would run
// its functions as the superuser who copies from it.
func TestFenceThatIsReplacedWhileTheScriptWaitsRunsNothing(t *testing.T) {
	run(t, "CREATE ROLE replacer LOGIN", "CREATE SCHEMA theirs AUTHORIZATION replacer", "CREATE ROLE copied LOGIN")
	leastAdmin(t, "admin_copying", "copied")
	script := AdminSQL(ownAccount("admin_copying", ""), inventory.Account{}, []string{"copied"})
	runAs(t, "replacer", "CREATE SEQUENCE theirs.called", // which no rollback takes back
		`CREATE FUNCTION theirs.evil() RETURNS name LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('theirs.called'); RETURN current_user; END $$`)
	for what, replace := range map[string]string{"renamed": "ALTER TABLE pawl.fence RENAME TO fence_aside", "dropped": "DROP TABLE pawl.fence"} {
		run(t, "ALTER SCHEMA pawl OWNER TO replacer", "ALTER TABLE pawl.fence OWNER TO replacer")
		theirs := asRole(t, "replacer", "BEGIN", replace, `CREATE VIEW pawl.fence AS SELECT theirs.evil() AS role, 1::bigint AS generation, 1 AS phase,
			''::text AS rotation, now() AS updated_at, now() AS idle_since, now() AS looked_at`)
		conn, done := connect(t, superuser()), make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), script, pgx.QueryExecModeSimpleProtocol)
			done <- clean(err)
		}()
		waitsForLock(t, conn.PgConn().PID(), done)
		if _, err := theirs.Exec(t.Context(), "COMMIT"); err != nil {
			t.Fatal(clean(err))
		}
		if err := <-done; err == nil || !strings.Contains(err.Error(), "pawl.fence is no table") {
			t.Errorf("%s: %v, want it refused", what, err)
		}
		var called bool
		if err := connect(t, superuser()).QueryRow(t.Context(), "SELECT is_called FROM theirs.called").Scan(&called); err != nil || called {
			t.Errorf("%s: what somebody else made ran with a superuser's rights (%v)", what, clean(err))
		}
		run(t, "DROP VIEW pawl.fence", "DROP TABLE IF EXISTS pawl.fence_aside", "ALTER SEQUENCE theirs.called RESTART", script)
	}
}

// TestFunctionThatAppearsAfterTheScriptIsNotCalled: one that was not committed yet is
// invisible to the script, and could be preferred to Pawl's own.
func TestFunctionThatAppearsAfterTheScriptIsNotCalled(t *testing.T) {
	run(t, "CREATE ROLE overloader LOGIN", "CREATE ROLE overloaded LOGIN")
	a, _ := leastAdmin(t, "admin_overloaded", "overloaded")
	run(t, "ALTER SCHEMA pawl OWNER TO overloader")
	theirs := asRole(t, "overloader", "BEGIN", "CREATE FUNCTION pawl.refusal(text, boolean) RETURNS text LANGUAGE sql AS $$ SELECT 'theirs' $$")
	run(t, AdminSQL(ownAccount("admin_overloaded", ""), inventory.Account{}, []string{"overloaded"}))
	if _, err := theirs.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(clean(err))
	}
	if refusal, err := a.MayAlter(t.Context(), "overloaded"); refusal != "" || err != nil {
		t.Errorf("refusal %q, %v; want Pawl's own function asked", refusal, err)
	}
	if h, err := a.Look(t.Context()); err != nil || h.Strangers != "pawl.refusal(text,boolean)" {
		t.Errorf("of others: %q, %v; want the function named", h.Strangers, err)
	}
	run(t, "DROP FUNCTION pawl.refusal(text, boolean)")
	if h, err := a.Look(t.Context()); err != nil || h.Strangers != "" {
		t.Errorf("of others: %q, %v; want none", h.Strangers, err)
	}
}

// TestWhatAWideAdminGaveItselfIsTakenByTheScript, on every version, and said.
func TestWhatAWideAdminGaveItselfIsTakenByTheScript(t *testing.T) {
	run(t, "CREATE ROLE taken LOGIN", "CREATE ROLE taken_besides")
	user, given := "wide_giving", []string{"wide_giving", "wide_giving_b", "taken"}
	account := ownAccount(user, "")
	account.Credential = user
	script := AdminSQL(account, inventory.Account{}, given)
	a, _ := givenAdmin(t, user, script)
	run(t, pgserver.Earlier(user, given))
	grants := []string{"GRANT taken TO wide_giving", "GRANT taken TO wide_giving_b"}
	if major(t) < 16 { // since then, only a superuser gives it more
		grants = append(grants, "GRANT pg_execute_server_program TO wide_giving", "GRANT pg_monitor TO wide_giving_b")
	} else {
		run(t, "GRANT pg_execute_server_program TO wide_giving", "GRANT pg_monitor TO wide_giving_b")
	}
	err := a.Do(t.Context(), func(conn *pgx.Conn) error {
		for _, sql := range grants {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				return clean(err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "GRANT taken_besides TO wide_giving WITH ADMIN OPTION", "GRANT pg_signal_backend TO wide_giving WITH ADMIN OPTION", "ALTER ROLE wide_giving_b CREATEROLE")

	said := runSaying(t, script)
	for _, want := range []string{"taken from wide_giving", "taken from wide_giving_b", "taken_besides WITH ADMIN OPTION from wide_giving", "pg_execute_server_program from wide_giving", "pg_monitor from wide_giving_b", "pg_signal_backend WITH ADMIN OPTION from wide_giving"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said: %s", want, said)
		}
	}
	var left string
	var wide bool
	if err := connect(t, superuser()).QueryRow(t.Context(), `SELECT string_agg(DISTINCT m.member::regrole || ' ' || m.roleid::regrole || CASE WHEN admin_option THEN ' admin' ELSE '' END, ', '),
		(SELECT bool_or(rolcreaterole OR rolcreatedb) FROM pg_roles WHERE rolname IN ('wide_giving', 'wide_giving_b'))
		FROM pg_auth_members m WHERE m.member::regrole::text IN ('wide_giving', 'wide_giving_b')`).Scan(&left, &wide); err != nil {
		t.Fatal(clean(err))
	}
	want := "wide_giving pg_read_all_stats, wide_giving pg_signal_backend, wide_giving_b wide_giving"
	if major(t) >= 16 {
		want = "wide_giving pg_read_all_stats, wide_giving pg_signal_backend, wide_giving pg_use_reserved_connections, wide_giving_b wide_giving"
	}
	if left != want || wide {
		t.Errorf("left are %s (want %s), creates roles: %v", left, want, wide)
	}
	if again := runSaying(t, script); again != "" {
		t.Errorf("run again, it says %q", again)
	}
}

// runSaying runs a superuser's script, and returns what the server says meanwhile.
func runSaying(t *testing.T, script string) (said string) {
	t.Helper()
	target := superuser()
	config, err := pgx.ParseConfig(target.conninfo())
	if err != nil {
		t.Fatal(err)
	}
	target.fill(config)
	config.User, config.Password = target.User, target.Password.Reveal()
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { said += n.Message + "\n" }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(clean(err))
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), script, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(clean(err))
	}
	return said
}

// TestDefaultPrivilegesLetNobodyIntoThePawlSchema: those of the superuser who runs the
// script hold for what it makes.
func TestDefaultPrivilegesLetNobodyIntoThePawlSchema(t *testing.T) {
	run(t, "CREATE ROLE readonly LOGIN", "CREATE ROLE defaulted LOGIN", "DROP SCHEMA IF EXISTS pawl CASCADE")
	for _, on := range []string{"ROUTINES", "TABLES", "SCHEMAS"} {
		run(t, "ALTER DEFAULT PRIVILEGES GRANT ALL ON "+on+" TO readonly")
		defer run(t, "ALTER DEFAULT PRIVILEGES REVOKE ALL ON "+on+" FROM readonly")
	}
	run(t, "CREATE ROLE watching LOGIN", "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO watching")
	defer run(t, "ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM watching")
	run(t, AdminSQL(ownAccount("admin_defaulted", ""), ownAccount("watching", ""), []string{"defaulted"}))
	var reached string
	if err := connect(t, superuser()).QueryRow(t.Context(), `SELECT coalesce(string_agg(what, ', '), '') FROM (
		SELECT r || ' ' || p.oid::regprocedure::text FROM pg_proc p, (VALUES ('readonly'), ('watching')) AS roles (r)
			WHERE pronamespace = 'pawl'::regnamespace AND has_function_privilege(r, p.oid, 'execute') AND (r, p.proname) <> ('watching', 'verifier')
		UNION ALL SELECT r || ' fence' FROM (VALUES ('readonly'), ('watching')) AS roles (r) WHERE has_table_privilege(r, 'pawl.fence', 'select, insert, update, delete, truncate, references, trigger')
		UNION ALL SELECT 'schema' WHERE has_schema_privilege('readonly', 'pawl', 'usage, create')) AS reached (what)`).Scan(&reached); err != nil || reached != "" {
		t.Errorf("others reach %s (%v)", reached, clean(err))
	}
	var may bool
	if err := connect(t, superuser()).QueryRow(t.Context(), `SELECT has_schema_privilege('watching', 'pawl', 'usage') AND has_function_privilege('watching', 'pawl.verifier(name)', 'execute')
		AND has_table_privilege('admin_defaulted', 'pawl.fence', 'insert') AND has_function_privilege('admin_defaulted', 'pawl.alter_login(name, boolean, text)', 'execute')`).Scan(&may); err != nil || !may {
		t.Errorf("the accounts have what they need: %v (%v)", may, clean(err))
	}
}

// TestStrangerWithASiblingsNameIsGivenNothing: a role that only has the name of a second
// login may be somebody else's, and more than the applications are.
func TestStrangerWithASiblingsNameIsGivenNothing(t *testing.T) {
	run(t, "CREATE ROLE named LOGIN", "CREATE ROLE named_b NOLOGIN")
	_, verifier := newPassword(t)
	thief := thiefOf(t, "thief_naming", "named", "named_b")
	refuses(t, thief, alterLoginSQL("named_b", "true", verifier), alterLoginSQL("named_b", "false", verifier), "CALL pawl.alter_login('named_b', true, 'keep')",
		"CALL pawl.restore_setting('named_b', '', 'search_path', 'theirs')", "CALL pawl.restore_setting('named_b', '', 'role', 'named')",
		"CALL pawl.lend_login('pawl_prepared_dddddddddddd', 'named_b', '"+verifier.Reveal()+"')")
	var refusal string
	if err := thief.QueryRow(t.Context(), "SELECT pawl.refusal('named_b'::name, true)").Scan(&refusal); err != nil || refusal != "exists and is no member of named: drop it, or grant it that role and SET role" {
		t.Errorf("%q, %v", refusal, clean(err))
	}
	works := func() {
		t.Helper()
		if _, err := thief.Exec(t.Context(), alterLoginSQL("named_b", "true", verifier), pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(clean(err))
		}
	}
	if _, err := thief.Exec(t.Context(), "CALL pawl.alter_login('named_b', false, NULL)"); err != nil {
		t.Errorf("its login cannot be refused: %v", clean(err))
	}
	run(t, "GRANT named TO named_b")
	works()
	// Two credentials that are rotated in place may have such names, too.
	run(t, "REVOKE named FROM named_b", AdminSQL(ownAccount("thief_naming", ""), inventory.Account{}, []string{"named", "named_b"}, "named", "named_b"))
	works()
}

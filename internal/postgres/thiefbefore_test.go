package postgres

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// runAs runs statements as a role, which is there only to have made things.
func runAs(t *testing.T, role string, statements ...string) {
	t.Helper()
	run(t, "SET ROLE "+role+"; "+strings.Join(statements, "; ")+"; RESET ROLE")
}

// fails asserts that a superuser's script is refused, with a text that holds want.
func fails(t *testing.T, script, want string) {
	t.Helper()
	_, err := connect(t, superuser()).Exec(t.Context(), script, pgx.QueryExecModeSimpleProtocol)
	if err = clean(err); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// TestWhatAThiefMadeBeforeTheScriptRunsWithNoSuperusersRights: rules and views run with
// the rights of who owns them, which the script would be.
func TestWhatAThiefMadeBeforeTheScriptRunsWithNoSuperusersRights(t *testing.T) {
	run(t, "CREATE ROLE made_before LOGIN", "CREATE ROLE thief_before LOGIN")
	leastAdmin(t, "admin_before", "made_before")
	script := AdminSQL(ownAccount("admin_before", ""), inventory.Account{}, []string{"made_before"})
	theirs := func(statements ...string) {
		t.Helper()
		run(t, "ALTER SCHEMA pawl OWNER TO thief_before", "ALTER TABLE pawl.fence OWNER TO thief_before")
		runAs(t, "thief_before", statements...)
	}

	theirs("INSERT INTO pawl.fence VALUES ('kept', 3, 1, 'r', now())", "CREATE RULE theirs AS ON UPDATE TO pawl.fence DO ALSO DELETE FROM pg_catalog.pg_authid WHERE false", "GRANT CREATE ON SCHEMA pawl TO PUBLIC")
	run(t, script)
	var rules, kept int
	var open bool
	err := connect(t, superuser()).QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_rewrite WHERE ev_class = 'pawl.fence'::regclass), (SELECT generation FROM pawl.fence WHERE role = 'kept'),
		has_schema_privilege('thief_before', 'pawl', 'create')`).Scan(&rules, &kept, &open)
	if err != nil || rules > 0 || kept != 3 || open {
		t.Errorf("%d rules, generation %d, may still create there: %v (%v)", rules, kept, open, clean(err))
	}

	theirs("CREATE PROCEDURE pawl.alter_login(text, boolean, text) LANGUAGE sql AS ''")
	fails(t, script, "pawl.alter_login(text,boolean,text)")
	run(t, "DROP PROCEDURE pawl.alter_login(text, boolean, text)", script)

	theirs("ALTER TABLE pawl.fence ADD theirs int")
	fails(t, script, "not the columns that Pawl gave it")
	run(t, "ALTER TABLE pawl.fence DROP theirs", "ALTER TABLE pawl.fence RENAME TO fence_aside")
	run(t, "ALTER SCHEMA pawl OWNER TO thief_before")
	runAs(t, "thief_before", "CREATE VIEW pawl.fence AS SELECT 1 AS role")
	fails(t, script, "pawl.fence is no table")
	run(t, "DROP VIEW pawl.fence", "ALTER TABLE pawl.fence_aside RENAME TO fence", script, script)
}

// TestSessionOfALoginThatWasTakenBackIsEnded: it would go on as the owner, and belong to
// nobody whom an emergency knows.
func TestSessionOfALoginThatWasTakenBackIsEnded(t *testing.T) {
	run(t, "CREATE ROLE takes_back LOGIN", "CREATE ROLE dropped_meanwhile LOGIN")
	a, _ := leastAdmin(t, "thief_taking", "takes_back")
	password, verifier := newPassword(t)
	login := func(user string, password secret.String) *pgx.Conn {
		target := superuser()
		target.User, target.Password = user, password
		return connect(t, target)
	}
	call := func(sql string) {
		t.Helper()
		err := a.Do(t.Context(), func(conn *pgx.Conn) error {
			_, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
			return clean(err)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	call("CALL pawl.lend_login('pawl_prepared_bbbbbbbbbbbb', 'takes_back', '" + verifier.Reveal() + "')")
	lent := login("pawl_prepared_bbbbbbbbbbbb", password)
	call("CALL pawl.take_back('pawl_prepared_bbbbbbbbbbbb')")
	if err := lent.Ping(t.Context()); err == nil {
		t.Error("the session of the login that was taken back lives")
	}

	run(t, "ALTER ROLE dropped_meanwhile PASSWORD '"+verifier.Reveal()+"'")
	orphan := login("dropped_meanwhile", password)
	run(t, "DROP ROLE dropped_meanwhile")
	ended, err := a.Evict(t.Context(), Eviction{Logins: []string{"takes_back"}, Members: true, Except: []string{"thief_taking"}})
	if err != nil || len(ended) != 1 {
		t.Errorf("ended %v, %v", ended, err)
	}
	if err := orphan.Ping(t.Context()); err == nil {
		t.Error("a session without a role lives on after an emergency")
	}
}

// TestWhatIsStoredForMD5OfAPowerfulRoleIsNotRead: it is as good as the password.
func TestWhatIsStoredForMD5OfAPowerfulRoleIsNotRead(t *testing.T) {
	const stored = "md500000000000000000000000000000000"
	run(t, "CREATE ROLE hashed LOGIN PASSWORD '"+stored+"'")
	thief := thiefOf(t, "thief_reading", "hashed")
	for grow, want := range map[string]string{"NOCREATEROLE": stored, "CREATEROLE": "md5"} {
		run(t, "ALTER ROLE hashed "+grow)
		var read string
		if err := thief.QueryRow(t.Context(), "SELECT pawl.verifier('hashed')").Scan(&read); err != nil || read != want {
			t.Errorf("%s: %q, %v; want %q", grow, read, clean(err), want)
		}
	}
}

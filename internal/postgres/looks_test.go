package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
)

// leftBy is what a thief leaves in his database, as himself: each statement, and where the
// evidence tells of it.
func leftBy(thief string) [][2]string {
	odd := identifier("o\"d\nd\u202e `x` \\")
	return [][2]string{
		{"CREATE SCHEMA " + odd, "objects owned"},
		{"CREATE TABLE public." + odd + " (a int, b int)", ""},
		{"CREATE FUNCTION " + odd + "." + odd + "(a int, b \"char\"[]) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'", "SECURITY DEFINER functions owned"},
		{"CREATE FUNCTION " + odd + "." + odd + "() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN NULL; END'", "SECURITY DEFINER functions owned"},
		{"CREATE FUNCTION " + odd + ".far() RETURNS text LANGUAGE sql AS $$ SELECT 'host=evil.example password=canary' $$", "functions and views that may connect elsewhere"},
		{"CREATE VIEW " + odd + ".far AS SELECT 'postgres://evil.example'::text AS to_where", "functions and views that may connect elsewhere"},
		{"CREATE TRIGGER " + odd + " AFTER INSERT ON public." + odd + " FOR EACH ROW EXECUTE FUNCTION " + odd + "." + odd + "()", "triggers, rules and policies"},
		{"CREATE RULE " + odd + " AS ON DELETE TO public." + odd + " DO INSTEAD NOTHING", "triggers, rules and policies"},
		{"CREATE POLICY " + odd + " ON public." + odd + " USING (true)", "triggers, rules and policies"},
		{"ALTER DEFAULT PRIVILEGES IN SCHEMA " + odd + " GRANT ALL ON TABLES TO PUBLIC", "default privileges"},
		{"ALTER DEFAULT PRIVILEGES GRANT SELECT ON SEQUENCES TO friend_of_him", "default privileges"},
		{"SELECT lo_create(0)", "objects owned"},
		{"CREATE PUBLICATION " + odd, "objects owned"},
		{"CREATE TYPE " + odd + ".mood AS ENUM ('a')", "objects owned"},
		{"CREATE STATISTICS " + odd + ".s ON a, b FROM public." + odd, "objects owned"},
		{"CREATE SERVER " + odd + " FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'evil.example')", "foreign servers owned"},
		{"CREATE USER MAPPING FOR PUBLIC SERVER " + odd + " OPTIONS (user 'x', password 'canary')", "user mappings"},
		{"CREATE USER MAPPING FOR " + thief + " SERVER " + odd, "user mappings"},
		{"ALTER ROLE CURRENT_USER SET search_path TO evil", "settings"},
		{"ALTER ROLE CURRENT_USER IN DATABASE left_in SET work_mem TO '1MB'", "settings"},
		{"GRANT lent_to_him TO friend_of_him", "memberships"},
	}
}

// Each statement of the evidence removes what it stands beside, on every version, and
// can be copied: a person who reads the report needs no other.
func TestEvidenceStatementRemovesNothing(t *testing.T) {
	login := "th'ief \"2\"\n\u202e\\"
	thief := identifier(login)
	password, verifier := newPassword(t)
	run(t, "CREATE ROLE "+thief+" LOGIN CREATEROLE", "CREATE ROLE friend_of_him", "CREATE ROLE lent_to_him", "GRANT lent_to_him TO "+thief+" WITH ADMIN OPTION", "GRANT "+thief+" TO friend_of_him",
		"CREATE DATABASE left_in OWNER "+thief, "SET log_statement = 'none'; ALTER ROLE "+thief+" PASSWORD "+literal(verifier.Reveal()),
		"SELECT pg_create_physical_replication_slot('left_by_him')",
		"CREATE SUBSCRIPTION \"left by him\" CONNECTION 'host=127.0.0.1 dbname=x' PUBLICATION p WITH (connect = false)")
	super := superuser()
	super.Database = "left_in"
	in := connect(t, super)
	for _, sql := range []string{"CREATE EXTENSION postgres_fdw", "GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO " + thief,
		"CREATE FUNCTION public.on_any() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'", "CREATE EVENT TRIGGER \"left by him\" ON sql_drop EXECUTE FUNCTION public.on_any()"} {
		if _, err := in.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, clean(err))
		}
	}
	as := super
	as.User, as.Password = login, password
	his := connect(t, as)
	all := leftBy(thief)
	if major(t) >= 16 {
		all = append(all, [2]string{"CREATE ROLE made_by_him", "roles created or administered"})
	}
	for _, left := range all {
		if _, err := his.Exec(t.Context(), left[0], pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", left[0], clean(err))
		}
	}
	his.Close(t.Context())

	cluster := &inventory.Cluster{Name: "main", Admin: accountOf(t, server.Superuser, server.Password), Observer: lookingOn(t)}
	look := func() (removals map[string][]string, all []Table) {
		removals = map[string][]string{}
		all = adminOf(t, cluster, "", nil).Evidence(t.Context(), []string{login}, "left_in")
		for _, x := range all {
			_, statements := x.Removals()
			if x.Database != "" && x.Database != "left_in" {
				continue
			}
			if x.Unread != "" && x.Unread != unrecorded && x.Name != "statements" {
				t.Errorf("%s: %s", x.Name, x.Unread)
			}
			removals[x.Name] = append(removals[x.Name], statements...)
		}
		return removals, all
	}
	found, told := look()
	want := map[string]int{"replication slots of anybody": 1, "subscriptions of anybody": 1, "event triggers of anybody": 1, "memberships": 2}
	for _, left := range all {
		if left[1] != "" {
			want[left[1]]++
		}
	}
	for name, n := range want {
		if len(found[name]) < n {
			t.Errorf("%s: %d statements, want %d: %q", name, len(found[name]), n, found[name])
		}
	}
	for _, x := range told {
		if strings.Contains(strings.Join(slices.Concat(x.Rows...), " "), "canary") {
			t.Errorf("%s tells a password", x.Name)
		}
	}
	removeAll(t, in, connect(t, superuser()), found)
	for name, statements := range first(look()) {
		if len(statements) > 0 {
			t.Errorf("%s: still there: %q", name, statements)
		}
	}
	var tables int
	if err := in.QueryRow(t.Context(), "SELECT count(*) FROM pg_tables WHERE tableowner = $1", login).Scan(&tables); err != nil || tables != 1 {
		t.Errorf("%d tables are left, %v: data is for nobody to drop", tables, err)
	}
}

// lookingOn is an observer that sees the jobs of everybody.
func lookingOn(t *testing.T) inventory.Account {
	t.Helper()
	password, verifier := newPassword(t)
	run(t, "DO $$ BEGIN CREATE ROLE looks_on SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$", "SET log_statement = 'none'; ALTER ROLE looks_on PASSWORD "+literal(verifier.Reveal()))
	return accountOf(t, "looks_on", password)
}

func first[A, B any](a A, _ B) A { return a }

// removeAll runs the statements, those again that another one has to come before.
func removeAll(t *testing.T, in, elsewhere *pgx.Conn, found map[string][]string) {
	t.Helper()
	var left []string
	for _, statements := range found {
		left = append(left, statements...)
	}
	for again := range 6 {
		var failed []string
		for _, s := range left {
			if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == '\u202e' }) {
				t.Errorf("a report would change %q", s)
			}
			conn := in
			if strings.Contains(s, "SUBSCRIPTION") {
				conn = elsewhere
			}
			if _, err := conn.Exec(t.Context(), s, pgx.QueryExecModeSimpleProtocol); err != nil && !strings.Contains(err.Error(), "does not exist") {
				failed = append(failed, s+": "+clean(err).Error())
			}
		}
		if len(failed) == 0 {
			return
		}
		if again == 5 {
			t.Errorf("statements fail: %q", failed)
		}
	}
}

// In a database of the thief's own, what is called cron.job may be his, and would be run
// by whoever reads it.
func TestEvidenceRunsAThiefsOwnCronTable(t *testing.T) {
	run(t, "CREATE DATABASE own_cron")
	super := superuser()
	super.Database = "own_cron"
	in := connect(t, super)
	exec := func(sql string) {
		t.Helper()
		if _, err := in.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, clean(err))
		}
	}
	exec("CREATE SCHEMA cron; CREATE TABLE cron.run (a int); CREATE FUNCTION cron.trap() RETURNS int LANGUAGE sql AS 'INSERT INTO cron.run VALUES (1) RETURNING 1'")
	exec("CREATE VIEW cron.job AS SELECT cron.trap()::bigint AS jobid, 'him' AS username, 'a' AS database, '* * * * *' AS schedule, true AS active, 'x' AS command")
	cluster := &inventory.Cluster{Name: "main", Admin: accountOf(t, server.Superuser, server.Password), Observer: lookingOn(t)}
	look := func() Table {
		return table(t, adminOf(t, cluster, "", nil).Evidence(t.Context(), []string{"him"}, "own_cron"), cron.name, "own_cron")
	}
	if got := look(); got.Unread != "" || len(got.Rows) > 0 {
		t.Errorf("his view is read: %v", got)
	}
	var runs int
	if err := in.QueryRow(t.Context(), "SELECT count(*) FROM cron.run").Scan(&runs); err != nil || runs > 0 {
		t.Errorf("it was run %d times, %v", runs, err)
	}

	// The table of the extension, which is not installed everywhere: the catalogue says the same of it.
	exec("DROP VIEW cron.job; CREATE TABLE cron.job (jobid bigint, username text, database text, schedule text, active bool, command text)")
	exec("SET allow_system_table_mods = on; INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) VALUES (99999, 'pg_cron', 10, 'pg_catalog'::regnamespace, false, '1')")
	exec("ALTER EXTENSION pg_cron ADD TABLE cron.job; INSERT INTO cron.job VALUES (7, 'him', 'own_cron', '* * * * *', true, 'ALTER ROLE him PASSWORD ''canary'''), (8, 'she', 'own_cron', '* * * * *', true, 'SELECT 1')")
	got := look()
	if len(got.Rows) != 1 || !got.has("7", "him", "* * * * *", "SELECT cron.unschedule(7::bigint)") || got.has("canary") {
		t.Errorf("jobs: %v %s", got.Rows, got.Unread)
	}
}

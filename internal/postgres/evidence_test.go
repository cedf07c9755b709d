package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// hostile is a role's name that stands in all that it left.
const hostile = "th'ief \"1\" <b>\n|"

func table(t *testing.T, all []Table, name, database string) Table {
	t.Helper()
	i := slices.IndexFunc(all, func(t Table) bool { return t.Name == name && t.Database == database })
	if i < 0 {
		t.Fatalf("no table %q of %q", name, database)
	}
	return all[i]
}

// has reports whether a row holds all the texts.
func (t Table) has(texts ...string) bool {
	return slices.ContainsFunc(t.Rows, func(row []string) bool {
		line := strings.Join(row, " | ")
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) })
	})
}

// What a thief had and left is found, by accounts that are no superusers, on
// every version; and no password is in it. The observer alone enters his databases.
func TestEvidenceTellsWhatALoginHasAndLeft(t *testing.T) {
	adminPassword, adminVerifier := newPassword(t)
	observerPassword, observerVerifier := newPassword(t)
	password, verifier := newPassword(t)
	canary := "canary-of-a-password"
	thief := identifier(hostile)
	run(t, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements", AdminSQL(ownAccount("evidence_admin", ""), ownAccount("evidence_observer", ""), []string{hostile}),
		"CREATE ROLE "+thief+" LOGIN", "CREATE ROLE accomplice LOGIN", "GRANT "+thief+" TO accomplice", "ALTER ROLE "+thief+" SET search_path TO evil, public",
		"CREATE DATABASE elsewhere OWNER "+thief, "GRANT CREATE ON DATABASE postgres TO "+thief, "CREATE EXTENSION postgres_fdw", "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw",
		"CREATE USER MAPPING FOR "+thief+" SERVER far OPTIONS (user 'x', password '"+canary+"')",
		"SELECT pg_create_physical_replication_slot('left_behind')",
		"CREATE FUNCTION public.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'", "CREATE EVENT TRIGGER left_behind ON ddl_command_end EXECUTE FUNCTION public.on_ddl()",
		"CREATE SUBSCRIPTION left_behind CONNECTION 'host=127.0.0.1 dbname=x password="+canary+"' PUBLICATION p WITH (connect = false)")
	super := root(t)
	for name, verifier := range map[string]string{"evidence_admin": adminVerifier.Reveal(), "evidence_observer": observerVerifier.Reveal(), hostile: verifier.Reveal()} {
		run(t, "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET pg_stat_statements.track_utility = off; ALTER ROLE "+identifier(name)+" PASSWORD "+literal(verifier))
	}
	as := superuser()
	as.User, as.Password = hostile, password
	conn := connect(t, as)
	for _, sql := range []string{"CREATE SCHEMA evil", "CREATE TABLE evil." + thief + " (a text)", "INSERT INTO evil." + thief + " VALUES ('" + canary + "')",
		"CREATE FUNCTION evil.door() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT '" + canary + "' $$", "ALTER ROLE CURRENT_USER PASSWORD '" + canary + "'"} {
		if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, clean(err))
		}
	}
	as.Database, as.Password = "elsewhere", secret.New(canary)
	if _, err := connect(t, as).Exec(t.Context(), "CREATE TABLE loot (a int)"); err != nil {
		t.Fatal(clean(err))
	}
	var counted string
	if err := connect(t, superuser()).QueryRow(t.Context(), "SELECT string_agg(query, ' ') FROM pg_stat_statements WHERE userid = to_regrole($1)", thief).Scan(&counted); err != nil || !strings.Contains(counted, canary) {
		t.Fatalf("pg_stat_statements holds no password, so this proves nothing (%v)", err)
	}

	cluster := &inventory.Cluster{Name: "main", Admin: accountOf(t, "evidence_admin", adminPassword), Observer: accountOf(t, "evidence_observer", observerPassword)}
	all := adminOf(t, cluster, "", nil).Evidence(t.Context(), []string{hostile}, "elsewhere")
	if in, err := server.Entered("elsewhere"); err != nil || !slices.Equal(in, []string{"evidence_observer"}) { // the name of its owner has two lines
		t.Errorf("%q logged in to the database of the application, want the observer (%v)", in, err)
	}
	for _, x := range all {
		if x.Unread != "" && x.Unread != unrecorded {
			t.Errorf("%s in %q not read: %s", x.Name, x.Database, x.Unread)
		}
	}
	version := major(t)
	for _, want := range []struct {
		table, database string
		texts           []string
	}{
		{"roles", "", []string{hostile, "t"}},
		{"settings", "", []string{hostile, "search_path", "evil, public"}},
		{"memberships", "", []string{"accomplice", `"th'ief ""1""`}},
		{"belongings", "", []string{"elsewhere", "pg_class", "1"}},
		{"belongings", "", []string{"postgres", "pg_proc", "1"}},
		{"replication slots of anybody", "", []string{"left_behind", "physical"}},
		{"subscriptions of anybody", "", []string{"left_behind"}},
		{"objects owned", "postgres", []string{"table", "evil."}},
		{"objects owned", "elsewhere", []string{"table", "public.loot"}},
		{"SECURITY DEFINER functions owned", "postgres", []string{"evil.door()", "everybody"}},
		{"user mappings", "postgres", []string{"far", hostile}},
		{"event triggers of anybody", "postgres", []string{"left_behind", "on_ddl"}},
		{"statements", "", []string{"INSERT INTO evil.", "VALUES ($1)"}},
		{"statements", "", []string{"ALTER ROLE [withheld"}},
	} {
		if got := table(t, all, want.table, want.database); !got.has(want.texts...) {
			t.Errorf("%s: no row with %q in %q", want.table, want.texts, got.Rows)
		}
	}
	for column, from := range map[string]int{"from the client": 14, "since": 17} {
		if got := slices.Contains(table(t, all, "statements", "").Columns, column); got != (version >= from) {
			t.Errorf("statements on %d: column %q is there: %v", version, column, got)
		}
	}
	if got := slices.Contains(table(t, all, "memberships", "").Columns, "inherit"); got != (version >= 16) {
		t.Errorf("memberships on %d: column inherit is there: %v", version, got)
	}
	if text := fmt.Sprint(all); strings.Contains(text, canary) || strings.Contains(text, verifier.Reveal()[:30]) {
		t.Error("a password is in the evidence")
	}

	ended, err := super.Evict(t.Context(), Eviction{Logins: []string{hostile}})
	if err != nil || len(ended) < 2 {
		t.Fatalf("ended %v, %v", ended, err)
	}
	sessions := Table{Columns: EndedColumns}
	for _, e := range ended {
		sessions.Rows = append(sessions.Rows, e.Cells())
	}
	if text := fmt.Sprint(sessions); !sessions.has(hostile, "127.0.0.1", "elsewhere", "client backend", "idle", "CREATE TABLE [withheld") || strings.Contains(text, canary) {
		t.Errorf("sessions: %s", text)
	}
	run(t, "ALTER SUBSCRIPTION left_behind SET (slot_name = NONE)", "DROP SUBSCRIPTION left_behind", "SELECT pg_drop_replication_slot('left_behind')", "DROP EVENT TRIGGER left_behind")
}

// A thief may have a catalogue locked, and the server may hang: what can be read
// is, and the rest is named, within the time there is.
func TestEvidenceThatCannotBeReadIsNamed(t *testing.T) {
	hung := connect(t, superuser())
	if _, err := hung.Exec(t.Context(), "BEGIN; LOCK TABLE pg_catalog.pg_subscription IN ACCESS EXCLUSIVE MODE", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(clean(err))
	}
	all := root(t).Evidence(t.Context(), []string{"nobody"}, "no such database")
	if got := table(t, all, "subscriptions of anybody", ""); !strings.Contains(got.Unread, "lock timeout") {
		t.Errorf("of a locked catalogue: %q", got.Unread)
	}
	if got := table(t, all, "roles", ""); got.Unread != "" {
		t.Errorf("of one that is not locked: %q", got.Unread)
	}
	if got := table(t, all, "objects owned", "no such database"); !strings.Contains(got.Unread, "add clusters.main.observer") {
		t.Errorf("of a database into which nobody may look: %q", got.Unread)
	}
	observed := &inventory.Cluster{Name: "main", Admin: accountOf(t, server.Superuser, server.Password), Observer: accountOf(t, "gone", server.Password)}
	all = adminOf(t, observed, "", nil).Evidence(t.Context(), []string{"nobody"}, "elsewhere")
	if got := table(t, all, "objects owned", "elsewhere"); !strings.Contains(got.Unread, "28P01") {
		t.Errorf("of an observer that cannot log in: %q", got.Unread)
	}
	over, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	all = root(t).Evidence(over, []string{"nobody"}, "postgres")
	for _, name := range []string{"roles", "memberships", "statements"} {
		if table(t, all, name, "").Unread == "" {
			t.Errorf("%s: read after the time was over", name)
		}
	}
}

package app

import (
	"os"
	"slices"
	"strings"
	"testing"

	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/services/verifier/internal/pgtest"
)

// inADatabaseOfItsOwn moves the credential, and its login, to a new database.
func (b *bed) inADatabaseOfItsOwn(t *testing.T) (database string) {
	t.Helper()
	database = strings.ReplaceAll(strings.ToLower(b.role), " ", "_")
	b.rotation.Credential.Database = database
	pgtest.Exec(t, "CREATE DATABASE "+database+" OWNER "+pgtest.Quote(b.role))
	return database
}

// logConnections returns once new sessions are logged, or not.
func logConnections(t *testing.T, want string) {
	t.Helper()
	pgtest.Exec(t, "ALTER SYSTEM SET log_connections = "+want, "SELECT pg_reload_conf()")
	for set := ""; set != want; {
		conn := pgtest.Super(t)
		if err := conn.QueryRow(t.Context(), "SHOW log_connections").Scan(&set); err != nil {
			t.Fatal(err)
		}
		pgtest.End(t, conn)
	}
}

// TestTheAdminStandsInForNoObserverInAnApplicationsDatabase: preflight goes by the
// catalogue that all databases share, and what only that database has the new login
// finds when it is verified.
func TestTheAdminStandsInForNoObserverInAnApplicationsDatabase(t *testing.T) {
	b := newBed(t, saga.Alternating)
	c := b.rotation.Credential
	database := b.inADatabaseOfItsOwn(t)
	logConnections(t, "on")
	defer logConnections(t, "off")
	admin := pgtest.Name() + " admin"
	pgtest.Create(t, admin, "")
	c.Cluster.Admin.User = admin
	if err := os.WriteFile(c.Cluster.Admin.PasswordFile, []byte(pgtest.Password), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Cluster.Observer = c.Cluster.Admin
	pgtest.Exec(t, postgres.AdminSQL(c.Cluster.Admin, c.Cluster.Observer, c.Logins()))

	b.admits(t)
	owner, sibling := pgtest.Quote(b.role), pgtest.Quote(b.user())
	inside := func(sql string) {
		t.Helper()
		if _, err := pgtest.SuperIn(t, database).Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	inside("CREATE TABLE public.made (tenant text); ALTER TABLE made OWNER TO " + sibling)
	b.refuses(t, `it owns, or was granted, things in other databases: 1 in "`+database+`"`)
	inside("ALTER TABLE made OWNER TO " + owner + "; ALTER TABLE made ENABLE ROW LEVEL SECURITY; ALTER TABLE made FORCE ROW LEVEL SECURITY; CREATE POLICY p ON made USING (tenant = session_user)")
	b.admits(t)
	b.fails(t, "coordinator", "policy public.made.p asks for session_user")
	inside("DROP POLICY p ON made")
	b.consumes("api", 1)
	pgtest.Login(t, b.user(), "api application")
	if _, err := b.run(t, b.verify); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, "ALTER ROLE "+owner+" NOLOGIN")
	if _, err := b.run(t, b.confirm); err != nil {
		t.Error(err)
	}
	b.examine(t.Context(), c)
	if users, err := pgtest.Server.Entered(database); err != nil || slices.Contains(users, admin) || !slices.Contains(users, b.user()) {
		t.Errorf("%q logged in to the application's database (%v)", users, err)
	}
}

// TestTheObserverLooksIntoAnApplicationsDatabase, and nobody else of Pawl's does.
func TestTheObserverLooksIntoAnApplicationsDatabase(t *testing.T) {
	b := newBed(t, saga.Alternating)
	database := b.inADatabaseOfItsOwn(t)
	logConnections(t, "on")
	defer logConnections(t, "off")
	b.admits(t)
	if _, err := b.run(t, b.verify); err != nil {
		t.Fatal(err)
	}
	want := []string{b.observer, b.user()}
	slices.Sort(want)
	if users, err := pgtest.Server.Entered(database); err != nil || !slices.Equal(users, want) {
		t.Errorf("%q logged in to the application's database, want %q (%v)", users, want, err)
	}
	for option, warned := range map[string]bool{"NOCREATEROLE": false, "CREATEROLE": true} {
		pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.observer)+" "+option)
		if lines := b.check(t.Context(), b.rotation.Credential); finding(lines, false, "and may alter roles") != warned {
			t.Errorf("%s: %v, want a warning: %v", option, lines, warned)
		}
	}
}

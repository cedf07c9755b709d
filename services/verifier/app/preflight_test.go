package app

import (
	"fmt"
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/services/verifier/internal/pgtest"
)

// refuses demands that preflight refuses, saying text.
func (b *bed) refuses(t *testing.T, text string) {
	t.Helper()
	if lines := b.check(t.Context(), b.rotation.Credential); !finding(lines, true, text) {
		t.Errorf("no refusal says %q: %v", text, lines)
	}
}

// admits demands that preflight refuses nothing.
func (b *bed) admits(t *testing.T) {
	t.Helper()
	for _, line := range b.check(t.Context(), b.rotation.Credential) {
		if line.GetRefused() {
			t.Errorf("refused: %v", line)
		}
	}
}

func TestPreflightFindsNoRoom(t *testing.T) {
	b := newBed(t, saga.Alternating)
	c := b.rotation.Credential
	c.Verify = []inventory.Probe{{Pool: &inventory.Pool{Connections: 4}}}
	old, next := pgtest.Quote(b.role), pgtest.Quote(b.user())
	pgtest.Exec(t, "ALTER ROLE "+old+" CONNECTION LIMIT 7", "ALTER ROLE "+next+" CONNECTION LIMIT 7")
	for range 2 {
		pgtest.Login(t, b.role, "api application")
	}
	b.admits(t)
	// The next login will have the sessions that this one has.
	pgtest.Login(t, b.role, "api application")
	b.refuses(t, "the pool probe needs 5 connections, the CONNECTION LIMIT of "+old+" has 4 left: raise that of both logins")
	c.Verify = nil
	b.admits(t)

	// Old and new sessions of the largest consumer stand beside each other for
	// a moment, in the database and on the server.
	database := strings.ReplaceAll(strings.ToLower(b.role), " ", "_")
	pgtest.Exec(t, "CREATE DATABASE "+database+" CONNECTION LIMIT 6")
	c.Database = database
	b.consumes("api", 1)
	b.consumes("worker", 1)
	b.admits(t)
	for range 2 {
		pgtest.SuperIn(t, database)
	}
	b.admits(t) // 3 left beside the observer, and 3 of api
	pgtest.Login(t, b.role, "api application")
	b.refuses(t, `4 new sessions may stand beside as many old ones, and the CONNECTION LIMIT of database `+database+` has 3 left`)
	c.Strategy, c.Role = inventory.InPlace, b.role
	b.admits(t)
}

func TestPreflightFindsALineOfOneLogin(t *testing.T) {
	b := newBed(t, saga.Alternating)
	c := b.rotation.Credential
	c.Cluster.Observer = c.Cluster.Admin // who may read the rules
	b.admits(t)
	old, next := `"`+b.role+`"`, `"`+b.user()+`"`
	for name, h := range map[string]struct {
		lines []string
		says  string
	}{
		"one from elsewhere":            {[]string{"host all " + old + " 10.1.0.0/16 scram-sha-256"}, fmt.Sprintf("names %q, and no line lets %q in from there", b.role, b.user())},
		"the sibling from elsewhere":    {[]string{"host all " + next + " 10.1.0.0/16 scram-sha-256"}, fmt.Sprintf("names %q, and no line lets %q in from there", b.user(), b.role)},
		"the other in a smaller net":    {[]string{"host all " + old + " 10.1.0.0/16 scram-sha-256", "host all " + next + " 10.1.2.0/24 scram-sha-256"}, fmt.Sprintf("names %q, and no line", b.role)},
		"the other in the net's begin":  {[]string{"host all " + old + " 10.1.0.0/16 scram-sha-256", "host all " + next + " 10.1.0.0/24 scram-sha-256"}, fmt.Sprintf("names %q, and no line", b.role)},
		"the other in a larger net":     {[]string{"host all " + old + "," + next + " 10.1.0.0/16 md5"}, ""},
		"another database":              {[]string{"host elsewhere " + old + " 10.1.0.0/16 scram-sha-256"}, ""},
		"the other rejected":            {[]string{"host all " + old + " 10.1.0.0/16 scram-sha-256", "host all " + next + " 10.1.0.0/16 reject"}, fmt.Sprintf("names %q, and no line", b.role)},
		"by membership":                 {[]string{"host all " + old + " 10.1.0.0/16 scram-sha-256", "host all +" + old + " 10.1.0.0/16 scram-sha-256"}, ""},
		"one rejected from here":        {[]string{"host all " + next + " 127.0.0.1/32 reject"}, fmt.Sprintf("rejects %q", b.user())},
		"one let in by trust from here": {[]string{"host all " + next + " 127.0.0.1/32 trust"}, fmt.Sprintf("lets %q in by trust", b.user())},
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.HBA(t, pgtest.Server, h.lines...)
			if h.says == "" {
				b.admits(t)
			} else {
				b.refuses(t, h.says)
			}
		})
	}
	t.Run("a sibling that is not made yet is a member of what its owner is", func(t *testing.T) {
		role := pgtest.Name()
		pgtest.Create(t, role, "")
		c.Role = role
		pgtest.HBA(t, pgtest.Server, `host all +"`+role+`" 127.0.0.1/32 scram-sha-256`, `host all "`+role+`_b" 127.0.0.1/32 trust`)
		b.admits(t)
	})
}

func TestPreflightFindsPoliciesThatDivideTheLogins(t *testing.T) {
	b := newBed(t, saga.Alternating)
	role, sibling := pgtest.Quote(b.role), pgtest.Quote(b.user())
	schema := strings.ReplaceAll(strings.ToLower(b.role), " ", "_")
	table := schema + ".orders"
	pgtest.Exec(t, "CREATE SCHEMA "+schema, "CREATE TABLE "+table+" (tenant text)", "GRANT SELECT ON "+table+" TO "+role, "ALTER TABLE "+table+" ENABLE ROW LEVEL SECURITY")
	for name, p := range map[string]struct{ policy, says string }{
		"current_user":                 {"USING (tenant = current_user)", ""},
		"session_user":                 {"USING (tenant = session_user)", "policy " + table + ".p asks for session_user"},
		"session_user in a check":      {"FOR INSERT WITH CHECK (tenant = upper(session_user))", "policy " + table + ".p asks for session_user"},
		"the word in a text":           {"USING (tenant <> 'session_user')", ""},
		"for somebody else":            {"TO pg_monitor USING (tenant = session_user)", ""},
		"for the owner":                {"TO " + role + " USING (true)", ""},
		"for the sibling":              {"TO " + sibling + " USING (true)", "policy " + table + ".p is for " + sibling + " alone, as whom nobody acts: make it TO " + role},
		"for the owner or the sibling": {"TO " + sibling + ", " + role + " USING (true)", ""},
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.Exec(t, "CREATE POLICY p ON "+table+" "+p.policy)
			defer pgtest.Exec(t, "DROP POLICY p ON "+table)
			if p.says == "" {
				b.admits(t)
			} else {
				b.refuses(t, p.says)
			}
		})
	}
	pgtest.Exec(t, "CREATE POLICY p ON "+table+" USING (tenant = session_user)")
	b.refuses(t, "asks for session_user")
	for _, way := range [][2]string{
		{"ALTER TABLE " + table + " OWNER TO " + role, "ALTER TABLE " + table + " FORCE ROW LEVEL SECURITY"}, // owners are not bound
		{"ALTER ROLE " + role + " BYPASSRLS", "ALTER ROLE " + role + " NOBYPASSRLS"},
		{"ALTER TABLE " + table + " DISABLE ROW LEVEL SECURITY", ""},
	} {
		pgtest.Exec(t, way[0])
		b.admits(t)
		if way[1] != "" {
			pgtest.Exec(t, way[1])
			b.refuses(t, "asks for session_user")
		}
	}
}

// What verify would find when the new login is out already, preflight finds
// before anything is touched, in the credential's own database.
func TestPreflightComparesTheLogins(t *testing.T) {
	b := newBed(t, saga.Alternating)
	c := b.rotation.Credential
	c.Database = strings.ReplaceAll(strings.ToLower(b.role), " ", "_")
	role, sibling := pgtest.Quote(b.role), pgtest.Quote(b.user())
	pgtest.Exec(t, "CREATE DATABASE "+c.Database, "ALTER ROLE "+sibling+" NOLOGIN")
	b.admits(t)
	pgtest.Exec(t, "ALTER ROLE "+role+" SET statement_timeout = '9s'")
	b.refuses(t, "login "+sibling+" differs from "+role+", which it replaces: setting statement_timeout (ALTER ROLE "+sibling)
	pgtest.Exec(t, "ALTER ROLE "+sibling+" LOGIN", "ALTER ROLE "+role+" NOLOGIN") // the way back
	b.refuses(t, "login "+role+" differs from "+sibling+", which it replaces: setting statement_timeout (ALTER ROLE "+role+" RESET")
	pgtest.Exec(t, "ALTER ROLE "+role+" RESET statement_timeout")

	if _, err := pgtest.SuperIn(t, c.Database).Exec(t.Context(), "CREATE TABLE public.made (); ALTER TABLE made OWNER TO "+sibling); err != nil {
		t.Fatal(err)
	}
	b.refuses(t, "it owns table public.made (REASSIGN OWNED BY "+sibling+" TO "+role+")")
	if _, err := pgtest.SuperIn(t, c.Database).Exec(t.Context(), "REASSIGN OWNED BY "+sibling+" TO "+role); err != nil {
		t.Fatal(err)
	}
	b.admits(t)
	pgtest.Exec(t, "REVOKE CONNECT ON DATABASE "+c.Database+" FROM PUBLIC")
	b.accounts.close()
	b.refuses(t, fmt.Sprintf("cannot log in to database %q", c.Database))
}

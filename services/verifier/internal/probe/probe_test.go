package probe

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/services/verifier/internal/pgtest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Run(m, pgserver.Options{}))
}

// as logs in for a probe.
func as(t *testing.T, user, role, old string) *Login {
	t.Helper()
	return &Login{
		Conn: pgtest.Login(t, user, ""), User: user, Role: role, Old: old,
		Another: func(ctx context.Context) (*pgx.Conn, error) { return postgres.Login(ctx, pgtest.Target(user, "")) },
	}
}

// pair makes an owner and its sibling, and logs in as the sibling.
func pair(t *testing.T, owner, sibling string) *Login {
	t.Helper()
	role := pgtest.Name()
	pgtest.Create(t, role, owner)
	return as(t, pgtest.Sibling(t, role, sibling), role, role)
}

// conformance is what every probe is held to: one login that passes, and others
// with a fault that must be found and named.
type conformance struct {
	probe  Probe
	good   func(*testing.T) *Login
	faulty map[string]fault
}

type fault struct {
	login func(*testing.T) *Login
	names []string // what the error must say; %s is the login
}

func TestProbesConform(t *testing.T) {
	for _, c := range []conformance{identity, privileges, statement, pool} {
		t.Run(c.probe.Name(), func(t *testing.T) {
			t.Parallel()
			t.Run("passes, and again", func(t *testing.T) {
				l := c.good(t)
				opened := make(chan *pgx.Conn, 2*pool.probe.(Pool).Connections)
				another := l.Another
				l.Another = func(ctx context.Context) (*pgx.Conn, error) {
					conn, err := another(ctx)
					opened <- conn
					return conn, err
				}
				for range 2 {
					if err := c.probe.Run(t.Context(), l); err != nil {
						t.Fatal(err)
					}
				}
				close(opened)
				for conn := range opened {
					if !conn.IsClosed() {
						t.Error("it leaves a connection behind")
					}
				}
			})
			t.Run("a lost connection may come back", func(t *testing.T) {
				l := c.good(t)
				pgtest.End(t, l.Conn)
				l.Another = func(ctx context.Context) (*pgx.Conn, error) {
					nowhere := pgtest.Target(l.User, "")
					nowhere.Port = 1
					return postgres.Login(ctx, nowhere)
				}
				if err := c.probe.Run(t.Context(), l); err == nil || saga.IsPermanent(err) {
					t.Errorf("got %v; want an error worth another try", err)
				}
			})
			for name, f := range c.faulty {
				t.Run(name, func(t *testing.T) {
					l := f.login(t)
					err := c.probe.Run(t.Context(), l)
					if !saga.IsPermanent(err) {
						t.Fatalf("got %v; want a permanent failure", err)
					}
					for _, want := range f.names {
						if want = strings.ReplaceAll(want, "%s", pgtest.Quote(l.User)); !strings.Contains(err.Error(), want) {
							t.Errorf("got %q; want it to say %q", err, want)
						}
					}
					if strings.Contains(err.Error(), pgtest.Password) {
						t.Error("the error holds the password")
					}
				})
			}
		})
	}
}

var identity = conformance{
	probe: Identity{},
	good:  func(t *testing.T) *Login { return pair(t, "", "") },
	faulty: map[string]fault{
		"missing membership": {func(t *testing.T) *Login {
			role := pgtest.Name()
			pgtest.Create(t, role, "")
			pgtest.Create(t, role+"_b", "")
			pgtest.Exec(t, fmt.Sprintf("ALTER ROLE %s SET role TO %s", pgtest.Quote(role+"_b"), pgtest.Quote(role)))
			return as(t, role+"_b", role, role)
		}, []string{"may not become", "GRANT", "TO %s"}},
		"missing SET role": {func(t *testing.T) *Login {
			role := pgtest.Name()
			pgtest.Create(t, role, "")
			pgtest.Create(t, role+"_b", "IN ROLE "+pgtest.Quote(role))
			return as(t, role+"_b", role, role)
		}, []string{"ALTER ROLE %s SET role TO"}},
		"renamed session": {func(t *testing.T) *Login {
			l := pair(t, "", "")
			l.User = "somebody"
			return l
		}, []string{"somebody"}},
	},
}

// differing is a login whose sibling, or whose owner, was altered.
func differing(owner, sibling string, more ...string) func(*testing.T) *Login {
	return func(t *testing.T) *Login {
		l := pair(t, owner, sibling)
		for _, sql := range more {
			sql = strings.ReplaceAll(sql, "OLD", pgtest.Quote(l.Old))
			pgtest.Exec(t, strings.ReplaceAll(sql, "NEW", pgtest.Quote(l.User)))
		}
		return l
	}
}

var privileges = conformance{
	probe: Privileges{},
	// CREATEDB of the owner counts for both.
	good: differing("CREATEDB CONNECTION LIMIT 9", "CONNECTION LIMIT 9",
		"ALTER ROLE OLD SET work_mem = '5MB'", "ALTER ROLE NEW SET work_mem = '5MB'", "GRANT pg_monitor TO OLD"),
	faulty: map[string]fault{
		"setting missing": {differing("", "", "ALTER ROLE OLD SET application_name = 'private value'"), []string{"ALTER ROLE %s SET application_name to what"}},
		"setting differs": {differing("", "", "ALTER ROLE OLD SET work_mem = '5MB'", "ALTER ROLE NEW SET work_mem = '6MB'"), []string{"SET work_mem"}},
		"setting too many": {differing("", "", "ALTER ROLE NEW IN DATABASE postgres SET work_mem = '6MB'"),
			[]string{`ALTER ROLE %s IN DATABASE "postgres" RESET work_mem`}},
		"limits":              {differing("CONNECTION LIMIT 9 VALID UNTIL '2100-01-01 00:00Z'", ""), []string{"ALTER ROLE %s CONNECTION LIMIT 9", "ALTER ROLE %s VALID UNTIL '2100-01-01"}},
		"attribute missing":   {differing("REPLICATION", ""), []string{"ALTER ROLE %s REPLICATION"}},
		"attributes too many": {differing("", "CREATEDB CREATEROLE BYPASSRLS"), []string{"ALTER ROLE %s NOCREATEDB", "ALTER ROLE %s NOCREATEROLE", "ALTER ROLE %s NOBYPASSRLS"}},
		"membership too many": {differing("", "", "GRANT pg_monitor TO NEW"), []string{`REVOKE "pg_monitor" FROM %s`}},
		"membership missing": {func(t *testing.T) *Login {
			l := pair(t, "", "")
			l.User, l.Old = l.Old, l.User // back from the sibling to the owner
			pgtest.Exec(t, "GRANT pg_monitor TO "+pgtest.Quote(l.Old))
			return l
		}, []string{`GRANT "pg_monitor" TO %s`}},
	},
}

var statement = conformance{
	probe: SQL{Index: 3, Text: "SELECT count(*) FROM pg_tables; SELECT now(); DO $$ BEGIN IF current_user LIKE '%broken_b' THEN RAISE 'no luck' USING ERRCODE = 'P0042'; END IF; END $$"},
	good:  func(t *testing.T) *Login { return single(t, pgtest.Name()) },
	faulty: map[string]fault{
		"statement fails": {func(t *testing.T) *Login { return single(t, pgtest.Name()+"broken_b") }, []string{"verify[3] (sql)", "SQLSTATE P0042", "no luck"}},
	},
}

var pool = conformance{
	probe: Pool{Index: 1, Connections: 3},
	good:  func(t *testing.T) *Login { return single(t, pgtest.Name()) },
	faulty: map[string]fault{
		"connection limit": {func(t *testing.T) *Login {
			name := pgtest.Name()
			pgtest.Create(t, name, "CONNECTION LIMIT 3")
			return as(t, name, name, "")
		}, []string{"verify[1] (pool): ", " of 3 connections", "53300", "CONNECTION LIMIT"}},
	},
}

func single(t *testing.T, name string) *Login {
	t.Helper()
	pgtest.Create(t, name, "")
	return as(t, name, name, "")
}

func TestSettingsValuesStayInTheDatabase(t *testing.T) {
	l := differing("", "", "ALTER ROLE OLD SET application_name = 'private value'")(t)
	if err := (Privileges{}).Run(t.Context(), l); err == nil || strings.Contains(err.Error(), "private") {
		t.Errorf("got %v; want the name of the setting alone", err)
	}
}

func TestSlowStatementIsEndedByTheServer(t *testing.T) {
	l := single(t, pgtest.Name())
	if err := (SQL{Text: "SELECT 1"}).Run(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	var timeout string
	if err := l.Conn.QueryRow(t.Context(), "SHOW statement_timeout").Scan(&timeout); err != nil || timeout != "10s" {
		t.Errorf("statement_timeout %q, %v; want 10s", timeout, err)
	}
	err := (SQL{Text: "SET statement_timeout = 1; SELECT pg_sleep(60)"}).Run(t.Context(), l)
	if !saga.IsPermanent(err) || !strings.Contains(err.Error(), "57014") {
		t.Errorf("got %v; want a permanent failure with SQLSTATE 57014", err)
	}
}

func TestOwnerWithItsOwnSetRoleActsAsThatRole(t *testing.T) {
	group, role := pgtest.Name(), pgtest.Name()
	pgtest.Create(t, group, "")
	pgtest.Create(t, role, "IN ROLE "+pgtest.Quote(group))
	pgtest.Exec(t, fmt.Sprintf("ALTER ROLE %s SET role TO %s", pgtest.Quote(role), pgtest.Quote(group)))
	if err := (Identity{}).Run(t.Context(), as(t, role, role, "")); err != nil {
		t.Error(err)
	}
}

func TestProbesRunInTheConfiguredOrder(t *testing.T) {
	var names []string
	for _, p := range For(&inventory.Credential{Verify: []inventory.Probe{{SQL: "SELECT 1"}, {Pool: &inventory.Pool{Connections: 2}}, {SQL: "SELECT 2"}}}) {
		names = append(names, p.Name())
	}
	if want := []string{"identity", "privileges", "sql 0", "pool 1", "sql 2"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

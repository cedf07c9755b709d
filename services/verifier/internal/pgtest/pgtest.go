// Package pgtest gives this module's tests a real PostgreSQL, one per test
// binary, and logins on it. Only tests import it.
package pgtest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// Server is what Run started.
var Server *pgserver.Server

// Password is that of every role that tests make. No output may show it.
const Password = "c4nary-Passw0rd-of-the-verifiers-tests"

// Run runs the tests of m beside a server, and returns their exit code.
func Run(m *testing.M, o pgserver.Options) int {
	var err error
	o.NoSync = true
	if Server, err = pgserver.Start(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := Server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return m.Run()
}

var roles atomic.Int32

// Name returns a role name that no other test uses, one that needs quoting.
func Name() string { return fmt.Sprintf("App %d", roles.Add(1)) }

// Quote writes an identifier.
func Quote(name string) string { return pgx.Identifier{name}.Sanitize() }

var standbys sync.Mutex

// Standby starts a standby of the server, for one test.
func Standby(t *testing.T, of *pgserver.Server, settings map[string]string) *pgserver.Server {
	t.Helper()
	standbys.Lock() // the first makes the role that all stream as
	standby, err := of.Standby(t.Context(), pgserver.Options{NoSync: true, Settings: settings})
	standbys.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	return standby
}

// Create makes a login with Password; options follow the name.
func Create(t *testing.T, name, options string) {
	t.Helper()
	verifier, err := postgres.Verifier(secret.New(Password))
	if err != nil {
		t.Fatal(err)
	}
	Exec(t, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s' %s", Quote(name), verifier.Reveal(), options))
}

// Sibling makes the second login of an owner.
func Sibling(t *testing.T, owner, options string) string {
	t.Helper()
	name := owner + "_b"
	Create(t, name, "IN ROLE "+Quote(owner)+" "+options)
	Exec(t, fmt.Sprintf("ALTER ROLE %s SET role TO %s", Quote(name), Quote(owner)))
	return name
}

// Exec runs statements as the superuser.
func Exec(t *testing.T, statements ...string) {
	t.Helper()
	conn := Super(t)
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	End(t, conn)
}

// Super logs in as the superuser.
func Super(t *testing.T) *pgx.Conn {
	t.Helper()
	return SuperIn(t, "postgres")
}

// SuperIn logs in as the superuser, to another database.
func SuperIn(t *testing.T, database string) *pgx.Conn {
	t.Helper()
	target := Target(Server.Superuser, "")
	target.Password, target.Database = Server.Password, database
	return login(t, target)
}

// SuperOn logs in as the superuser of another server.
func SuperOn(t *testing.T, server *pgserver.Server) *pgx.Conn {
	t.Helper()
	target := Target(server.Superuser, "")
	target.Port, target.Password = server.Port, server.Password
	return login(t, target)
}

// On runs a statement as the superuser of another server.
func On(t *testing.T, server *pgserver.Server, sql string) {
	t.Helper()
	conn := SuperOn(t, server)
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	End(t, conn)
}

// LoginOn logs in with Password on another server.
func LoginOn(t *testing.T, server *pgserver.Server, user, application string) *pgx.Conn {
	t.Helper()
	target := Target(user, application)
	target.Port = server.Port
	return login(t, target)
}

// Target is a login with Password.
func Target(user, application string) postgres.Target {
	return postgres.Target{
		Host: Server.Host, Port: Server.Port, Database: "postgres", User: user, Password: secret.New(Password),
		SSLMode: "disable", ApplicationName: application,
	}
}

// Login logs in with Password; the session ends with the test.
func Login(t *testing.T, user, application string) *pgx.Conn {
	t.Helper()
	return login(t, Target(user, application))
}

func login(t *testing.T, target postgres.Target) *pgx.Conn {
	t.Helper()
	conn, err := postgres.Login(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// End ends a session.
func End(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// HBA puts lines above a server's pg_hba rules until the test ends. They are in
// the file alone: the server goes on by those that it has.
func HBA(t *testing.T, server *pgserver.Server, lines ...string) {
	t.Helper()
	var file string
	if err := SuperOn(t, server).QueryRow(t.Context(), "SHOW hba_file").Scan(&file); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Join(lines, "\n") + "\n" + string(before))
	t.Cleanup(func() { write(string(before)) })
}

// Now is the server's clock.
func Now(t *testing.T) (now time.Time) {
	t.Helper()
	if err := Super(t).QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&now); err != nil {
		t.Fatal(err)
	}
	return now
}

// Await looks until the query, run as the superuser, answers true.
func Await(t *testing.T, query string, args ...any) {
	t.Helper()
	AwaitOn(t, Server, query, args...)
}

// AwaitOn is Await on another server.
func AwaitOn(t *testing.T, server *pgserver.Server, query string, args ...any) {
	t.Helper()
	conn := SuperOn(t, server)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var yes bool
		if err := conn.QueryRow(t.Context(), query, args...).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("never true: %s", query)
		}
	}
}

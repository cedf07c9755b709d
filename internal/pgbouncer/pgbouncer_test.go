package pgbouncer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

var server *pgserver.Server

const password = "c4nary-Passw0rd-of-an-application"

func TestMain(m *testing.M) {
	var err error
	if server, err = pgserver.Start(context.Background(), pgserver.Options{NoSync: true}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(t *testing.T, statements ...string) {
	t.Helper()
	conn, err := postgres.Login(t.Context(), postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres", User: server.Superuser, Password: server.Password, SSLMode: "disable"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal("a statement failed")
		}
	}
}

func verifier(t *testing.T) string {
	t.Helper()
	v, err := postgres.Verifier(secret.New(password))
	if err != nil {
		t.Fatal(err)
	}
	return v.Reveal()
}

// query logs in through the pooler and asks something: logging in alone does
// not make pgbouncer do so.
func query(t *testing.T, p *pooltest.Pooler, user, database string) (*pgx.Conn, error) {
	t.Helper()
	conn, err := postgres.Login(t.Context(), p.Target(user, password, database))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	_, err = conn.Exec(t.Context(), "SELECT 1", pgx.QueryExecModeSimpleProtocol)
	return conn, err
}

func TestOnlyTheIdenticalVerifierLogsInThroughThePooler(t *testing.T) {
	first, other := verifier(t), verifier(t)
	for _, role := range []string{"same", "salted", `odd "one"`} {
		run(t, "CREATE ROLE "+pgx.Identifier{role}.Sanitize()+" LOGIN PASSWORD '"+first+"'")
	}
	p := pooltest.Start(t, server.Port, "; logins\n\n"+pooltest.Line("same", first)+pooltest.Line("salted", other)+pooltest.Line(`odd "one"`, first), nil)
	for user, works := range map[string]bool{"same": true, `odd "one"`: true, "salted": false, "absent": false} {
		if _, err := query(t, p, user, "postgres"); (err == nil) != works {
			t.Errorf("%s: %v", user, err)
		}
	}
}

func TestConsoleReloadsReconnectsAndTells(t *testing.T) {
	v := verifier(t)
	run(t, "CREATE ROLE app LOGIN PASSWORD '"+v+"'", `CREATE DATABASE "My ""DB"""`)
	p := pooltest.Start(t, server.Port, "", map[string]string{"databases": "sole = host=127.0.0.1 user=app\n", "auth_user": "asker"})
	console := p.Open(t)
	settings, err := console.Config(t.Context())
	if err != nil || settings["auth_file"] != p.Userlist || settings["auth_type"] != "scram-sha-256" || settings["auth_user"] != "asker" || console.Admin(settings) != nil {
		t.Errorf("%v, %q", err, settings)
	}
	if forced, err := console.Forced(t.Context(), []string{"app"}); err != nil || !slices.Equal(forced, []string{"sole"}) {
		t.Errorf("%q, %v", forced, err)
	}

	list, err := os.ReadFile(p.Userlist)
	if err != nil {
		t.Fatal(err)
	}
	users, err := pgbouncer.ParseUserlist(list)
	if err != nil {
		t.Fatal(err)
	}
	users.Set("app", secret.New(v), "")
	if err := os.WriteFile(p.Userlist, users.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := console.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, database := range []string{"postgres", `My "DB"`} {
		conn, err := query(t, p, "app", database)
		if err != nil {
			t.Fatal(err)
		}
		if err := console.Reconnect(t.Context(), database); err != nil {
			t.Fatal(err)
		}
		held, err := console.Servers(t.Context(), []string{"app"})
		if err != nil || len(held) != 1 || held[0].Database != database || held[0].State != "active" || !held[0].Closing || !held[0].Is(held[0]) {
			t.Fatalf("%+v, %v", held, err)
		}
		conn.Close(t.Context())
		for len(held) > 0 { // bounded by the test's own
			if held, err = console.Servers(t.Context(), []string{"app"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if others, err := console.Servers(t.Context(), []string{"other"}); err != nil || len(others) > 0 {
		t.Errorf("%+v, %v", others, err)
	}
}

func TestWhoMayNotUseTheConsoleIsToldWhy(t *testing.T) {
	p := pooltest.Start(t, server.Port, pooltest.Line("stranger", pooltest.Password)+pooltest.Line("statistician", pooltest.Password), map[string]string{"stats_users": "statistician"})
	try := func(change func(*inventory.Console)) (*pgbouncer.Console, error) {
		c := p.Console
		change(&c)
		console, err := pgbouncer.Open(t.Context(), c)
		if err != nil && strings.Contains(err.Error(), "c4nary") {
			t.Error("tells a password")
		}
		return console, err
	}
	if _, err := try(func(c *inventory.Console) { c.User = "stranger" }); !errors.As(err, new(*pgbouncer.Refused)) || !strings.Contains(err.Error(), `"stranger" is none of admin_users`) {
		t.Errorf("a stranger: %v", err)
	}
	console, err := try(func(c *inventory.Console) { c.User = "statistician" })
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	settings, err := console.Config(t.Context())
	if err != nil || !errors.As(console.Admin(settings), new(*pgbouncer.Refused)) {
		t.Errorf("a statistician: %v", err)
	}
	if err := console.Reload(t.Context()); !errors.As(err, new(*pgbouncer.Refused)) {
		t.Errorf("a statistician reloads: %v", err)
	}
	if _, err := try(func(c *inventory.Console) { c.PasswordFile = p.Userlist }); err == nil || !strings.Contains(err.Error(), "correct what "+p.Userlist+" holds") {
		t.Errorf("a wrong password: %v", err)
	}
	if _, err := try(func(c *inventory.Console) { c.User = "nobody" }); err == nil || !strings.Contains(err.Error(), `the line of "nobody"`) {
		t.Errorf("no such user: %v", err)
	}
	p.Stop()
	if _, err := try(func(*inventory.Console) {}); err == nil || !strings.Contains(err.Error(), p.Console.Address()) {
		t.Errorf("no pgbouncer: %v", err)
	}
}

func TestSetTouchesNothingButTheSecret(t *testing.T) {
	for _, c := range []struct{ name, before, login, after string }{
		{"plain", "\"a\" \"1\"\n\"app\" \"old\"\n\"b\" \"2\"", "app", "\"a\" \"1\"\n\"app\" \"n\"\"ew\"\n\"b\" \"2\""},
		{"comments, blanks and what stands behind", "; \"app\" \"no\"\n\n \"app\"\t\"old\" trailing \"x\"\r\n", "app", "; \"app\" \"no\"\n\n \"app\"\t\"n\"\"ew\" trailing \"x\"\r\n"},
		{"every entry", "\"app\" \"1\"\n\"app\" \"2\"\n", "app", "\"app\" \"n\"\"ew\"\n\"app\" \"n\"\"ew\"\n"},
		{"quotes in a name", "\"a\"\"b\" \"old\"\n", `a"b`, "\"a\"\"b\" \"n\"\"ew\"\n"},
		{"behind the other login", "\"other\" \"1\"\n\"b\" \"2\"\n", "app", "\"other\" \"1\"\n\"app\" \"n\"\"ew\"\n\"b\" \"2\"\n"},
		{"behind the other, on the last line", "\"other\" \"1\"", "app", "\"other\" \"1\"\n\"app\" \"n\"\"ew\"\n"},
		{"at the end", "\"b\" \"2\"\n; end", "app", "\"b\" \"2\"\n\"app\" \"n\"\"ew\"\n; end"},
		{"in an empty file", "", "app", "\"app\" \"n\"\"ew\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := c.before
			for range 2 {
				u, err := pgbouncer.ParseUserlist([]byte(text))
				if err != nil {
					t.Fatal(err)
				}
				u.Set(c.login, secret.New(`n"ew`), "other")
				if text = string(u.Bytes()); text != c.after {
					t.Fatalf("got  %q\nwant %q", text, c.after)
				}
			}
		})
	}
}

func TestFileThatPgbouncerReadsNoFurtherIsRefusedByLine(t *testing.T) {
	for text, line := range map[string]string{
		"\"a\" \"hush\"\n# no comment\n\"b\" \"hush\"\n": "line 2:",
		"\"a\" hush\n":              "line 1:",
		"\n\"a\" \"hush":            "line 2:",
		"\"a\" \"hush\"\n\"b\"":     "line 2:",
		"\"a\" \"hush\"\n\x00\"b\"": "line 2:",
	} {
		if _, err := pgbouncer.ParseUserlist([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), line) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzUserlist: whatever is read is given back, what is set reads back, and
// other logins keep what they have.
func FuzzUserlist(f *testing.F) {
	f.Add("\"app\" \"old\"\n; c\n\"o\"\"x\" \"\"\n", `p"w`)
	f.Add("\"a\"\n\n\"b\" rest\n\"app\"\"\" \"\"\"\"", "")
	f.Fuzz(func(t *testing.T, text, value string) {
		u, err := pgbouncer.ParseUserlist([]byte(text))
		if err != nil {
			return
		}
		if got := string(u.Bytes()); got != text {
			t.Fatalf("%q became %q", text, got)
		}
		if strings.Contains(value, "\x00") {
			return
		}
		others := map[string]secret.String{}
		for _, name := range []string{"a", "b", "o\"x", ""} {
			others[name], _ = u.Lookup(name)
		}
		u.Set("app", secret.New(value), "a")
		once := u.Bytes()
		again, err := pgbouncer.ParseUserlist(once)
		if err != nil {
			t.Fatalf("%q: %v", once, err)
		}
		if got, ok := again.Lookup("app"); !ok || got.Reveal() != value {
			t.Fatalf("%q reads back as %q", value, got.Reveal())
		}
		for name, was := range others {
			if now, _ := again.Lookup(name); !now.Equal(was) {
				t.Fatalf("%q is now %q", name, now.Reveal())
			}
		}
		if again.Set("app", secret.New(value), "a"); !bytes.Equal(again.Bytes(), once) {
			t.Fatalf("again: %q", again.Bytes())
		}
	})
}

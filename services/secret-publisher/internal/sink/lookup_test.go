package sink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

func startServer(t *testing.T) *pgserver.Server {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

func try(t *testing.T, target postgres.Target, sql string) error {
	t.Helper()
	conn, err := postgres.Login(t.Context(), target)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	return err
}

// alter makes the login carry the content's verifier.
func alter(t *testing.T, s *pgserver.Server, verb string, c Content) {
	t.Helper()
	super := postgres.Target{Host: s.Host, Port: s.Port, Database: "postgres", User: s.Superuser, Password: s.Password, SSLMode: "disable"}
	if err := try(t, super, fmt.Sprintf("%s ROLE %s LOGIN PASSWORD '%s'", verb, pgx.Identifier{c.User}.Sanitize(), c.Verifier.Reveal())); err != nil {
		t.Fatal(err)
	}
}

func content(user, password string) Content {
	return Content{Login: inventory.Login{User: user, Password: secret.New(password)}, Verifier: verifiers(secret.New(password))}
}

// pooled is a credential published to the pooler.
func pooled(p *pooltest.Pooler, change func(*inventory.Userlist)) Sink {
	u := &inventory.Userlist{Path: p.Userlist, AuthFile: p.Userlist, Console: p.Console}
	if change != nil {
		change(u)
	}
	return Of(&inventory.Credential{Name: "app", Role: "app", Strategy: inventory.Alternating, Publish: []inventory.Sink{{Pgbouncer: u}}})[0]
}

func reload(t *testing.T, s Sink) {
	t.Helper()
	if err := s.(Reloader).Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestNewLoginPassesThePoolerOnceItHasReloaded(t *testing.T) {
	server := startServer(t)
	was, next := content("app", "password-of-app"), content("app_b", "password-of-app_b")
	alter(t, server, "CREATE", was)
	alter(t, server, "CREATE", next)
	p := pooltest.Start(t, server.Port, pooltest.Line("app", was.Verifier.Reveal()), nil)
	s := pooled(p, nil)
	through := func(c Content) error {
		return try(t, p.Target(c.User, c.Password.Reveal(), "postgres"), "SELECT 1")
	}
	if warnings, err := s.Check(t.Context(), next); err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	if through(was) != nil || through(next) == nil {
		t.Fatal("before: only the old login passes")
	}
	// As it is where the writer dies before its reload.
	if changed, err := s.Write(t.Context(), next, open); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if changed, err := pooled(p, nil).Write(t.Context(), next, open); err != nil || changed {
		t.Fatal(changed, err)
	}
	reload(t, s)
	if err := errors.Join(through(was), through(next)); err != nil {
		t.Fatalf("both logins pass: %v", err)
	}
	// In place: the same login, another password.
	anew := content("app", "another-password-of-app")
	alter(t, server, "ALTER", anew)
	if _, err := s.Write(t.Context(), anew, open); err != nil {
		t.Fatal(err)
	}
	reload(t, s)
	if err := through(anew); err != nil {
		t.Error(err)
	}
	if text := get(t, p.Userlist); !strings.HasSuffix(text, pooltest.Line(pooltest.Boss, pooltest.Password)) || strings.Contains(text, "password-of") {
		t.Errorf("%q", text)
	}
}

func TestVerifierOfAnotherSaltIsNotAdoptedAndAPlaintextIs(t *testing.T) {
	want := content("app", "password-of-app")
	salted, err := postgres.Verifier(want.Password)
	if err != nil {
		t.Fatal(err)
	}
	unknown := want
	unknown.Verifier = secret.String{}
	for _, c := range []struct {
		name, line, says string
		want             Content
	}{
		{"the nodes' verifier", pooltest.Line("app", want.Verifier.Reveal()), "", want},
		{"the password", pooltest.Line("app", "password-of-app"), "", want},
		{"another salt", pooltest.Line("app", salted.Reveal()), "cannot pass their login on", want},
		{"another salt, where the nodes' is not known", pooltest.Line("app", salted.Reveal()), "", unknown},
		{"another password", pooltest.Line("app", "hush"), "another password of app", want},
		{"no line", pooltest.Line("app_b", "password-of-app"), "another login than that of app", want},
		{"a line that pgbouncer does not reach", "#\n" + pooltest.Line("app", "password-of-app"), "line 1: pgbouncer reads no further", want},
	} {
		path := filepath.Join(t.TempDir(), "userlist.txt")
		put(t, path, c.line)
		s := Of(&inventory.Credential{Role: "app", Publish: []inventory.Sink{{Pgbouncer: &inventory.Userlist{Path: path}}}})[0]
		err := Holds(t.Context(), s, c.want)
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "hush")) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestPoolerThatCouldNotTakeALoginIsRefusedBefore(t *testing.T) {
	want := content("app_b", "password-of-app_b")
	for _, c := range []struct {
		name, says string
		settings   map[string]string
		change     func(*inventory.Userlist)
		refused    bool
	}{
		{"another file", "name that file as userlist", nil, func(u *inventory.Userlist) { u.AuthFile = "/elsewhere" }, true},
		{"no proof", "set auth_type = scram-sha-256", map[string]string{"auth_type": "plain"}, nil, true},
		{"md5", "", map[string]string{"auth_type": "md5"}, nil, false},
		{"auth_query", `auth_user is "asker"`, map[string]string{"auth_user": "asker"}, nil, false},
		{"a login of its own", "delete user= there", map[string]string{"databases": "sole = host=127.0.0.1 user=app\n"}, nil, true},
		{"no administrator", "none of admin_users", map[string]string{"admin_users": "other", "stats_users": pooltest.Boss}, nil, true},
		{"a missing file", "does not exist", nil, func(u *inventory.Userlist) { u.Path += ".other" }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := pooltest.Line("app", "x")
			if c.settings["auth_type"] == "md5" {
				list += pooltest.Line(pooltest.Boss, verifiers(secret.New(pooltest.Password)).Reveal())
			}
			p := pooltest.Start(t, 1, list, c.settings)
			before := get(t, p.Userlist)
			warnings, err := pooled(p, c.change).Check(t.Context(), want)
			said := fmt.Sprint(warnings, err)
			if (err != nil) != c.refused || err != nil && !IsRefusal(err) || !strings.Contains(said, c.says) || strings.Contains(said, "c4nary") || c.says == "" && len(warnings) > 0 {
				t.Errorf("%s", said)
			}
			if get(t, p.Userlist) != before {
				t.Error("changed")
			}
		})
	}
	p := pooltest.Start(t, 1, "", nil)
	p.Stop()
	if _, err := pooled(p, nil).Check(t.Context(), want); err == nil || IsRefusal(err) || !strings.Contains(err.Error(), p.Console.Address()) {
		t.Errorf("a pgbouncer that is down may come back: %v", err)
	}
	want.Verifier = secret.String{}
	if _, err := pooled(p, nil).Write(t.Context(), want, open); !IsRefusal(err) || !strings.Contains(err.Error(), "run pawl adopt") {
		t.Errorf("no verifier: %v", err)
	}
}

func passwordSink(path, role string, hosts ...string) Sink {
	return Of(&inventory.Credential{Role: role, Strategy: inventory.Alternating, Publish: []inventory.Sink{{Pgpass: &inventory.Pgpass{Path: path, Hosts: hosts}}}})[0]
}

func TestLibpqFindsBothLoginsInThePasswordFile(t *testing.T) {
	server := startServer(t)
	const role = `a:p\p`
	was, next := content(role, `pass:\word`), content(role+"_b", `an\other:`)
	alter(t, server, "CREATE", was)
	alter(t, server, "CREATE", next)
	path := filepath.Join(t.TempDir(), ".pgpass")
	address := fmt.Sprintf("%s:%d", server.Host, server.Port)
	put(t, path, fmt.Sprintf("# mine\n*:*:other:*:no\n%s:postgres:a\\:p\\\\p:\n*:*:*:*:no\n", address))
	s := passwordSink(path, role, address)
	for _, c := range []Content{was, next} {
		if _, err := s.Write(t.Context(), c, open); err != nil {
			t.Fatal(err)
		}
		holds(t, s, c)
	}
	for _, c := range []Content{was, next} {
		psql := exec.CommandContext(t.Context(), "psql", "-w", "-h", server.Host, "-p", fmt.Sprint(server.Port), "-U", c.User, "-d", "postgres", "-Atc", "SELECT current_user")
		psql.Env = append(os.Environ(), "PGPASSFILE="+path)
		if out, err := psql.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != c.User {
			t.Errorf("%s: %v, %q", c.User, err, out)
		}
	}
}

func TestPasswordFileThatCouldNotTakeALoginIsRefused(t *testing.T) {
	for _, c := range []struct{ name, text, says string }{
		{"no line", "h:5432:*:app:x\n", `has no line for a login of this credential: add 127.0.0.1:5432:*:app:PASSWORD`},
		{"shadowed", "*:*:*:*:x\n127.0.0.1:5432:*:app:x\n", "line 1 is for any user, and libpq takes it before that of app_b below: move it down"},
		{"missing", "", "does not exist: create it, mode 0600, with 127.0.0.1:5432:*:app:PASSWORD"},
	} {
		path := filepath.Join(t.TempDir(), ".pgpass")
		if c.text != "" {
			put(t, path, c.text)
		}
		s := passwordSink(path, "app", "127.0.0.1:5432", "[::1]:5432")
		_, checked := s.Check(t.Context(), content("app_b", "new"))
		_, written := s.Write(t.Context(), content("app_b", "new"), open)
		for _, err := range []error{checked, written} {
			if !IsRefusal(err) || !strings.Contains(err.Error(), path+": ") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

func TestPasswordFileThatLibpqIgnoresIsWarnedOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), ".pgpass")
	put(t, path, "*:*:*:app:x\n")
	s := passwordSink(path, "app", "127.0.0.1:5432")
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o640: true, 0o604: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		warnings, err := s.Check(t.Context(), content("app", "new"))
		if err != nil || (len(warnings) > 0) != warned || warned && !strings.Contains(warnings[0], "chmod 600") {
			t.Errorf("%o: %q, %v", mode, warnings, err)
		}
	}
}

func TestLookupSinksComeBeforeAllOthers(t *testing.T) {
	sinks := Of(&inventory.Credential{Role: "app", Publish: []inventory.Sink{
		{Dotenv: &inventory.Dotenv{Path: "/a"}}, {Pgpass: &inventory.Pgpass{Path: "/b"}}, {File: &inventory.File{Path: "/c"}}, {Pgbouncer: &inventory.Userlist{Path: "/d"}},
	}})
	var names []string
	for _, s := range sinks {
		names = append(names, fmt.Sprint(s.Name(), s.Lookup()))
	}
	if got := strings.Join(names, " "); got != "pgpass:/btrue pgbouncer:/dtrue dotenv:/afalse file:/cfalse" {
		t.Error(got)
	}
}

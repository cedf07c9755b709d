package inventory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// own is a configuration in which Pawl turns its own admin.
func own(t testing.TB) string {
	text := change(t, role, "role: pawl_admin\n")
	return strings.Replace(text, sink, "file: {path: secrets/../secrets/admin, format: json}\n      - "+sink, 1)
}

func TestPawlTurnsItsOwnAccounts(t *testing.T) {
	inv, err := load(t, own(t))
	if err != nil {
		t.Fatal(err)
	}
	main := inv.Clusters["main"]
	if main.Admin.Credential != "app" || main.Observer.Credential != "app" {
		t.Errorf("admin by %q, its observer by %q; want app", main.Admin.Credential, main.Observer.Credential)
	}
	inv, err = load(t, strings.Replace(own(t), "admin: "+account, "admin: {user: postgres, password_file: super}\n    observer: "+account, 1))
	if err != nil {
		t.Fatal(err)
	}
	if main = inv.Clusters["main"]; main.Admin.Credential != "" || main.Observer.Credential != "app" {
		t.Errorf("admin by %q, observer by %q; want only the observer by app", main.Admin.Credential, main.Observer.Credential)
	}
}

func TestAnAccountThatPawlCouldNotFollowIsRefused(t *testing.T) {
	const other = "  other: {environment: production, admin: ADMIN, nodes: {primary: {host: HOST}}}\ncredentials:\n"
	cluster := func(admin, host string) string {
		return strings.NewReplacer("ADMIN", admin, "HOST", host).Replace(other)
	}
	for _, c := range []struct{ name, old, with, want string }{
		{"in place", "strategy: alternating", "strategy: in-place", `15: credentials.app.role: Pawl itself logs in as "pawl_admin" here, and would lock itself out half-way: use strategy alternating`},
		{"the sibling of another role", "role: pawl_admin\n", "role: pawl\n", `15: credentials.app.role: the second login, "pawl_b", is whom Pawl itself logs in as here, and it would lock itself out half-way: use another admin or observer`},
		{"a variable", "password_file: secrets/admin", "password_env: PAWL_ADMIN", `15: credentials.app.role: Pawl itself logs in as "pawl_admin" here, and cannot write the environment variable PAWL_ADMIN: give the account a password_file`},
		{"a file that nobody writes", "format: json", "format: dsn", `15: credentials.app.role: Pawl itself logs in as "pawl_admin" here, and must be told the new login: add to publish - file: {path: DIR/secrets/admin, format: json}`},
		{"another file", "password_file: secrets/admin", "password_file: admin", `15: credentials.app.role: Pawl itself logs in as "pawl_admin" here, and must be told the new login: add to publish - file: {path: DIR/admin, format: json}`},
		{"one node of two", `port: 5433, replica_of: primary}`, "port: 5433}", `15: credentials.app.role: Pawl itself logs in as "pawl_admin" on every node of main, with one password: name all its primaries in nodes, or none`},
		{"another role in the file", "role: pawl_admin\n", "role: app\n", `17: credentials.app.publish: writes to DIR/secrets/admin, from which Pawl reads the password of "pawl_admin" for cluster main: name another file, or give that account one of its own`},
		{"a file of two clusters", "credentials:\n", cluster("{user: pawl_admin, password_file: secrets/admin}", "127.0.0.2"), `18: credentials.app.publish: writes to DIR/secrets/admin, from which Pawl reads the password of "pawl_admin" for cluster other: name another file, or give that account one of its own`},
		{"a login of two clusters", "credentials:\n", cluster("{user: pawl_admin, password_file: other}", "127.0.0.1"), `16: credentials.app.role: cluster other logs in as "pawl_admin" on the same server: give it an account of its own`},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := own(t)
			if c.name == "the sibling of another role" {
				text = strings.Replace(text, "user: pawl_admin", "user: pawl_b", 1)
			}
			if c.name == "one node of two" {
				text = strings.Replace(text, "strategy: alternating", "strategy: alternating\n    nodes: [primary]", 1)
			}
			file := filepath.Join(t.TempDir(), "pawl.yaml")
			if err := os.WriteFile(file, []byte(strings.Replace(text, c.old, c.with, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(file)
			got := faults(t, err)
			if len(got) == 0 || strings.ReplaceAll(got[0], filepath.Dir(file), "DIR") != c.want {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
}

func TestAccountsThatNobodyRotatesAreNamed(t *testing.T) {
	const observed = "admin: " + account + "\n    observer: {user: pawl_observer, password_env: OBSERVER}"
	inv, err := load(t, strings.Replace(own(t), "admin: "+account, observed, 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []Selection{{All: true}, {Clusters: []string{"main"}}, {Environments: []string{"production"}}} {
		if found := inv.ByHand(s); len(found) != 1 || found[0].User != "pawl_observer" || found[0].Cluster.Name != "main" {
			t.Errorf("%+v: %+v; want the observer alone, since the admin is a credential", s, found)
		}
	}
	if found := inv.ByHand(Selection{Credentials: []string{"app"}}); len(found) != 0 {
		t.Errorf("%+v of a credential that was named", found)
	}
}

func TestSecondClusterInTheDatabaseOfTheFirstIsNotSilent(t *testing.T) {
	other := func(admin, node string) string {
		return change(t, "credentials:\n", "  other: {environment: production, admin: {user: pawl_two, password_file: two"+admin+"}, nodes: {primary: "+node+"}}\ncredentials:\n")
	}
	inv, err := load(t, other("", "{host: 127.0.0.1}"))
	const want = `pawl.yaml:12: clusters.other: its admin uses database "postgres" on a server of cluster main, too: what `
	if err != nil || len(inv.Warnings) != 1 || !strings.Contains(inv.Warnings[0], want) {
		t.Errorf("%v, %v; want %s", inv.Warnings, err, want)
	}
	for _, text := range []string{other(", database: pawl", "{host: 127.0.0.1}"), other("", "{host: 127.0.0.1, port: 5434}")} {
		if inv, err := load(t, text); err != nil || len(inv.Warnings) != 0 {
			t.Errorf("%v, %v of a database of its own", inv.Warnings, err)
		}
	}
}

func TestAnAccountsFileMayNameItsUser(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admin")
	a := Account{User: "pawl_admin", PasswordFile: file, Credential: "pawl-admin"}
	for text, want := range map[string]Login{
		`{"user": "pawl_admin_b", "password": "{x}", "port": 5432}`: {User: "pawl_admin_b"},
		`{"password": "no user"}`:                                   {User: "pawl_admin"},
		`{curly`:                                                    {User: "pawl_admin"},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := a.Login(); err != nil || got.User != want.User || got.Password.IsZero() {
			t.Errorf("%s: user %q, %v; want %q", text, got.User, err, want.User)
		}
	}
	if err := os.WriteFile(file, []byte(`{"user": "postgres", "password": "hunter2"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Login(); err == nil || strings.Contains(err.Error(), "hunter") {
		t.Errorf("another user's file: %q, %v; want an error without the password", got.User, err)
	}
}

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/published"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func owner(info os.FileInfo) any {
	s := info.Sys().(*syscall.Stat_t)
	return []any{s.Uid, s.Gid, s.Ino}
}

// fault is something wrong with a credential that Pawl can know beforehand.
type fault struct {
	name   string
	says   []string                         // by the refusal
	adjust func(*site.Credential)           // how the credential is set up; nil: as usual
	server *pgserver.Server                 // where its role is; nil: where the others are
	spoil  func(*testing.T, *house, string) // breaks what was right
	mend   func(*testing.T, *house, string) // makes it as it was
}

// TestWhatCannotWorkIsRefusedAndNothingIsTouched spoils every credential in a
// way of its own, before it is adopted and again afterwards.
func TestWhatCannotWorkIsRefusedAndNothingIsTouched(t *testing.T) {
	t.Parallel()
	other, mortal := startPostgres(t), startPostgres(t)
	faults := slices.Concat(fileFaults(), roleFaults(), databaseFaults(other, mortal))
	var credentials []site.Credential
	for i, f := range faults {
		c := site.Credential{Name: f.name, Strategy: []string{"alternating", "in-place"}[i%2]}
		if f.adjust != nil {
			f.adjust(&c)
		}
		credentials = append(credentials, c)
	}
	h := newHouse(t, credentials)
	for _, f := range faults {
		if f.server != nil {
			h.servers[f.name] = f.server
			copyRole(t, h, f.name)
		}
	}
	h.exec(t, "weak-admin", "CREATE ROLE weak LOGIN PASSWORD '"+other.Password.Reveal()+"'")
	each := func(phase string, do func(*testing.T, fault)) {
		t.Run(phase, func(t *testing.T) {
			for _, f := range faults {
				t.Run(f.name, func(t *testing.T) {
					t.Parallel()
					do(t, f)
				})
			}
		})
	}
	for _, action := range []pawlv1.Action{adopt, rotate} {
		right, spoiled := make([]state, len(faults)), make([]state, len(faults))
		for i, f := range faults {
			right[i] = h.look(t, f.name)
			f.spoil(t, h, f.name)
			spoiled[i] = h.look(t, f.name)
		}
		if action == rotate {
			h.restart(t) // a session that is open does not notice a wrong password
		}
		each("refused", func(t *testing.T, f fault) {
			for _, asked := range []pawlv1.Action{action, plan} {
				if answer := h.refused(t, f.name, asked, f.says...); answer.GetRotation() != "" {
					t.Errorf("a refusal names the rotation %s", answer.GetRotation())
				}
			}
		})
		for i, f := range faults {
			if d := spoiled[i].diff(h.look(t, f.name)); d != nil {
				t.Errorf("%s: a refused %v changed %v", f.name, action, d)
			}
			f.mend(t, h, f.name)
			if d := right[i].diff(h.look(t, f.name)); d != nil {
				t.Errorf("%s: a refused %v changed %v", f.name, action, d)
			}
		}
		each("mended", func(t *testing.T, f fault) { h.do(t, f.name, action) })
	}
}

// rewrite spoils the .env by changing its text.
func rewrite(change func(text string) string) (spoil, mend func(*testing.T, *house, string)) {
	away := func(h *house, c string) string { return filepath.Join(h.site.Dir, c+".away") }
	spoil = func(t *testing.T, h *house, c string) {
		text, err := os.ReadFile(h.site.Env(c))
		if err == nil {
			err = os.Rename(h.site.Env(c), away(h, c))
		}
		if err == nil {
			err = os.WriteFile(h.site.Env(c), []byte(change(string(text))), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mend = func(t *testing.T, h *house, c string) {
		if err := os.RemoveAll(h.site.Env(c)); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(away(h, c), h.site.Env(c)); err != nil {
			t.Fatal(err)
		}
	}
	return spoil, mend
}

func fileFaults() []fault {
	same := func(text string) string { return text }
	spoil, mend := rewrite(same)
	replaced := func(by func(path string) error) func(*testing.T, *house, string) {
		return func(t *testing.T, h *house, c string) {
			spoil(t, h, c)
			if err := os.Remove(h.site.Env(c)); err != nil {
				t.Fatal(err)
			}
			if err := by(h.site.Env(c)); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := []fault{
		{name: "env-missing", says: []string{"secret-publisher: dotenv:", "env-missing/.env", "does not exist: create it with its keys"},
			spoil: replaced(func(string) error { return nil }), mend: mend},
		{name: "env-is-a-folder", says: []string{"env-is-a-folder/.env", "not a regular file"},
			spoil: replaced(func(path string) error { return os.Mkdir(path, 0o700) }), mend: mend},
	}
	for name, f := range map[string]struct {
		says   string
		change func(string) string
	}{
		"env-without-the-key":    {"DB_PASSWORD", func(text string) string { return strings.ReplaceAll(text, "DB_PASSWORD", "PASSWORD") }},
		"env-with-an-open-quote": {"line 1: opens a quote that is never closed", func(text string) string { return "X='\n" + text }},
	} {
		spoil, mend := rewrite(f.change)
		all = append(all, fault{name: name, says: []string{name + "/.env", f.says}, spoil: spoil, mend: mend})
	}
	return all
}

func roleFaults() []fault {
	alter := func(what string) func(*testing.T, *house, string) {
		return func(t *testing.T, h *house, c string) { h.exec(t, c, "ALTER ROLE "+h.role(c)+" "+what) }
	}
	var verifier string
	return []fault{
		{name: "superuser", says: []string{"primary", `role "superuser" is a superuser: applications must not use one`}, spoil: alter("SUPERUSER"), mend: alter("NOSUPERUSER")},
		{name: "no-login", says: []string{"primary", `no login of "no_login" may log in`}, spoil: alter("NOLOGIN"), mend: alter("LOGIN")},
		{name: "sibling-is-a-stranger", says: []string{"primary", `role "sibling_is_a_stranger_b" exists and is no member of "sibling_is_a_stranger": drop it`},
			adjust: func(c *site.Credential) { c.Strategy = "alternating" },
			spoil: func(t *testing.T, h *house, c string) {
				h.exec(t, c, "CREATE ROLE sibling_is_a_stranger_b LOGIN PASSWORD 'theirs'")
			},
			mend: func(t *testing.T, h *house, c string) { h.exec(t, c, "DROP ROLE sibling_is_a_stranger_b") }},
		{name: "no-role", says: []string{"primary", `role "no_role" does not exist`},
			spoil: func(t *testing.T, h *house, c string) {
				verifier = h.verifier(t, c)
				h.exec(t, c, "DROP ROLE "+h.role(c))
			},
			mend: func(t *testing.T, h *house, c string) {
				h.exec(t, c, "CREATE ROLE "+h.role(c)+" LOGIN PASSWORD '"+verifier+"'")
			}},
	}
}

func (h *house) verifier(t *testing.T, credential string) (verifier string) {
	t.Helper()
	conn, err := h.connect(t.Context(), credential)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), "SELECT rolpassword FROM pg_authid WHERE rolname = $1", h.site.Inventory.Credentials[credential].Role).Scan(&verifier); err != nil {
		t.Fatal(err)
	}
	return verifier
}

// copyRole gives the role of a credential on another server the password that
// its .env has.
func copyRole(t *testing.T, h *house, credential string) {
	t.Helper()
	c := h.site.Inventory.Credentials[credential]
	login, err := published.Read(c.Publish...)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := postgres.Verifier(login.Password)
	if err != nil {
		t.Fatal(err)
	}
	h.exec(t, credential, "CREATE ROLE "+h.role(credential)+" LOGIN PASSWORD '"+verifier.Reveal()+"'")
}

func databaseFaults(other, mortal *pgserver.Server) []fault {
	in := func(server *pgserver.Server, admin, password string) func(*site.Credential) {
		return func(c *site.Credential) {
			c.Cluster = fmt.Sprintf("{environment: test, admin: {user: %s, password_file: %q, sslmode: disable}, nodes: {primary: {host: 127.0.0.1, port: %d}}}", admin, password, server.Port)
		}
	}
	holds := func(file, password string) func(*testing.T, *house, string) {
		return func(t *testing.T, h *house, _ string) { write(t, filepath.Join(h.site.Dir, file), password) }
	}
	right := other.Password.Reveal()
	return []fault{
		{name: "wrong-admin-password", server: other, adjust: in(other, "postgres", "wrong.password"),
			says:  []string{"primary", `password authentication failed for user "postgres"`, "wrong.password"},
			spoil: holds("wrong.password", "wrong"), mend: holds("wrong.password", right)},
		{name: "empty-admin-password", server: other, adjust: in(other, "postgres", "empty.password"),
			says:  []string{"primary", `password of "postgres"`, "empty.password is empty"},
			spoil: holds("empty.password", ""), mend: holds("empty.password", right)},
		{name: "no-admin-password", server: other, adjust: in(other, "postgres", "gone.password"),
			says: []string{"primary", `password of "postgres"`, "gone.password: no such file"},
			spoil: func(t *testing.T, h *house, _ string) {
				_ = os.Remove(filepath.Join(h.site.Dir, "gone.password")) // at first it is not there
			},
			mend: holds("gone.password", right)},
		{name: "weak-admin", server: other, adjust: in(other, "weak", "weak.password"),
			says: []string{"primary", `"weak" may not alter roles: run what ` + "`pawl init --admin-sql` prints"},
			spoil: func(t *testing.T, h *house, c string) {
				h.exec(t, c, "ALTER ROLE weak NOCREATEROLE; DROP PROCEDURE IF EXISTS pawl.alter_login(name, boolean, text)")
				write(t, filepath.Join(h.site.Dir, "weak.password"), right)
			},
			mend: func(t *testing.T, h *house, c string) {
				h.exec(t, c, postgres.AdminSQL(inventory.Account{User: "weak", Database: "postgres"}, inventory.Account{}, h.site.Inventory.Credentials[c].Logins()))
			}},
		{name: "database-down", server: mortal, adjust: func(c *site.Credential) { c.Port = mortal.Port }, says: []string{"primary", "connection refused"},
			spoil: func(t *testing.T, h *house, c string) {
				if err := mortal.Kill(); err != nil {
					t.Fatal(err)
				}
			},
			mend: func(t *testing.T, h *house, c string) {
				if err := mortal.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			}},
		hbaFault("hba-rejects", other, "hba_rejects", "reject", `rejects "hba_rejects": put one with scram-sha-256 above it and reload`),
		hbaFault("hba-trusts", other, "hba_trusts", "trust", `lets "hba_trusts" in by trust, which proves no password`),
	}
}

// hbaFault is a line of pg_hba.conf about the role.
func hbaFault(name string, server *pgserver.Server, role, method string, says string) fault {
	line := fmt.Sprintf("host all %s 127.0.0.1/32 %s\n", role, method)
	edit := func(change func(string) string) func(*testing.T, *house, string) {
		return func(t *testing.T, h *house, c string) {
			path := filepath.Join(server.Dir, "data", "pg_hba.conf")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, change(string(text)))
			h.reload(t, c)
		}
	}
	return fault{name: name, server: server, adjust: func(c *site.Credential) { c.Port = server.Port }, says: []string{"primary", "pg_hba.conf line", says},
		spoil: edit(func(text string) string { return line + text }),
		mend:  edit(func(text string) string { return strings.Replace(text, line, "", 1) })}
}

// reload returns once the server works by its changed files.
func (h *house) reload(t *testing.T, credential string) {
	t.Helper()
	var since time.Time
	ask := func(sql string, into any, args ...any) {
		conn, err := h.connect(t.Context(), credential) // a new session knows what the postmaster knows
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if err := conn.QueryRow(t.Context(), sql, args...).Scan(into); err != nil {
			t.Fatal(err)
		}
	}
	var sent bool
	ask("SELECT clock_timestamp()", &since)
	ask("SELECT pg_reload_conf()", &sent)
	eventually(t, "the reload", func(context.Context) (done bool) {
		ask("SELECT pg_conf_load_time() >= $1", &done, since)
		return done
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

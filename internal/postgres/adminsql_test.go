package postgres

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/secret"
)

// inBothWays runs a test with an admin as AdminSQL sets it up, and as earlier
// versions of Pawl did.
func inBothWays(t *testing.T, test func(t *testing.T, earlier bool)) {
	t.Run("by procedures", func(t *testing.T) { test(t, false) })
	t.Run("by CREATEROLE", func(t *testing.T) { test(t, true) })
}

func TestLeastPrivilegeAdminCanDoItAllAndNoMore(t *testing.T) { inBothWays(t, canDoItAllAndNoMore) }

func canDoItAllAndNoMore(t *testing.T, earlier bool) {
	user, owner, sibling := "pawl_admin", `Own'er "1"`, `Own'er "1"_b`
	if earlier {
		user, owner, sibling = "pawl_earlier", `Own'er "2"`, `Own'er "2"_b`
	}
	adminPassword, adminVerifier := newPassword(t)
	_, observerVerifier := newPassword(t)
	sql := AdminSQL(ownAccount(user, ""), ownAccount("pawl_observer", ""), []string{owner, sibling})
	run(t, "CREATE ROLE "+identifier(owner)+" LOGIN CONNECTION LIMIT 7 VALID UNTIL '2099-01-02 03:04:05+00'",
		"ALTER ROLE "+identifier(owner)+` SET search_path TO 'a, b', "$user", 'q"x', public`,
		"ALTER ROLE "+identifier(owner)+" IN DATABASE postgres SET statement_timeout TO '42s'",
		sql, sql)
	wantTenant := ""
	if !earlier || major(t) >= 15 { // before, only a superuser gives a role a setting of an application's own
		wantTenant = `it's \ one`
		run(t, "ALTER ROLE "+identifier(owner)+" SET app.tenant TO "+literal(wantTenant))
	}
	if earlier {
		run(t, pgserver.Earlier(user, []string{owner, sibling}))
	}
	if earlier && major(t) >= 15 {
		run(t, "GRANT SET ON PARAMETER app.tenant TO "+user)
	}
	super := root(t)
	for name, verifier := range map[string]secret.String{user: adminVerifier, "pawl_observer": observerVerifier} {
		if err := super.Fenced(t.Context(), Fence{Role: name, Generation: 1, Phase: 1, Rotation: "r"}, setVerifier(name, verifier)); err != nil {
			t.Fatal(err)
		}
	}
	a := admin(t, user, adminPassword, "")
	password, verifier := newPassword(t)
	err := a.Fenced(t.Context(), Fence{Role: owner, Generation: 1, Phase: 1, Rotation: "r1"}, func(ctx context.Context, tx *Tx) error {
		role, err := tx.RoleState(ctx, owner)
		if err != nil {
			return err
		}
		settings, err := tx.Settings(ctx, owner)
		if err != nil {
			return err
		}
		if err := tx.CreateSibling(ctx, role, sibling, settings[owner]); err != nil {
			return err
		}
		return tx.SetVerifier(ctx, sibling, true, verifier)
	})
	if err != nil {
		t.Fatal(err)
	}
	role, err := a.RoleState(t.Context(), sibling)
	if err != nil {
		t.Fatal(err)
	}
	if !role.Verifier.Equal(verifier) || role.ConnLimit != 7 || !strings.HasPrefix(role.ValidUntil, "2099-01-0") {
		t.Errorf("sibling: connection limit %d, valid until %q", role.ConnLimit, role.ValidUntil)
	}
	target := superuser()
	target.User, target.Password = sibling, password
	var acts, path, timeout, tenant string
	if err := connect(t, target).QueryRow(t.Context(), "SELECT current_user, current_setting('search_path'), current_setting('statement_timeout'), coalesce(current_setting('app.tenant', true), '')").
		Scan(&acts, &path, &timeout, &tenant); err != nil {
		t.Fatal(clean(err))
	}
	if acts != owner || path != `"a, b", "$user", "q""x", public` || timeout != "42s" || tenant != wantTenant {
		t.Errorf("sibling acts as %q with search_path %s, statement_timeout %s, app.tenant %s", acts, path, timeout, tenant)
	}
	assertQuiet(t, password, verifier)
	if _, err := a.RoleState(t.Context(), server.Superuser); !IsRefused(err, NotPermitted) {
		t.Errorf("reading another role's verifier: %v; want refused", err)
	}
	if h, err := a.Look(t.Context()); err != nil || !h.CanAlter || h.CanCreate != earlier || h.FreeSlots < 1 || (len(h.Leaks) == 0) != (major(t) < 15) { // which has the quiet settings from its login on
		t.Errorf("health %+v, %v", h, err)
	}
	if exists, writable, err := a.HasFence(t.Context()); err != nil || !exists || !writable {
		t.Errorf("fence: exists %v, writable %v, %v", exists, writable, err)
	}
}

// TestAnAdminIsWorthWhatIsPrinted: what a stolen admin can do beyond the roles that
// it was given, on this version.
func TestAnAdminIsWorthWhatIsPrinted(t *testing.T) {
	inBothWays(t, func(t *testing.T, earlier bool) {
		user, listed, unlisted := "stolen_admin", "listed", "unlisted"
		if earlier {
			user, listed, unlisted = "stolen_earlier", "listed_earlier", "unlisted_earlier"
		}
		run(t, "CREATE ROLE "+listed+" LOGIN", "CREATE ROLE "+unlisted+" LOGIN")
		a, _ := leastAdmin(t, user, listed)
		if earlier {
			run(t, pgserver.Earlier(user, []string{listed}))
		}
		for _, c := range []struct {
			sql  string
			from int // since which version it is refused to an earlier admin; 0: never, 1: always
		}{
			{"GRANT pg_execute_server_program TO CURRENT_USER", 16},
			{"GRANT " + unlisted + " TO CURRENT_USER", 16},
			{"ALTER ROLE " + unlisted + " PASSWORD NULL", 16},
			{"GRANT " + listed + " TO CURRENT_USER", 0},
			{"ALTER ROLE " + listed + " PASSWORD NULL", 0},
			{"CREATE ROLE another", 0},
			{"GRANT " + identifier(server.Superuser) + " TO CURRENT_USER", 1},
			{"ALTER ROLE CURRENT_USER SUPERUSER", 1},
		} {
			err := a.Do(t.Context(), func(conn *pgx.Conn) error {
				_, err := conn.Exec(t.Context(), c.sql, pgx.QueryExecModeSimpleProtocol)
				return clean(err)
			})
			if refused := !earlier || c.from > 0 && major(t) >= c.from; refused != IsRefused(err, NotPermitted) || !refused && err != nil {
				t.Errorf("%s: %v, want it refused: %v", c.sql, err, refused)
			}
		}
	})
	for _, said := range []string{"It can make no other role, alter no other role, and give nobody a role, but what one of these roles", "PostgreSQL 13 to 15: nearly all that a superuser can"} {
		if !strings.Contains(AdminSQL(ownAccount("a", ""), inventory.Account{}, nil), said) {
			t.Errorf("%q is not printed", said)
		}
	}
}

func TestMissingRightsNameTheFix(t *testing.T) {
	password, verifier := newPassword(t)
	run(t, "CREATE ROLE plain LOGIN")
	super := root(t)
	if err := super.Fenced(t.Context(), Fence{Role: "plain", Generation: 1, Phase: 1, Rotation: "r"}, setVerifier("plain", verifier)); err != nil {
		t.Fatal(err)
	}
	a := admin(t, "plain", password, "")
	err := a.Fenced(t.Context(), Fence{Role: "plain", Generation: 2, Phase: 1, Rotation: "r"}, nothing)
	if err == nil || !strings.Contains(err.Error(), "pawl init --admin-sql") {
		t.Errorf("fenced: %v; want the fix", err)
	}
	if _, err := a.RoleState(t.Context(), "plain"); err == nil || !strings.Contains(err.Error(), "pawl init --admin-sql") {
		t.Errorf("role state: %v; want the fix", err)
	}
}

func TestAPlaintextIsNeverSentInAnAlter(t *testing.T) {
	run(t, "CREATE ROLE careful")
	err := root(t).Fenced(t.Context(), Fence{Role: "careful", Generation: 1, Phase: 1, Rotation: "r"}, setVerifier("careful", secret.New("plain-canary")))
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("error %v; want a refusal without the password", err)
	}
}

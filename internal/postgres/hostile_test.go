package postgres

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
)

// hostileDatabase makes a database that shadows pg_catalog, and returns a session of a
// superuser there that nothing protects.
func hostileDatabase(t *testing.T, name string) *pgx.Conn {
	t.Helper()
	run(t, "CREATE DATABASE "+name)
	target := superuser()
	target.Database = name
	if err := pgserver.Hostile(t.Context(), connect(t, target)); err != nil {
		t.Fatal(clean(err))
	}
	conn := connect(t, target)
	for _, timeout := range []string{"statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout"} {
		_, _ = conn.Exec(t.Context(), "SET "+timeout+" = 0") // 13 does not know them all
	}
	return conn
}

// TestOwnerOfTheDatabaseRunsNothingWithPawlsRights: everything that Pawl asks a
// server, asked in a database whose owner has put functions, operators, types and
// relations of his own before PostgreSQL's, and settings against it.
func TestOwnerOfTheDatabaseRunsNothingWithPawlsRights(t *testing.T) {
	open := hostileDatabase(t, "hostile_app")
	_, _ = open.Exec(t.Context(), "SELECT lower('x'), 1 = 1, 'a'::text FROM pg_roles", pgx.QueryExecModeSimpleProtocol) // it may fail in what it calls
	calls, err := server.HostileCalls()
	if err != nil || len(calls) < 2 {
		t.Fatalf("an open session calls %v (%v): this test proves nothing", calls, err)
	}

	owner, sibling := "shadowed", "shadowed_b"
	run(t, "CREATE ROLE "+owner+" LOGIN")
	account := inventory.Account{User: "pawl_walled", PasswordFile: filepath.Join(t.TempDir(), "password"), Database: "hostile_app", SSLMode: "disable"}
	// A superuser who runs it has the database's settings, too.
	if _, err := open.Exec(t.Context(), AdminSQL(account, inventory.Account{}, []string{owner, sibling}), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(clean(err))
	}
	password, verifier := newPassword(t)
	if err := os.WriteFile(account.PasswordFile, []byte(password.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root(t).Fenced(t.Context(), Fence{Role: account.User, Generation: 1, Phase: 1, Rotation: "r"}, setVerifier(account.User, verifier)); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func(inventory.Node, *inventory.Cluster, Others) (*Admin, error){"admin": NewAdmin, "reader": NewReader} {
		a, err := make(inventory.Node{Name: "coordinator", Host: server.Host, Port: server.Port}, &inventory.Cluster{Name: "main", Admin: account}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		everyLook(t, a, owner, sibling)
		if what == "admin" {
			everyChange(t, a, owner, sibling)
		} else if err := a.Fenced(t.Context(), Fence{Role: owner, Generation: 9, Phase: 9, Rotation: "r"}, nothing); err == nil {
			t.Error("a reader has written")
		}
	}
	after, err := server.HostileCalls()
	if err != nil || len(after) != len(calls) {
		t.Errorf("called with Pawl's rights: %v (%v)", after[min(len(calls), len(after)):], err)
	}
}

// everyLook asks all that the package can ask.
func everyLook(t *testing.T, a *Admin, owner, sibling string) {
	t.Helper()
	ctx := t.Context()
	_, roleErr := a.RoleStates(ctx, owner, sibling)
	_, sessionsErr := a.Sessions(ctx, []string{owner})
	_, lookErr := a.Look(ctx)
	_, alterErr := a.MayAlter(ctx, owner)
	_, storedErr := a.Stored(ctx, owner)
	_, _, fenceErr := a.HasFence(ctx)
	_, holdingsErr := a.Holdings(ctx, []string{owner, sibling}, []string{owner})
	_, positionErr := a.Position(ctx)
	_, recoveryErr := a.InRecovery(ctx)
	_, nowErr := a.Now(ctx)
	_, timeoutErr := a.AuthenticationTimeout(ctx)
	_, preparedErr := a.PreparedBy(ctx, []string{owner})
	_, memberErr := a.IsMember(ctx, owner, owner)
	for what, err := range map[string]error{"RoleStates": roleErr, "Sessions": sessionsErr, "Look": lookErr, "MayAlter": alterErr, "Stored": storedErr, "HasFence": fenceErr,
		"Holdings": holdingsErr, "Position": positionErr, "InRecovery": recoveryErr, "Now": nowErr, "AuthenticationTimeout": timeoutErr, "PreparedBy": preparedErr, "IsMember": memberErr,
		"CheckLogin": a.CheckLogin(ctx)} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, table := range a.Evidence(ctx, []string{owner}, "hostile_app") {
		if table.Unread != "" && table.Unread != unrecorded && table.Name != statements.name {
			t.Errorf("evidence %s: %s", table.Name, table.Unread)
		}
	}
}

// everyChange does all that the package can do.
func everyChange(t *testing.T, a *Admin, owner, sibling string) {
	t.Helper()
	ctx := t.Context()
	_, verifier := newPassword(t)
	fence := Fence{Role: owner, Generation: 1, Phase: 1, Rotation: "r"}
	err := a.Fenced(ctx, fence, func(ctx context.Context, tx *Tx) error {
		role, err := tx.RoleState(ctx, owner)
		var settings map[string][]Setting
		if err == nil {
			settings, err = tx.Settings(ctx, owner)
		}
		if err == nil {
			err = tx.CreateSibling(ctx, role, sibling, settings[owner])
		}
		if err == nil {
			err = tx.SetVerifier(ctx, sibling, true, verifier)
		}
		if err == nil {
			err = tx.SetLogin(ctx, owner, false)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, _, err := a.Unused(ctx, fence, owner, false, time.Second); err != nil {
		t.Error(err)
	}
	if _, err := a.Evict(ctx, Eviction{Logins: []string{owner}, Members: true}); err != nil {
		t.Error(err)
	}
	if _, err := a.Blockers(ctx, 1, []string{owner}, nil); err != nil {
		t.Error(err)
	}
}

package postgres

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
)

// application makes a database and the role that owns it, and returns a session of
// the owner's there. The database shadows PostgreSQL's own names.
func application(t *testing.T, name string) *pgx.Conn {
	t.Helper()
	password, verifier := newPassword(t)
	run(t, "CREATE ROLE "+name+" LOGIN")
	if err := root(t).Fenced(t.Context(), Fence{Role: name, Generation: 1, Phase: 1, Rotation: "r"}, setVerifier(name, verifier)); err != nil {
		t.Fatal(err)
	}
	hostileDatabase(t, name)
	run(t, "ALTER DATABASE "+name+" OWNER TO "+name, "ALTER DATABASE "+name+" RESET statement_timeout")
	_, _ = connect(t, superuser()).Exec(t.Context(), "ALTER DATABASE "+name+" RESET idle_session_timeout") // 13 does not know it
	owner := superuser()
	owner.User, owner.Password, owner.Database = name, password, name
	return connect(t, owner)
}

// leastAdmin is an admin without superuser rights, for the roles.
func leastAdmin(t *testing.T, user string, roles ...string) (*Admin, *inventory.Cluster) {
	t.Helper()
	return givenAdmin(t, user, AdminSQL(ownAccount(user, ""), inventory.Account{}, roles))
}

// givenAdmin is an admin that has what sql gives it.
func givenAdmin(t *testing.T, user, sql string) (*Admin, *inventory.Cluster) {
	t.Helper()
	password, verifier := newPassword(t)
	run(t, sql)
	if err := root(t).Fenced(t.Context(), Fence{Role: user, Generation: 1, Phase: 1, Rotation: "r"}, setVerifier(user, verifier)); err != nil {
		t.Fatal(err)
	}
	cluster := &inventory.Cluster{Name: "main", Admin: accountOf(t, user, password)}
	return adminOf(t, cluster, "", nil), cluster
}

func prepared(t *testing.T, in string) (all []string) {
	t.Helper()
	rows, err := connect(t, superuser()).Query(t.Context(), "SELECT gid FROM pg_prepared_xacts WHERE database = $1 UNION ALL SELECT rolname FROM pg_roles WHERE rolname LIKE 'pawl\\_prepared\\_%'", in)
	if err == nil {
		all, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		t.Fatal(clean(err))
	}
	return all
}

// TestAdminNeverEntersAnAttackersDatabase: evidence and prepared transactions are
// what has to be gone after inside of it.
func TestAdminNeverEntersAnAttackersDatabase(t *testing.T) {
	attacker := application(t, "attacker")
	if _, err := attacker.Exec(t.Context(), "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock(7); PREPARE TRANSACTION E'it''s \\\\ theirs'", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(clean(err))
	}
	a, cluster := leastAdmin(t, "never_inside", "attacker")
	all, err := a.PreparedBy(t.Context(), []string{"attacker"})
	if err != nil || len(all) != 1 {
		t.Fatalf("prepared: %v, %v", all, err)
	}
	for range 2 { // one that is gone is no error
		if err := a.RollbackPrepared(t.Context(), all[0]); err != nil {
			t.Error(err)
		}
	}
	if left := prepared(t, "attacker"); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
	if got := table(t, a.Evidence(t.Context(), []string{"attacker"}, "attacker"), "objects owned", "attacker"); !strings.Contains(got.Unread, "add clusters.main.observer") {
		t.Errorf("without an observer: %q", got.Unread)
	}
	node := inventory.Node{Name: "coordinator", Host: server.Host, Port: server.Port}
	if _, err := NewObserver(node, cluster, "attacker", nil); err == nil {
		t.Error("the admin may stand in for the observer in an application's database")
	}
	users, err := server.Entered("attacker")
	lent := slices.DeleteFunc(slices.Clone(users), func(u string) bool { return !strings.HasPrefix(u, "pawl_prepared_") })
	if err != nil || len(lent) == 0 || slices.Contains(users, "never_inside") {
		t.Errorf("%q logged in to the attacker's database, want logins that were lent alone (%v)", users, err)
	}
	if calls, err := server.HostileCalls(); err != nil || slices.ContainsFunc(calls, func(c string) bool {
		return strings.Contains(c, "pawl_prepared_") || strings.Contains(c, "never_inside")
	}) {
		t.Errorf("called with Pawl's rights: %v (%v)", calls, err)
	}
}

// TestNoLoginIsMadeThatWouldBeAnAdmin: a prepared transaction of the admin's own is
// rolled back in its own database by itself, and elsewhere left to a superuser.
func TestNoLoginIsMadeThatWouldBeAnAdmin(t *testing.T) {
	a, cluster := leastAdmin(t, "preparing")
	run(t, "CREATE DATABASE elsewhere_preparing")
	login, err := cluster.Admin.Login()
	if err != nil {
		t.Fatal(err)
	}
	for _, database := range []string{"postgres", "elsewhere_preparing"} {
		thief := superuser()
		thief.User, thief.Password, thief.Database = login.User, login.Password, database
		if _, err := connect(t, thief).Exec(t.Context(), "BEGIN; SELECT pg_advisory_xact_lock(8); PREPARE TRANSACTION 'of "+database+"'", pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(clean(err))
		}
	}
	all, err := a.PreparedBy(t.Context(), []string{"preparing"})
	if err != nil || len(all) != 2 {
		t.Fatalf("prepared: %v, %v", all, err)
	}
	for _, p := range all {
		err := a.RollbackPrepared(t.Context(), p)
		if elsewhere := p.Database != "postgres"; elsewhere != (err != nil) || elsewhere && !strings.Contains(err.Error(), "run ROLLBACK PREPARED E'of elsewhere_preparing' there as a superuser") {
			t.Errorf("in %s: %v", p.Database, err)
		}
	}
	inside := superuser()
	inside.Database = "elsewhere_preparing"
	if _, err := connect(t, inside).Exec(t.Context(), "ROLLBACK PREPARED 'of elsewhere_preparing'", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Error(clean(err))
	}
	if left := prepared(t, "postgres"); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

package rotator

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// deployer makes a role that may alter the stolen login, and returns a session that acts
// as it. Up to PostgreSQL 15 the login may become the role. Later that would be a circle,
// and the role may act as the login.
func (w *world) deployer(stolen *sealed.Credential) *pgx.Conn {
	w.t.Helper()
	deployer, role := "deploys_"+w.credential.Role, w.credential.Role
	w.t.Cleanup(func() { w.sql("DROP OWNED BY "+deployer, "DROP ROLE "+deployer) })
	password, verifier := newPassword(w.t)
	w.sql("CREATE ROLE "+deployer+" LOGIN CREATEROLE", "ALTER ROLE "+deployer+" PASSWORD '"+verifier.Reveal()+"'")
	if version(w.t) < 160000 {
		w.sql("GRANT " + deployer + " TO " + role)
		thief := w.connect(stolen.User, stolen.Password)
		w.as(thief, "SET ROLE "+deployer)
		return thief
	}
	w.sql("GRANT " + role + " TO " + deployer + " WITH ADMIN OPTION")
	return w.connect(deployer, password)
}

// version is the server's, such as 150018.
func version(t *testing.T) (number int) {
	t.Helper()
	if err := super.QueryRow(context.Background(), "SELECT current_setting('server_version_num')::int").Scan(&number); err != nil {
		t.Fatal(err)
	}
	return number
}

// as runs a statement in a session that others hold.
func (w *world) as(conn *pgx.Conn, sql string) {
	w.t.Helper()
	if _, err := conn.Exec(w.t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		w.t.Fatal(err)
	}
}

// in is a session of the superuser in the admin's database.
func (w *world) in(database string) *pgx.Conn {
	w.t.Helper()
	to := target(server.Superuser, server.Password)
	to.Database = database
	conn, err := postgres.Login(w.t.Context(), to)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// The lock is what counts, not whose transaction holds it: one that was prepared under
// another role is of no login in doubt.
func TestLockOfAnotherRolesTransactionDoesNotKeepAStolenLoginAlive(t *testing.T) {
	for name, hold := range map[string]string{
		"prepared": "BEGIN; ALTER ROLE %s CONNECTION LIMIT 7; PREPARE TRANSACTION 'of another, on %s'",
		"nested":   "BEGIN; SAVEPOINT deeper; ALTER ROLE %s CONNECTION LIMIT 7; RELEASE deeper; PREPARE TRANSACTION 'of another, on %s'",
		"open":     "BEGIN; ALTER ROLE %s CONNECTION LIMIT 7",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "held_"+name, inventory.InPlace)
			w.rotate(saga.InPlace)
			stolen := w.envelope(w.basis)
			w.as(w.deployer(stolen), strings.ReplaceAll(hold, "%s", stolen.User))
			r := w.emergency(nil)
			if contained := w.do(w.insistently, r, saga.Contained).GetContained(); len(contained.GetPending()) > 0 {
				t.Errorf("contained: %v", contained)
			}
			w.refusedNow(stolen)
			w.do(w.Issue, r, saga.Staged)
			w.logsIn(w.envelope(r.ID), "")
		})
	}
}

// Of a role that the admin may not grant, one of the logins in doubt leads to it.
func TestLockOfARoleThatTheAdminMayNotGrantIsRolledBackThroughTheStolenLogin(t *testing.T) {
	w := leastWorld(t, "through", inventory.InPlace, false)
	w.rotate(saga.InPlace)
	stolen := w.envelope(w.basis)
	admin := w.credential.Cluster.Admin.Database
	root := w.in(admin)
	w.as(root, "CREATE ROLE keeps_the_fence; GRANT keeps_the_fence TO through; GRANT USAGE ON SCHEMA pawl TO keeps_the_fence; GRANT ALL ON pawl.fence TO keeps_the_fence")
	t.Cleanup(func() {
		_, _ = root.Exec(context.Background(), "DROP OWNED BY keeps_the_fence; DROP ROLE keeps_the_fence")
	})
	to := target(stolen.User, stolen.Password)
	to.Database = admin
	thief, err := postgres.Login(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close(context.Background())
	w.as(thief, "SET ROLE keeps_the_fence; BEGIN; LOCK TABLE pawl.fence IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'the fence'")
	r := w.emergency(nil)
	if contained := w.do(w.insistently, r, saga.Contained).GetContained(); len(contained.GetPending()) > 0 {
		t.Errorf("contained: %v", contained)
	}
	w.refusedNow(stolen)
	w.do(w.Issue, r, saga.Staged)
	w.logsIn(w.envelope(r.ID), "")
}

// What Pawl may not end is named, with its owner and the statement; and what it does not
// hold up is done.
func TestLockOfASuperuserIsNamedAndKeepsNoOtherLoginAlive(t *testing.T) {
	for name, c := range map[string]struct {
		hold    string
		refused []string // meanwhile
		named   string
	}{
		"row":   {"BEGIN; ALTER ROLE sits_on_row CONNECTION LIMIT 7; PREPARE TRANSACTION 'of root'", []string{"sits_on_row_b"}, `prepared transaction "of root" of "postgres"`},
		"fence": {"BEGIN; LOCK TABLE pawl.fence IN ACCESS EXCLUSIVE MODE", []string{"sits_on_fence", "sits_on_fence_b"}, `of "postgres" in database "of_sits_on_fence" holds a lock`},
	} {
		t.Run(name, func(t *testing.T) {
			w := leastWorld(t, "sits_on_"+name, inventory.Alternating, false)
			w.rotate(saga.Alternating)
			w.sql("ALTER ROLE sits_on_" + name + " LOGIN") // both may, and have a password
			stolen := w.envelope(w.basis)
			session := w.connect(stolen.User, stolen.Password)
			root := w.in(w.credential.Cluster.Admin.Database)
			w.as(root, strings.ReplaceAll(c.hold, "postgres", server.Superuser))
			release := "ROLLBACK PREPARED 'of root'"
			if name == "fence" {
				release = "ROLLBACK"
			}
			defer root.Exec(context.Background(), release) //nolint:errcheck // gone already where all went well
			r := w.emergency(nil)
			named := strings.ReplaceAll(c.named, "postgres", server.Superuser)
			var e *pawlv1.Event
			err := errors.New("")
			for tries := 0; tries < 10 && err != nil && !(strings.Contains(err.Error(), named) && strings.Contains(err.Error(), "Fix: run ")); tries++ { // on a busy machine one attempt may see nothing
				e, err = w.Contain(t.Context(), r)
			}
			if err == nil || !strings.Contains(err.Error(), named) {
				t.Errorf("contained: %v, %v; want %s named, and the statement", e.GetSummary(), err, named)
			}
			if session.Ping(t.Context()) == nil {
				t.Error("the thief's session lives")
			}
			for _, login := range c.refused {
				var may bool
				if err := super.QueryRow(t.Context(), "SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", login).Scan(&may); err != nil || may {
					t.Errorf("%s may log in: %v, %v", login, may, err)
				}
			}
			w.as(root, release)
			w.do(w.insistently, r, saga.Contained)
			w.refusedNow(stolen)
		})
	}
}

// Neither a default of the server, of the database or of the account, nor a right that only
// the way back needs, holds up a containment.
func TestStolenLoginIsRefusedWhateverTheDefaultsAndWithoutTheRightToRead(t *testing.T) {
	for name, spoil := range map[string]string{
		"defaults": `ALTER DATABASE of_spoilt_defaults SET default_transaction_read_only = on; ALTER ROLE admin_of_spoilt_defaults SET default_transaction_read_only = on;
			ALTER ROLE admin_of_spoilt_defaults SET statement_timeout = '1ms'; ALTER ROLE admin_of_spoilt_defaults IN DATABASE of_spoilt_defaults SET lock_timeout = '1ms';
			ALTER ROLE admin_of_spoilt_defaults SET idle_in_transaction_session_timeout = '1ms'; ALTER ROLE admin_of_spoilt_defaults SET synchronous_commit = 'remote_apply';
			ALTER ROLE admin_of_spoilt_defaults SET default_transaction_isolation = 'serializable'`,
		"verifier": `DROP FUNCTION pawl.verifier(name)`,
		"other":    `CREATE OR REPLACE FUNCTION pawl.verifier(r name) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE insufficient_privilege; END $$`,
		"fence":    `REVOKE ALL ON pawl.fence FROM admin_of_spoilt_fence`,
	} {
		t.Run(name, func(t *testing.T) {
			w := leastWorld(t, "spoilt_"+name, inventory.Alternating, false)
			w.rotate(saga.Alternating)
			stolen := w.envelope(w.basis)
			session := w.connect(stolen.User, stolen.Password)
			thief := w.connect(stolen.User, stolen.Password)
			w.as(thief, "BEGIN; SELECT pg_advisory_xact_lock(hashtext('"+name+"')); PREPARE TRANSACTION 'spoilt "+name+"'")
			if name == "defaults" {
				w.sql("SET default_transaction_read_only = off", "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
				t.Cleanup(func() {
					w.sql("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
				})
			}
			root := w.in(w.credential.Cluster.Admin.Database)
			w.as(root, "SET default_transaction_read_only = off")
			w.as(root, spoil)
			w.Close() // the next sessions meet it
			w.sql("ALTER ROLE " + other(w.credential, stolen.User) + " PASSWORD NULL")
			r := w.emergency(nil)
			r.Requested().BareSince = timestamppb.New(time.Now().Add(-time.Hour)) // by the log, and so it is
			r.State = w.startedNow(r)
			contained := w.do(w.insistently, r, saga.Contained).GetContained()
			if len(contained.GetPending()) > 0 || contained.GetClean() != (name == "defaults" || name == "fence") {
				t.Errorf("contained: %v; want nothing pending, and no login to count as clean whose password cannot be read", contained)
			}
			w.refusedNow(stolen)
			if session.Ping(t.Context()) == nil {
				t.Error("the thief's session lives")
			}
			var left int
			if err := super.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_authid WHERE rolname = ANY ($1) AND (rolcanlogin OR rolpassword IS NOT NULL)) + (SELECT count(*) FROM pg_prepared_xacts)", w.credential.Logins()).Scan(&left); err != nil || left > 0 {
				t.Errorf("%d logins may log in or have a password, or prepared transactions are left, %v", left, err)
			}
			alone := New(nil, nil)
			defer alone.Close()
			w.sql("ALTER ROLE " + stolen.User + " LOGIN PASSWORD '" + stolen.Verifier.Reveal() + "'")
			for tries := 0; ; tries++ {
				if _, err := alone.BreakGlass(t.Context(), w.credential, nil, nil); err == nil {
					break
				} else if tries == 10 {
					t.Fatalf("break glass: %v", err)
				}
			}
			w.refusedNow(stolen)
		})
	}
}

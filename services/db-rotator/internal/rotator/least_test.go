package rotator

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// inBothWays runs a test with an admin as `pawl init --admin-sql` sets it up, and as
// earlier versions of Pawl did.
func inBothWays(t *testing.T, test func(t *testing.T, earlier bool)) {
	t.Run("by procedures", func(t *testing.T) { test(t, false) })
	t.Run("by CREATEROLE", func(t *testing.T) { test(t, true) })
}

// leastWorld is a world whose admin has what `pawl init --admin-sql` gives, in
// a database of its own, and nothing else; or what earlier versions gave.
func leastWorld(t *testing.T, role, strategy string, earlier bool) *world {
	t.Helper()
	w := bareWorld(t, role, strategy)
	w.earlier = earlier
	password, verifier := newPassword(t)
	w.sql("CREATE ROLE " + pgx.Identifier{role}.Sanitize() + " LOGIN PASSWORD '" + verifier.Reveal() + "'")
	w.publish(role, password)
	admin := &w.credential.Cluster.Admin
	admin.User, admin.Database = "admin_of_"+role, "of_"+role
	w.setUp()
	password, verifier = newPassword(t)
	w.sql("ALTER ROLE " + admin.User + " PASSWORD '" + verifier.Reveal() + "'")
	if err := os.WriteFile(admin.PasswordFile, []byte(password.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	w.adopt()
	return w
}

// setUp runs, as a superuser, what `pawl init --admin-sql` prints, twice.
func (w *world) setUp() {
	w.t.Helper()
	admin := w.credential.Cluster.Admin
	w.sql("CREATE DATABASE " + admin.Database)
	to := target(server.Superuser, server.Password)
	to.Database = admin.Database
	conn, err := postgres.Login(w.t.Context(), to)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	sql := postgres.AdminSQL(admin, inventory.Account{}, w.credential.Logins())
	if sql += sql; w.earlier {
		sql += pgserver.Earlier(admin.User, w.credential.Logins())
	}
	if _, err := conn.Exec(w.t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		w.t.Fatal(err)
	}
}

// erase runs the erase of a completed rotation.
func (w *world) erase(flow string) {
	w.t.Helper()
	r := w.completed(w.rotate(flow))
	w.do(w.Erase, r, saga.Erased)
}

func TestLeastPrivilegedAdminNeedsNoSuperuser(t *testing.T) { inBothWays(t, needsNoSuperuser) }

func needsNoSuperuser(t *testing.T, earlier bool) {
	role := "least"
	if earlier {
		role = "least_earlier"
	}
	sibling := role + "_b"
	w := leastWorld(t, role, inventory.Alternating, earlier)
	if checks := w.Check(t.Context(), w.credential); finding(checks, true, "") || !finding(checks, false, `"`+sibling+`" will be created`) || finding(checks, false, "can create roles, which Pawl needs no more") != earlier || !finding(checks, false, "warning: clusters.ruvector.observer: is missing, and the admin never logs in to database \"postgres\"") {
		t.Errorf("checks %v; want none refused, and the missing observer named", checks)
	}
	w.erase(saga.Alternating) // makes the sibling
	w.erase(saga.Alternating)
	if got := w.role(sibling); w.user != role || got.CanLogin || !got.Verifier.IsZero() {
		t.Errorf("after two turns: current %q, idle may log in %v", w.user, got.CanLogin)
	}
	if checks := w.Check(t.Context(), w.credential); finding(checks, true, "") {
		t.Errorf("checks %v; want none refused", checks)
	}
	back := w.next(saga.Alternating)
	w.do(w.Stage, back, saga.Staged)
	w.do(w.Unstage, back, saga.Unstaged)
	if got := w.role(sibling); got.CanLogin || !got.Verifier.IsZero() {
		t.Error("the idle login was not put back")
	}
	w.credential.Strategy = inventory.InPlace
	w.erase(saga.InPlace)
	w.logsIn(w.envelope(w.basis), "")
	if checks := w.Examine(t.Context(), w.credential); finding(checks, true, "") || !finding(checks, false, "warning: clusters.ruvector.observer: is missing") {
		t.Errorf("examine %v; want agreement, and the missing observer named", checks)
	}
	reconciled, err := w.lead(t.Context(), w.credential, w.credential.Primary())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reconciled.History(t.Context()); err != nil {
		t.Errorf("the history of the node: %v", err)
	}
	if held, err := reconciled.Holdings(t.Context(), w.credential.Logins(), []string{role}); err != nil || held.Fences[role].Generation == 0 {
		t.Errorf("what the node holds: %v, %v", held.Fences, err)
	}
	if users, err := server.Entered(w.credential.Database); err != nil || slices.Contains(users, w.credential.Cluster.Admin.User) || !slices.Contains(users, role) {
		t.Errorf("%q logged in to the application's database (%v)", users, err)
	}
}

func TestAnAdminInTheApplicationsOwnDatabaseIsWarnedOf(t *testing.T) {
	w := leastWorld(t, "landlord", inventory.InPlace, false)
	warned := func(checks []*pawlv1.Check) bool {
		return finding(checks, false, `warning: "landlord" owns database "of_landlord", to which Pawl's admin logs in. Fix: name another one in clusters.ruvector.admin.database`)
	}
	if warned(w.Check(t.Context(), w.credential)) {
		t.Error("warned of a database that is nobody's")
	}
	w.sql("ALTER DATABASE of_landlord OWNER TO landlord")
	if plan := w.Check(t.Context(), w.credential); !warned(plan) || finding(plan, true, "") {
		t.Errorf("plan: %v; want a warning, and nothing refused", plan)
	}
	if doctor := w.Examine(t.Context(), w.credential); !warned(doctor) || finding(doctor, true, "") {
		t.Errorf("doctor: %v; want a warning, and no disagreement", doctor)
	}
}

// ownWorld is one whose credential is the admin's own, not adopted yet.
func ownWorld(t *testing.T, role string, earlier bool) *world {
	t.Helper()
	w := bareWorld(t, role, inventory.Alternating)
	w.earlier = earlier
	w.credential.Cluster.Admin = inventory.Account{User: role, PasswordFile: w.file, Database: "of_" + role, SSLMode: "disable", Credential: w.credential.Name}
	w.credential.Cluster.Observer = w.credential.Cluster.Admin
	w.setUp()
	password, verifier := newPassword(t)
	w.sql("ALTER ROLE " + role + " PASSWORD '" + verifier.Reveal() + "'")
	w.publish(role, password)
	return w
}

// untilDone runs a step that waits until it need not.
func (w *world) untilDone(step service.Handler, r *service.Rotation, emits saga.Event) {
	w.t.Helper()
	for {
		_, err := step(w.t.Context(), r)
		wait := new(saga.NotYet)
		if !errors.As(err, &wait) {
			if err != nil {
				w.t.Fatalf("%s: %v", emits, err)
			}
			return
		}
		select {
		case <-time.After(wait.Again):
		case <-w.t.Context().Done():
			w.t.Fatalf("%s: %v", emits, err)
		}
	}
}

// It is one of those that are run on every version of PostgreSQL, by its name.
func TestTheLeastPrivilegedAdminTurnsItself(t *testing.T) { inBothWays(t, turnsItself) }

func turnsItself(t *testing.T, earlier bool) {
	role := "itself"
	if earlier {
		role = "itself_earlier"
	}
	w := ownWorld(t, role, earlier)
	w.adopt()
	if checks := w.Check(t.Context(), w.credential); finding(checks, true, "") {
		t.Errorf("checks %v; want none refused", checks)
	}
	turn := func() {
		t.Helper()
		r := w.next(saga.Alternating)
		w.do(w.Stage, r, saga.Staged)
		envelope := w.envelope(r.ID)
		w.logsIn(envelope, "")
		w.publish(envelope.User, envelope.Password)
		w.untilDone(w.Retire, r, saga.Retired) // its own sessions move within a second
		w.basis, w.user = r.ID, envelope.User
		w.do(w.Erase, w.completed(r), saga.Erased)
	}
	for _, want := range []string{role + "_b", role, role + "_b"} {
		if turn(); w.user != want {
			t.Fatalf("current is %q, want %q", w.user, want)
		}
		if idle := w.role(other(w.credential, want)); idle.CanLogin || !idle.Verifier.IsZero() {
			t.Errorf("the idle login may log in: %v", idle.CanLogin)
		}
	}
	back := w.next(saga.Alternating)
	w.do(w.Stage, back, saga.Staged)
	w.do(w.Unstage, back, saga.Unstaged)
	if got := w.role(role); got.CanLogin || !got.Verifier.IsZero() {
		t.Error("the idle login was not put back")
	}
	if checks := w.Examine(t.Context(), w.credential); finding(checks, true, "") {
		t.Errorf("examine %v; want agreement", checks)
	}
}

func TestAPairThatIsNotSetUpIsRefusedBeforeAnythingIsTouched(t *testing.T) {
	w := ownWorld(t, "halfway", true)
	w.sql("ALTER ROLE halfway NOCREATEROLE")
	if checks := w.Check(t.Context(), w.credential); !finding(checks, true, "may not alter roles: run what `pawl init --admin-sql` prints") {
		t.Errorf("checks %v; want the missing right refused, and the fix", checks)
	}
	w.sql("ALTER ROLE halfway CREATEROLE", "DROP ROLE halfway_b")
	if checks := w.Check(t.Context(), w.credential); !finding(checks, true, "halfway_b\", the second login of Pawl itself, is missing: run what `pawl init --admin-sql` prints") {
		t.Errorf("checks %v; want the missing login refused, and the fix", checks)
	}
}

func TestARoleThatTheAdminWasNotGivenIsRefused(t *testing.T) {
	w := leastWorld(t, "given", inventory.InPlace, true)
	w.sql("DO $$ BEGIN IF current_setting('server_version_num')::int >= 160000 THEN REVOKE given FROM admin_of_given; ELSE ALTER ROLE admin_of_given NOCREATEROLE; END IF; END $$")
	if checks := w.Check(t.Context(), w.credential); !finding(checks, true, `"admin_of_given" may not alter role "given", which is not one that Pawl was given: run what `) {
		t.Errorf("checks %v; want the missing right refused, and the fix", checks)
	}
}

// TestLeastPrivilegedAdminIsToldWhatItMayNot: of a login that was configured after
// the superuser's script ran, of what somebody else put beside its procedures, and of a
// role that has become more than it was.
func TestLeastPrivilegedAdminIsToldWhatItMayNot(t *testing.T) {
	w := leastWorld(t, "grown", inventory.InPlace, false)
	w.credential.Strategy = inventory.Alternating
	if checks := w.Check(t.Context(), w.credential); !finding(checks, true, `"admin_of_grown" may not alter role "grown_b", which is not one that Pawl was given: run what `+"`pawl init --admin-sql` prints") {
		t.Errorf("checks %v; want the login that is to be created refused, and the fix", checks)
	}
	w.credential.Strategy = inventory.InPlace
	overload := "FUNCTION pawl.refusal(text, boolean)"
	in := target(server.Superuser, server.Password)
	in.Database = w.credential.Cluster.Admin.Database
	conn, err := postgres.Login(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "CREATE "+overload+" RETURNS text LANGUAGE sql AS 'SELECT NULL::text'; ALTER "+overload+" OWNER TO grown", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if checks := w.Check(t.Context(), w.credential); !finding(checks, true, "schema pawl holds what no superuser made, and what could be called in the place of Pawl's own: pawl.refusal(text,boolean). Fix: look who made it, and drop it as a superuser") {
		t.Errorf("checks %v; want the function of somebody else refused, and the fix", checks)
	}
	if _, err := conn.Exec(t.Context(), "DROP "+overload); err != nil {
		t.Fatal(err)
	}
	w.sql("ALTER ROLE grown CREATEROLE")
	if checks := w.Check(t.Context(), w.credential); !finding(checks, true, `may not alter role "grown", which has CREATEROLE, and Pawl's admin gives no password to such a role. Fix: take that from it`) {
		t.Errorf("checks %v; want the grown role refused, and the fix", checks)
	}
	if _, err := w.Stage(t.Context(), w.next(saga.InPlace)); !saga.IsPermanent(err) || !strings.Contains(err.Error(), "has CREATEROLE") {
		t.Errorf("staged: %v; want it refused", err)
	}
	// An emergency refuses its logins all the same.
	contained := w.do(w.Contain, w.emergency(nil), saga.Contained).GetContained()
	if got := w.role("grown"); got.CanLogin || !got.Verifier.IsZero() {
		t.Errorf("contained: %v, and it may log in: %v", contained, got.CanLogin)
	}
	w.sql("ALTER ROLE grown NOCREATEROLE")
}

func TestAnOlderFileOfTheAdminIsNoLockOut(t *testing.T) {
	w := ownWorld(t, "older", false)
	w.adopt()
	first := w.envelope(w.basis)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	second := w.envelope(r.ID)
	w.publish(second.User, second.Password)
	w.untilDone(w.Retire, r, saga.Retired)
	w.do(w.Erase, w.completed(r), saga.Erased)
	w.basis, w.user = r.ID, second.User

	w.Close() // a new process, which finds the file of a backup
	w.publish(first.User, first.Password)
	w.envelopes.logins = []inventory.Login{{User: second.User, Password: second.Password}}
	w.Rotator = w.replica()
	again := w.next(saga.Alternating)
	w.do(w.Stage, again, saga.Staged)
	third := w.envelope(again.ID)
	w.publish(third.User, third.Password)
	w.untilDone(w.Retire, again, saga.Retired)
	if third.User != "older" {
		t.Errorf("turned to %q", third.User)
	}
	w.logsIn(third, "")
	w.logsIn(second, postgres.NoLogin)
}

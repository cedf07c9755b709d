package postgres

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
)

// TestOneThatIsBlockedKeepsNoOtherFromBeingRefusedTogether: a lock of the thief's, a fence
// that a later step has passed, and a stranger's role with the sibling's name each leave
// one credential out, as it was; all others are refused, in both passes.
func TestOneThatIsBlockedKeepsNoOtherFromBeingRefusedTogether(t *testing.T) {
	inBothWays(t, func(t *testing.T, earlier bool) {
		way := map[bool]string{false: "narrow", true: "wide"}[earlier]
		all, account := severalLogins(t, way, earlier, 8)
		locked, overtaken, strange := all[2].Fence.Role, all[4].Fence.Role, all[5].Fence.Role
		thief := connect(t, superuser())
		if _, err := thief.Exec(t.Context(), "BEGIN; ALTER ROLE "+identifier(locked)+" CONNECTION LIMIT 7"); err != nil {
			t.Fatal(err)
		}
		late := all[4].Fence
		late.Generation++
		if err := root(t).Fenced(t.Context(), late, nothing); err != nil {
			t.Fatal(err)
		}
		run(t, "REVOKE "+identifier(strange)+" FROM "+identifier(all[5].Sibling))
		left := map[string]bool{locked: true, overtaken: true, strange: true}
		for _, strip := range []bool{false, true} {
			for i := range all {
				all[i].Strip = strip
			}
			met, err := account.RefuseAll(t.Context(), all)
			if err != nil || len(met) != len(all) {
				t.Fatalf("%d met, %v", len(met), err)
			}
			for i, m := range met {
				if errors.Is(m.Alone, ErrAlone) != left[all[i].Fence.Role] {
					t.Errorf("%s: %v", all[i].Fence.Role, m.Alone)
				}
				for _, login := range []string{all[i].Fence.Role, all[i].Sibling} {
					role, err := root(t).RoleState(t.Context(), login)
					if err != nil {
						t.Fatal(err)
					}
					if role.CanLogin != left[all[i].Fence.Role] || role.Verifier.IsZero() != (strip && !left[all[i].Fence.Role]) {
						t.Errorf("%s after strip %v: may log in: %v, has a password: %v", login, strip, role.CanLogin, !role.Verifier.IsZero())
					}
					if before := m.Roles[login]; m.Alone == nil && before.Verifier.IsZero() {
						t.Errorf("%s: it is not said what it was", login)
					}
				}
			}
		}
		assertQuiet(t)
	})
}

// TestUnreadableLoginAndAHeldFenceKeepNoOtherFromBeingRefusedTogether: one that the account
// was not given, and one whose row of the fence another step of Pawl holds.
func TestUnreadableLoginAndAHeldFenceKeepNoOtherFromBeingRefusedTogether(t *testing.T) {
	all, account := severalLogins(t, "odd", false, 5)
	_, verifier := newPassword(t)
	run(t, `CREATE ROLE "odd unlisted" LOGIN PASSWORD `+literal(verifier.Reveal()))
	all = append(all, Refusal{Fence: Fence{Role: "odd unlisted", Generation: 5, Phase: 1, Rotation: "r"}, Sibling: "odd unlisted_b"})
	if _, err := account.RefuseAll(t.Context(), all[:1]); err != nil { // the fence is there
		t.Fatal(err)
	}
	if err := account.Fenced(t.Context(), all[1].Fence, nothing); err != nil {
		t.Fatal(err)
	}
	step := connect(t, superuser())
	if _, err := step.Exec(t.Context(), "BEGIN; SELECT FROM pawl.fence WHERE role = "+literal(all[1].Fence.Role)+" FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	met, err := account.RefuseAll(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range met {
		odd := i == 1 || i == 5
		role, err := root(t).RoleState(t.Context(), all[i].Fence.Role)
		if err != nil || role.CanLogin != odd || errors.Is(m.Alone, ErrAlone) != odd {
			t.Errorf("%s may log in: %v, %v; left out: %v", all[i].Fence.Role, role.CanLogin, err, m.Alone)
		}
	}
}

// TestThiefWithAThousandMembersMultipliesNoSweep: whose session it was is found from the
// session upwards, by whatever way its role may act as the login.
func TestThiefWithAThousandMembersMultipliesNoSweep(t *testing.T) {
	all, account := severalLogins(t, "crew", false, 40)
	run(t, "CREATE ROLE crew_group", "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format('CREATE ROLE crew_%s LOGIN IN ROLE crew_group', i); END LOOP; END $$")
	var logins []string
	for _, r := range all {
		logins = append(logins, r.Fence.Role)
		run(t, "GRANT "+identifier(r.Fence.Role)+" TO crew_group")
	}
	password, verifier := newPassword(t)
	run(t, "ALTER ROLE crew_7 PASSWORD "+literal(verifier.Reveal()))
	to := superuser()
	to.User, to.Password = "crew_7", password
	connect(t, to)
	ended, err := account.Evict(t.Context(), Eviction{Logins: logins, Members: true})
	if err != nil || len(ended) != 1 || len(ended[0].ActsAs) != len(logins) {
		t.Errorf("ended %v, %v; want one session that acts as %d logins", ended, err, len(logins))
	}
}

// TestLooksAtManyDatabasesHoldFewSessions: the applications that come back need the slots.
func TestLooksAtManyDatabasesHoldFewSessions(t *testing.T) {
	w := adminOf(t, &inventory.Cluster{Name: "main", Admin: accountOf(t, server.Superuser, server.Password), Observer: lookingOn(t)}, "", nil).Witness()
	defer w.Close()
	for _, database := range []string{"postgres", "looked_1", "looked_2", "looked_3"} {
		if strings.HasPrefix(database, "looked") {
			run(t, "CREATE DATABASE "+database)
		}
		w.Evidence(t.Context(), []string{"nobody"}, database)
		if len(w.sessions) > 2 || w.sessions[database] == nil {
			t.Fatalf("%d sessions are open, and one in %s: %v", len(w.sessions), database, w.sessions[database] != nil)
		}
	}
	for _, conn := range w.sessions { // as a restart of the server does
		_ = conn.Close(t.Context())
	}
	for _, table := range w.Evidence(t.Context(), []string{"nobody"}, "postgres") {
		if table.Unread != "" && table.Name == "roles" {
			t.Errorf("%s is unread since its session had ended: %s", table.Name, table.Unread)
		}
	}
}

// TestTooManyBlockedAreNotWaitedForOneAfterTheOther, since each costs the others a lock
// timeout: they all go on alone.
func TestTooManyBlockedAreNotWaitedForOneAfterTheOther(t *testing.T) {
	all, account := severalLogins(t, "crowd", false, 6)
	thief := connect(t, superuser())
	for _, r := range all[:4] {
		if _, err := thief.Exec(t.Context(), "BEGIN; ALTER ROLE "+identifier(r.Fence.Role)+" CONNECTION LIMIT 7"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := account.RefuseAll(t.Context(), all); !errors.Is(err, ErrLocked) {
		t.Fatalf("refused with four of them locked: %v", err)
	}
	for _, r := range all {
		if role, err := root(t).RoleState(t.Context(), r.Fence.Role); err != nil || !role.CanLogin {
			t.Errorf("%s may log in: %v, %v", r.Fence.Role, role.CanLogin, err)
		}
	}
}

// TestSameCredentialTwiceInOneTransactionIsDoneOnce.
func TestSameCredentialTwiceInOneTransactionIsDoneOnce(t *testing.T) {
	all, account := severalLogins(t, "twice", false, 2)
	met, err := account.RefuseAll(t.Context(), append(all, all[0]))
	if err != nil || met[0].Alone != nil || met[1].Alone != nil || !errors.Is(met[2].Alone, ErrAlone) {
		t.Errorf("%v, %v", met, err)
	}
}

// severalLogins makes credentials that may log in by both of their logins, and an admin.
func severalLogins(t *testing.T, prefix string, earlier bool, n int) (all []Refusal, account *Admin) {
	t.Helper()
	var logins, statements []string
	for i := range n {
		role := fmt.Sprintf("%s %d", prefix, i)
		_, verifier := newPassword(t)
		statements = append(statements, "CREATE ROLE "+identifier(role)+" LOGIN PASSWORD "+literal(verifier.Reveal()),
			"CREATE ROLE "+identifier(role+"_b")+" LOGIN IN ROLE "+identifier(role)+" PASSWORD "+literal(verifier.Reveal()))
		logins = append(logins, role, role+"_b")
		all = append(all, Refusal{Fence: Fence{Role: role, Generation: 5, Phase: 1, Rotation: "r"}, Sibling: role + "_b"})
	}
	user := "pawl " + prefix
	password, verifier := newPassword(t)
	sql := AdminSQL(ownAccount(user, ""), ownAccount("pawl_observer", ""), logins)
	run(t, append(statements, sql)...)
	if earlier {
		run(t, pgserver.Earlier(user, logins))
	}
	if err := root(t).Fenced(t.Context(), Fence{Role: user, Generation: 1, Phase: 1, Rotation: "r"}, setVerifier(user, verifier)); err != nil {
		t.Fatal(err)
	}
	return all, admin(t, user, password, "")
}

package rotator

import (
	"os"
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func finding(checks []*pawlv1.Check, refused bool, text string) bool {
	for _, c := range checks {
		if c.GetRefused() == refused && strings.Contains(c.GetFinding(), text) {
			return true
		}
	}
	return false
}

func TestCheckNamesWhatStandsInTheWay(t *testing.T) {
	w := newWorld(t, "checked", inventory.Alternating)
	checks := w.Check(t.Context(), w.credential)
	if finding(checks, true, "") || !finding(checks, false, `"checked_b" will be created`) || !finding(checks, false, "log_statement=all") {
		t.Errorf("checks %v; want none refused", checks)
	}
	if w.role("checked_b").Exists {
		t.Error("the check created a role")
	}
	w.rotate(saga.Alternating)
	w.sql("ALTER ROLE checked_b NOLOGIN")
	if checks = w.Check(t.Context(), w.credential); !finding(checks, true, "no login") {
		t.Errorf("checks %v; want no login refused", checks)
	}
	w.sql("ALTER ROLE checked SUPERUSER")
	if checks = w.Check(t.Context(), w.credential); !finding(checks, true, "superuser") {
		t.Errorf("checks %v; want the superuser refused", checks)
	}
	w.Close()
	w.credential.Nodes[0].Port = 1
	if checks = w.Check(t.Context(), w.credential); !finding(checks, true, "coordinator: ") {
		t.Errorf("checks %v; want the unreachable node refused", checks)
	}
}

// TestFileThatTheNextSessionNeedsIsCheckedWhileOneIsOpen: else a restart finds
// out, which may be in the middle of an emergency.
func TestFileThatTheNextSessionNeedsIsCheckedWhileOneIsOpen(t *testing.T) {
	w := newWorld(t, "next_session", inventory.Alternating)
	file := w.credential.Cluster.Admin.PasswordFile
	write := func(what string) {
		if err := os.WriteFile(file, []byte(what), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logins := func() (n int) {
		log, err := os.ReadFile(server.LogFile)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), "connection authenticated: identity=\""+server.Superuser)
	}
	w.Check(t.Context(), w.credential)
	before := logins()
	if checks := w.Check(t.Context(), w.credential); finding(checks, true, "") || logins() != before {
		t.Errorf("checks %v with %d new logins; want none refused, and none", checks, logins()-before)
	}
	for what, want := range map[string]string{"": file + " is empty", "another": "correct what " + file + " holds"} {
		write(what)
		if checks := w.Check(t.Context(), w.credential); !finding(checks, true, want) {
			t.Errorf("checks %v; want %q", checks, want)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if checks := w.Check(t.Context(), w.credential); !finding(checks, true, file+": no such file") {
		t.Errorf("checks %v; want the missing file refused", checks)
	}
	write(server.Password.Reveal())
	if checks := w.Check(t.Context(), w.credential); finding(checks, true, "") {
		t.Errorf("checks %v; want none refused", checks)
	}
}

func TestExamineTellsWhosePasswordEachLoginCarries(t *testing.T) {
	w := newWorld(t, "examined", inventory.Alternating)
	w.rotate(saga.Alternating)
	checks := w.Examine(t.Context(), w.credential)
	if !finding(checks, false, `"examined" may not log in, with the password of generation 1`) || !finding(checks, false, `"examined_b" may log in, with the password of generation 2`) {
		t.Errorf("checks %v", checks)
	}
	_, stranger := newPassword(t)
	w.sql("ALTER ROLE examined_b PASSWORD '" + stranger.Reveal() + "'")
	if checks = w.Examine(t.Context(), w.credential); !finding(checks, true, "does not know") {
		t.Errorf("checks %v; want drift", checks)
	}
}

// TestWayBackThatIsGoneIsRefusedBeforehand: reinstating would wait for ever.
func TestWayBackThatIsGoneIsRefusedBeforehand(t *testing.T) {
	w := newWorld(t, "no way back", inventory.Alternating)
	predecessor := w.envelope(w.basis)
	w.rotate(saga.Alternating)
	needed := []*sealed.Credential{w.envelope(w.basis), predecessor}
	if checks := w.CheckSealed(t.Context(), w.credential, needed); len(checks) > 0 {
		t.Errorf("checks %v; want none", checks)
	}
	_, stranger := newPassword(t)
	w.sql(`ALTER ROLE "no way back" PASSWORD '` + stranger.Reveal() + "'")
	if checks := w.CheckSealed(t.Context(), w.credential, needed); !finding(checks, true, `"no way back" does not carry the predecessor's password`) {
		t.Errorf("checks %v; want the way back refused", checks)
	}
	if checks := w.CheckSealed(t.Context(), w.credential, needed[:1]); len(checks) > 0 {
		t.Errorf("checks %v; want the way forward open", checks)
	}
	w.sql(`ALTER ROLE "no way back_b" PASSWORD '` + stranger.Reveal() + "'")
	if checks := w.CheckSealed(t.Context(), w.credential, needed[:1]); !finding(checks, false, "warning: ") || finding(checks, true, "") {
		t.Errorf("checks %v; want a warning that the login in use was changed", checks)
	}
	w.credential.Strategy = inventory.InPlace
	if checks := w.CheckSealed(t.Context(), w.credential, needed[:1]); !finding(checks, true, "run pawl adopt") {
		t.Errorf("checks %v; want it refused in place", checks)
	}
}

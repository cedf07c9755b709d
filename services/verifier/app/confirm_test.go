package app

import (
	"fmt"
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/verifier/internal/pgtest"
)

// says runs confirm and demands that it fails, saying want.
func (b *bed) says(t *testing.T, want string) {
	t.Helper()
	if _, err := b.run(t, b.confirm); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v; want it to say %q", err, want)
	}
}

func TestOldLoginThatMayLogInIsNotConfirmed(t *testing.T) {
	b := newBed(t, saga.Alternating)
	b.says(t, fmt.Sprintf("the old login %q may log in", b.role))
	pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.role)+" NOLOGIN")
	if _, err := b.run(t, b.confirm); err != nil {
		t.Error(err)
	}
	pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.user())+" NOLOGIN")
	b.says(t, "may not log in")
	if got := b.operations("log in"); got != nil {
		t.Errorf("confirm logged in: %q", got)
	}
}

func TestForeignPasswordIsNotConfirmed(t *testing.T) {
	b := newBed(t, saga.InPlace)
	if _, err := b.run(t, b.confirm); err != nil {
		t.Error(err)
	}
	b.sealed = &envelope{User: b.role, Password: secret.New("another-c4nary")}
	b.says(t, "carries another password")
	pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.role)+" PASSWORD NULL")
	b.says(t, "has no password")
	pgtest.Exec(t, "DROP ROLE "+pgtest.Quote(b.role))
	b.says(t, "does not exist")
}

func TestMissingRightToReadVerifiersIsNamed(t *testing.T) {
	b := newBed(t, saga.InPlace)
	b.rotation.Credential.Cluster.Admin = b.rotation.Credential.Cluster.Observer
	b.says(t, "cannot read verifiers")
	pgtest.Exec(t, "GRANT SELECT (oid, rolname, rolpassword) ON pg_authid TO "+pgtest.Quote(b.observer))
	b.accounts.close() // what an account may read is learnt once per session
	if _, err := b.run(t, b.confirm); err != nil {
		t.Error(err)
	}
}

// finding looks for a line that says text.
func finding(lines []*pawlv1.Check, refused bool, text string) bool {
	return findingOn(node, lines, refused, text)
}

func findingOn(target string, lines []*pawlv1.Check, refused bool, text string) bool {
	for _, line := range lines {
		if line.GetRefused() == refused && strings.Contains(line.GetFinding(), text) && line.GetTarget() == target && line.GetService() == saga.Verifier {
			return true
		}
	}
	return false
}

func TestPreflight(t *testing.T) {
	b := newBed(t, saga.Alternating)
	c := b.rotation.Credential
	c.Verify = []inventory.Probe{{Pool: &inventory.Pool{Connections: 4}}}
	before := serverLog(t)
	lines := b.check(t.Context(), c)
	if said := serverLog(t)[len(before):]; strings.Contains(said, "ERROR") {
		t.Errorf("preflight provokes errors in the server's log: %s", said)
	}
	for _, want := range []string{"sees every session", "the pool probe needs 5 connections", "the logins of", "pg_hba.conf is not checked", "log_connections, log_disconnections, pgaudit off"} {
		if !finding(lines, false, want) {
			t.Errorf("no %q in %v", want, lines)
		}
	}
	for _, line := range lines {
		if line.GetRefused() || strings.Contains(line.GetFinding(), "pg_hba.conf line") {
			t.Errorf("unexpected: %v", line) // this observer may not read the rules
		}
	}

	c.Cluster.Observer = c.Cluster.Admin
	if lines = b.check(t.Context(), c); !finding(lines, false, fmt.Sprintf("asks %q", b.user())) {
		t.Errorf("no rule found in %v", lines)
	}
	c.Strategy, c.Role = inventory.InPlace, "trusted"
	if lines = b.check(t.Context(), c); !finding(lines, true, `lets "trusted" in by trust`) {
		t.Errorf("no trust line in %v", lines)
	}
}

func TestPreflightNamesABlindOrAbsentObserver(t *testing.T) {
	b := newBed(t, saga.InPlace)
	pgtest.Exec(t, "REVOKE pg_monitor FROM "+pgtest.Quote(b.observer))
	if lines := b.check(t.Context(), b.rotation.Credential); !finding(lines, true, "GRANT pg_monitor") {
		t.Errorf("got %v", lines)
	}
	b.accounts.close()
	pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.observer)+" NOLOGIN")
	if lines := b.check(t.Context(), b.rotation.Credential); !finding(lines, true, "cannot log in") {
		t.Errorf("got %v", lines)
	}
}

func TestExamineTellsWhichLoginIsUsed(t *testing.T) {
	b := newBed(t, saga.Alternating)
	b.consumes("api", 1)
	b.consumes("worker", 1)
	pgtest.Login(t, b.role, "api application")
	pgtest.Login(t, b.user(), "api application")
	pgtest.Login(t, b.user(), "api application")
	lines := b.examine(t.Context(), b.rotation.Credential)
	if want := fmt.Sprintf("api: 1 session as %q, 2 sessions as %q", b.role, b.user()); !finding(lines, true, want) {
		t.Errorf("no %q in %v", want, lines)
	}
	if !finding(lines, false, "worker: no session") {
		t.Errorf("got %v", lines)
	}
}

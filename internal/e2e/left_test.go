package e2e

import (
	"context"
	"strings"
	"testing"

	"pawl.dev/internal/published"
)

// TestReportHidesWhatAThiefLeft walks the way of the runbook on the command line: what he
// left on the login is refused by plan, undone by the emergency and named by the report,
// and what he left in the database has the statement that removes it.
func TestReportHidesWhatAThiefLeft(t *testing.T) {
	t.Parallel()
	s := appSite(t)
	h := openHouse(t, s)
	p := pawl{buildPawl(t), s.Dir}
	h.do(t, "app", adopt)
	role := h.role("app")
	h.exec(t, "app", "ALTER ROLE "+role+" SET search_path TO evil; CREATE SCHEMA evil AUTHORIZATION "+role+"; SET ROLE "+role+
		"; CREATE FUNCTION evil.door() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'")
	runs := func(args ...string) string {
		t.Helper()
		out, _ := p.command(t.Context(), args...).CombinedOutput() // what it says is what counts
		return string(out)
	}
	fix := "ALTER ROLE " + role + ` RESET "search_path"`
	if said := runs("plan", "app"); !strings.Contains(said, fix) || !strings.Contains(said, "pawl adopt") {
		t.Errorf("plan says\n%s", said)
	}
	stolen, err := published.Read(s.Inventory.Credentials["app"].Publish...)
	if err != nil {
		t.Fatal(err)
	}
	said, err := p.command(t.Context(), "emergency", "app", "--reason", "stolen", "--wait").Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if now, err := published.Read(s.Inventory.Credentials["app"].Publish...); err != nil || now.User == stolen.User {
		t.Errorf("the application is back on %q, %v", now.User, err)
	}
	rotation, _, _ := strings.Cut(string(said), " ")
	var report string
	eventually(t, "the evidence is kept", func(context.Context) bool {
		report = runs("incident", rotation)
		return strings.Contains(report, "DROP FUNCTION evil.door();")
	})
	if !strings.Contains(report, "and Pawl recorded none: it was undone") {
		t.Errorf("the report says nothing of the settings:\n%s", report)
	}
	if said := runs("plan", "app"); strings.Contains(said, fix) {
		t.Errorf("afterwards, plan says\n%s", said)
	}
}

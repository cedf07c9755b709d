package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// hold takes the lock under which Pawl writes the files of the folder, so that
// a rotation stops between stage and publish until release.
func hold(t *testing.T, dir string) (release func()) {
	t.Helper()
	f, err := os.Open(dir)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() } // which releases it
}

// midway is something that goes wrong after a rotation has begun.
type midway struct {
	name     string
	strategy string
	says     []string                               // by the event that turns the rotation round
	between  func(t *testing.T, h *house, c string) // stage and publish
	mend     func(t *testing.T, h *house, c string)
}

func TestWhatFailsMidwayIsRolledBackAndEverythingIsAsBefore(t *testing.T) {
	t.Parallel()
	faults := midways()
	var credentials []site.Credential
	for _, f := range faults {
		credentials = append(credentials, site.Credential{Name: f.name, Strategy: f.strategy})
	}
	h := newHouse(t, credentials)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			h.do(t, f.name, adopt)
			h.do(t, f.name, rotate) // so that the second login is there
			h.fails(t, f)
			h.do(t, f.name, rotate)
		})
	}
}

func (h *house) fails(t *testing.T, f midway) {
	t.Helper()
	right := h.look(t, f.name)
	release := hold(t, filepath.Dir(h.site.Env(f.name)))
	answer := h.ask(t, f.name, rotate)
	h.await(t, answer, saga.Staged)
	f.between(t, h, f.name)
	inFiles := func(what, _ string) bool { return strings.HasPrefix(what, h.site.Dir) }
	spoiled, now := maps.Clone(right), h.look(t, f.name)
	maps.DeleteFunc(spoiled, inFiles)
	maps.DeleteFunc(now, func(what, value string) bool { return !inFiles(what, value) })
	maps.Copy(spoiled, now)
	release()
	log := h.await(t, answer, saga.RolledBack, saga.Completed)
	if log.Find(saga.RolledBack) == nil || !holdsAll(failureOf(log), f.says) {
		t.Errorf("%v %s, want it rolled back because of %q", site.Events(log), failureOf(log), f.says)
	}
	h.await(t, answer, saga.Erased)
	if d := spoiled.diff(h.look(t, f.name), "log ", "fence"); d != nil {
		t.Errorf("the rotation left %v", d)
	}
	f.mend(t, h, f.name)
	if d := right.diff(h.look(t, f.name), "log ", "fence"); d != nil {
		t.Errorf("the rotation left %v", d)
	}
	h.works(t, f.name)
}

func midways() []midway {
	env := func(do func(env, elsewhere string) error) func(*testing.T, *house, string) {
		return func(t *testing.T, h *house, c string) {
			if err := do(h.site.Env(c), filepath.Join(h.site.Dir, c)); err != nil {
				t.Fatal(err)
			}
		}
	}
	another, back := rewrite(anotherLogin)
	return []midway{
		{name: "env-gets-another-login", strategy: "alternating", says: []string{"publish", "/.env holds a login that Pawl neither wrote nor adopted"}, between: another, mend: back},
		{name: "env-gets-a-second-name", strategy: "alternating", says: []string{"publish", "/.env has 2 hard links"},
			between: env(os.Link), mend: env(func(_, elsewhere string) error { return os.Remove(elsewhere) })},
		{name: "env-goes-away", strategy: "in-place", says: []string{"publish", "/.env", "does not exist: create it"},
			between: env(os.Rename), mend: env(func(env, elsewhere string) error { return os.Rename(elsewhere, env) })},
	}
}

// TestPasswordSetByHandIsSeenBeforehand: in place it would be overwritten, and
// of a predecessor it leaves no way back.
func TestPasswordSetByHandIsSeenBeforehand(t *testing.T) {
	t.Parallel()
	h := newHouse(t, []site.Credential{{Name: "overwritten", Strategy: "in-place"}, {Name: "no-way-back", Strategy: "alternating", Keep: "1h"}})
	for _, c := range []struct {
		name, says string
		action     pawlv1.Action
	}{{"overwritten", "run pawl adopt", rotate}, {"no-way-back", "rotate forward", rollback}} {
		h.do(t, c.name, adopt)
		h.do(t, c.name, rotate)
		verifier := h.verifier(t, c.name) // of the first login: it stays that of the predecessor
		h.exec(t, c.name, "ALTER ROLE "+h.role(c.name)+" PASSWORD 'by hand'")
		h.refused(t, c.name, c.action, h.role(c.name), c.says)
		h.exec(t, c.name, "ALTER ROLE "+h.role(c.name)+" PASSWORD '"+verifier+"'")
		h.do(t, c.name, rotate)
	}
}

func anotherLogin(text string) string { return text + "DB_PASSWORD=somebodyspassword\n" }

// TestLoginOfSomebodyElseIsReplacedInAnEmergencyAlone: a rotation is refused before
// anything is touched. An emergency contains, and brings the application back, whatever
// stands in the file.
func TestLoginOfSomebodyElseIsReplacedInAnEmergencyAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t, []site.Credential{{Name: "foreign", Strategy: "alternating"}})
	h.do(t, "foreign", adopt)
	f := fault{name: "foreign", says: []string{"secret-publisher: dotenv:", "/.env holds a login that Pawl neither wrote nor adopted", "run `pawl adopt foreign`"}}
	f.spoil, f.mend = rewrite(anotherLogin)
	h.refusedUntilMended(t, f, rotate)
	stolen, err := published.Read(h.site.Inventory.Credentials["foreign"].Publish...)
	if err != nil {
		t.Fatal(err)
	}
	f.spoil(t, h, "foreign")
	h.refused(t, "foreign", plan, f.says...)
	log := h.await(t, h.ask(t, "foreign", contain), saga.Verified)
	h.works(t, "foreign")
	if w := log.Find(saga.Published).Body.GetWarnings(); !holdsAll(strings.Join(w, ""), []string{"/.env held a login that Pawl neither wrote nor adopted", "the sealed backup"}) {
		t.Errorf("warnings of publish: %q", w)
	}
	if conn, err := site.LoginAt(t.Context(), h.site.Nodes[0].Direct(), stolen, "thief"); err == nil {
		t.Error("what was stolen logs in", conn.Close(t.Context()))
	}
}

// TestAdoptionOfWhatDoesNotFitRecordsNothing: what the .env says is compared
// with the database only after the adoption has begun.
func TestAdoptionOfWhatDoesNotFitRecordsNothing(t *testing.T) {
	t.Parallel()
	faults := map[string]struct {
		says   []string
		change func(text string) string
	}{
		"other-password": {[]string{"the password in", "other-password/.env", `is not the one that role "other_password" has`}, func(text string) string { return text + "DB_PASSWORD=other\n" }},
		"no-password":    {[]string{"no-password/.env", "DB_PASSWORD is empty"}, func(text string) string { return text + "DB_PASSWORD=\n" }},
		"other-user":     {[]string{`login "postgres" is neither "other_user" nor "other_user_b"`, "correct role in pawl.yaml"}, func(text string) string { return text + "DB_USER=postgres\n" }},
	}
	var credentials []site.Credential
	for name := range faults {
		credentials = append(credentials, site.Credential{Name: name, Strategy: "alternating"})
	}
	h := newHouse(t, credentials)
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spoil, mend := rewrite(f.change)
			right := h.look(t, name)
			spoil(t, h, name)
			spoiled := h.look(t, name)
			log := h.await(t, h.ask(t, name, adopt), saga.RolledBack, saga.Completed)
			if log.Find(saga.RolledBack) == nil || !holdsAll(failureOf(log), f.says) {
				t.Errorf("%v %s, want it rolled back because of %q", site.Events(log), failureOf(log), f.says)
			}
			if d := spoiled.diff(h.look(t, name), "log "); d != nil {
				t.Errorf("the adoption left %v", d)
			}
			h.refused(t, name, rotate, "is not adopted: run `pawl adopt "+name+"` first")
			mend(t, h, name)
			if d := right.diff(h.look(t, name), "log "); d != nil {
				t.Errorf("the adoption left %v", d)
			}
			h.do(t, name, adopt)
			h.do(t, name, rotate)
		})
	}
}

// TestOddRoleNamesAreRolesLikeAnyOther walks every flow with names that a
// statement or a file could take apart.
func TestOddRoleNamesAreRolesLikeAnyOther(t *testing.T) {
	t.Parallel()
	json := `[{file: {path: "apps/%s/login.json", format: json}}]`
	credentials := []site.Credential{
		{Name: "spaces", Login: `My "App" User`, Strategy: "alternating"},
		{Name: "injection", Login: `o'brien'; DROP ROLE postgres; --`, Strategy: "in-place"},
		{Name: "both-quotes", Login: `It's "MINE" \ $$`, Strategy: "alternating", Publish: fmt.Sprintf(json, "both-quotes")},
		{Name: "letters", Login: "ünï-cödé.名前", Strategy: "alternating"},
		// No quoting gives all readers of a .env file this one.
		{Name: "unwritable", Login: `neither ' nor "`, Strategy: "alternating"},
	}
	for i := range credentials {
		credentials[i].Keep = "1h"
	}
	h := newHouse(t, credentials)
	write(t, filepath.Join(filepath.Dir(h.site.Env("both-quotes")), "login.json"),
		fmt.Sprintf(`{"user": %q, "password": %q}`, credentials[2].Login, h.password(t, "both-quotes")))
	for _, c := range credentials[:4] {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			for _, action := range []pawlv1.Action{adopt, rotate, rotate} {
				h.do(t, c.Name, action)
			}
			h.await(t, h.ask(t, c.Name, rollback), saga.RolledBack)
			h.works(t, c.Name)
		})
	}
	h.refused(t, "unwritable", adopt, "unwritable/.env", "DB_USER", "leave out quotes")
}

package rotator

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// settled is a world whose role had settings when it was adopted.
func settled(t *testing.T, role, strategy string, settings ...string) *world {
	t.Helper()
	w := bareWorld(t, role, strategy)
	password, verifier := newPassword(t)
	w.sql("CREATE ROLE " + quoted(role) + " LOGIN PASSWORD '" + verifier.Reveal() + "'")
	for _, s := range settings {
		w.sql("ALTER ROLE " + quoted(role) + " " + s)
	}
	w.publish(role, password)
	w.adopt()
	return w
}

// usual are the settings of an application, and what the catalogue shows of them.
var usual = []string{`SET search_path TO "a, b", public`, "SET statement_timeout TO '42s'", "IN DATABASE postgres SET work_mem TO '7MB'", "SET application_name TO 'shop'"}

const usualShown = `/application_name=shop, /search_path="a, b", public, /statement_timeout=42s, postgres/work_mem=7MB`

// shown are the settings of a login, in order.
func (w *world) shown(login string) string {
	w.t.Helper()
	admin, err := w.admin(w.credential, w.credential.Primary())
	if err != nil {
		w.t.Fatal(err)
	}
	found, err := admin.Settings(w.t.Context(), login)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, s := range found[login] {
		all = append(all, s.Database+"/"+s.Name+"="+s.Value.Reveal())
	}
	return strings.Join(all, ", ")
}

// leaves has whoever holds the login leave settings behind, one of each kind.
func (w *world) leaves(login string, stolen *sealed.Credential) {
	w.t.Helper()
	conn := w.connect(stolen.User, stolen.Password)
	if _, err := conn.Exec(w.t.Context(), "SET ROLE NONE", pgx.QueryExecModeSimpleProtocol); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range []string{"SET search_path TO evil, public", "SET statement_timeout TO '1ms'", "SET default_transaction_read_only TO on",
		"SET application_name TO 'canary of a secret'", "IN DATABASE postgres RESET work_mem", "IN DATABASE postgres SET lock_timeout TO 1"} {
		if _, err := conn.Exec(w.t.Context(), "ALTER ROLE "+quoted(login)+" "+s, pgx.QueryExecModeSimpleProtocol); err != nil {
			w.t.Fatal(err)
		}
	}
	w.hangUp(conn)
}

// issues contains and issues, twice, and returns the warnings of the first time.
func (w *world) issues() (r *service.Rotation, warnings string) {
	w.t.Helper()
	r = w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	seen := &effect.Recorder{}
	for _, ctx := range []context.Context{effect.With(w.t.Context(), seen), w.t.Context()} {
		e, err := w.Issue(ctx, r)
		if err != nil {
			w.t.Fatalf("issue: %v", err)
		}
		r.Events[saga.Staged] = e
	}
	return r, strings.Join(seen.Warnings(), "\n")
}

func (w *world) wants(login, settings string) {
	w.t.Helper()
	if got := w.shown(login); got != settings {
		w.t.Errorf("%q has %s; want %s", login, got, settings)
	}
}

// told asserts that each text is in the warnings, and the secret in none.
func told(t *testing.T, warnings string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(warnings, text) {
			t.Errorf("no %q in the warnings:\n%s", text, warnings)
		}
	}
	if strings.Contains(warnings, "canary") {
		t.Errorf("a value that may be secret is told:\n%s", warnings)
	}
}

func TestStolenLoginLeavesItsSettingsToNoSibling(t *testing.T) {
	w := settled(t, "left it's", inventory.Alternating, usual...)
	w.leaves("left it's", w.envelope(w.basis))
	r, warnings := w.issues()
	contained := r.Events[saga.Contained].GetContained()
	if !contained.GetClean() || contained.GetReturns() != "left it's_b" {
		t.Fatalf("contained: %v; want a new sibling", contained)
	}
	w.logsIn(w.envelope(r.ID), "")
	w.wants("left it's_b", strings.Replace(usualShown, "/search", "/role=left it's, /search", 1))
	w.wants("left it's", usualShown)
	told(t, warnings, `setting search_path of role "left it's" is "evil, public", and Pawl recorded "\"a, b\", public": it was undone`,
		`statement_timeout of role "left it's" is "1ms", and Pawl recorded "42s"`, `default_transaction_read_only of role "left it's" is "on", and Pawl recorded none`,
		`application_name of role "left it's" has a value that is not shown here, and Pawl recorded another value`,
		`work_mem of role "left it's" in database "postgres" is gone, and Pawl recorded "7MB"`, `lock_timeout of role "left it's" in database "postgres" is "1"`)
}

func TestStolenLoginReturnsWithoutTheSettingsThatItsThiefGaveIt(t *testing.T) {
	for _, strategy := range []string{inventory.InPlace, inventory.Alternating} {
		t.Run(strategy, func(t *testing.T) {
			w := settled(t, "returns "+strategy, strategy, usual...)
			login, want := "returns "+strategy, usualShown
			if strategy == inventory.Alternating { // on the sibling, which cannot be clean
				w.rotate(saga.Alternating)
				want = strings.Replace(want, "/search", "/role="+login+", /search", 1)
				login += "_b"
			}
			w.wants(login, want)
			w.leaves(login, w.envelope(w.basis))
			r, warnings := w.issues()
			if contained := r.Events[saga.Contained].GetContained(); contained.GetReturns() != login {
				t.Fatalf("contained: %v; want %q to return", contained, login)
			}
			w.logsIn(w.envelope(r.ID), "")
			w.wants(login, want)
			told(t, warnings, `setting search_path of role "`+login+`" is "evil, public"`)

			// Who slips in while he is being watched can do it again.
			w.sql("ALTER ROLE " + quoted(login) + " SET search_path TO evil")
			s, err := w.lead(t.Context(), w.credential, w.credential.Primary())
			if err == nil {
				err = w.settingsAgain(t.Context(), s, r, w.envelope(r.ID))
			}
			if err != nil {
				t.Fatal(err)
			}
			w.wants(login, want)
			// What was recorded is known to the next rotation.
			w.basis, w.user = r.ID, login
			if checks := w.CheckSealed(t.Context(), w.credential, []*sealed.Credential{w.envelope(r.ID)}); len(checks) > 0 {
				t.Errorf("afterwards: %v", checks)
			}
		})
	}
}

func TestStolenSettingsAreCopiedByNoOrdinaryRotation(t *testing.T) {
	for strategy, flow := range map[string]string{inventory.InPlace: saga.InPlace, inventory.Alternating: saga.Alternating} {
		t.Run(strategy, func(t *testing.T) {
			role := "refused " + strategy
			w := settled(t, role, strategy, usual...)
			w.leaves(role, w.envelope(w.basis))
			before := w.role(role)
			basis := []*sealed.Credential{w.envelope(w.basis)}
			checks := w.CheckSealed(t.Context(), w.credential, basis)
			for _, text := range []string{`search_path of role "` + role + `" is "evil, public"`, `ALTER ROLE "` + role + `" SET "search_path" TO E'a, b', E'public'`,
				`ALTER ROLE "` + role + `" RESET "default_transaction_read_only"`, `ALTER ROLE "` + role + `" IN DATABASE "postgres" RESET "lock_timeout"`,
				`SET "application_name" TO the value from before`, "run pawl adopt"} {
				if !finding(checks, true, text) {
					t.Errorf("no %s in %v", text, checks)
				}
			}
			if text := fmt.Sprint(checks); strings.Contains(text, "canary") {
				t.Error("a value that may be secret is told")
			}
			if checks := w.CheckSealed(t.Context(), w.credential, append(basis, basis...)); finding(checks, true, "setting") || !finding(checks, false, "warning: setting") {
				t.Errorf("a rollback: %v; want a warning", checks)
			}
			if _, err := w.Stage(t.Context(), w.next(flow)); !saga.IsPermanent(err) || !strings.Contains(err.Error(), `search_path of role "`+role+`" is "evil, public"`) {
				t.Errorf("staged: %v", err)
			}
			if w.role(role) != before || w.role(role+"_b").Exists {
				t.Error("something was changed")
			}
			w.adopt() // it is right
			if checks := w.CheckSealed(t.Context(), w.credential, []*sealed.Credential{w.envelope(w.basis)}); len(checks) > 0 {
				t.Errorf("once it was adopted: %v", checks)
			}
			w.rotate(flow)
		})
	}
}

// A prepared transaction of another role may hold the settings for as long as it likes.
func TestStolenLoginStaysAwayWhileItsSettingsAreLocked(t *testing.T) {
	w := settled(t, "settings_held", inventory.InPlace, usual...)
	w.leaves("settings_held", w.envelope(w.basis))
	w.sql("BEGIN; ALTER ROLE settings_held SET search_path TO worse; PREPARE TRANSACTION 'holds settings'")
	t.Cleanup(func() { _, _ = super.Exec(context.Background(), "ROLLBACK PREPARED 'holds settings'") }) // where the test failed before
	r, warnings := w.issues()
	if role := w.role("settings_held"); !role.CanLogin || !role.Verifier.Equal(w.envelope(r.ID).Verifier) {
		t.Error("the application is kept away")
	}
	told(t, warnings, `setting search_path of role "settings_held" is "evil, public", and Pawl recorded "\"a, b\", public": it could not be undone (`, "Fix, as a superuser: ALTER ROLE",
		`lock_timeout of role "settings_held" in database "postgres" is "1", and Pawl recorded none: it was undone`)
	w.sql("ROLLBACK PREPARED 'holds settings'")
	s, err := w.lead(t.Context(), w.credential, w.credential.Primary())
	if err == nil {
		err = w.settingsAgain(t.Context(), s, r, w.envelope(r.ID))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.wants("settings_held", usualShown)
	w.logsIn(w.envelope(r.ID), "")
}

// Envelopes from before settings were recorded hold none.
func TestStolenLoginOfWhichNoSettingsAreRecordedGivesNoneToItsSibling(t *testing.T) {
	w := settled(t, "unrecorded", inventory.Alternating, usual...)
	w.forgetSettings()
	_, warnings := w.issues()
	w.wants("unrecorded_b", "/role=unrecorded")
	w.wants("unrecorded", usualShown)
	told(t, warnings, `nobody knows who gave role "unrecorded" these: application_name, search_path, statement_timeout, work_mem`)
}

func TestOrdinaryRotationForgetsSettingsThatWereNeverRecorded(t *testing.T) {
	w := settled(t, "first", inventory.Alternating, usual...)
	w.forgetSettings()
	seen := &effect.Recorder{}
	r := w.next(saga.Alternating)
	if _, err := w.Stage(effect.With(t.Context(), seen), r); err != nil {
		t.Fatal(err)
	}
	told(t, strings.Join(seen.Warnings(), "\n"), `the settings of role "first" were not recorded before and are from now on, as they are: application_name, search_path`)
	w.wants("first_b", strings.Replace(usualShown, "/search", "/role=first, /search", 1))
	if len(w.envelope(r.ID).Settings["coordinator"]) != len(usual) {
		t.Errorf("recorded %v", w.envelope(r.ID).Settings)
	}
	if public := w.envelopes.envelopes[r.ID][saga.SecretPublisher]; public.Settings != nil {
		t.Error("another service is told the settings")
	}
}

func (w *world) forgetSettings() {
	w.envelopes.mu.Lock()
	defer w.envelopes.mu.Unlock()
	w.envelopes.envelopes[w.basis][saga.DBRotator].Settings = nil
}

// A setting that only a superuser may give keeps no application away.
func TestLeastPrivilegedAdminBringsAStolenLoginBackWithoutASettingItMayNotGive(t *testing.T) {
	w := leastWorld(t, "least_settings", inventory.Alternating, true)
	w.sql("ALTER ROLE least_settings SET deadlock_timeout TO '3s'", "ALTER ROLE least_settings SET work_mem TO '6MB'")
	w.adopt()
	if e := w.adoption(); !strings.HasSuffix(e.GetSummary(), "; settings recorded: deadlock_timeout, work_mem") {
		t.Errorf("adopted: %s", e.GetSummary())
	}
	w.leaves("least_settings", w.envelope(w.basis))
	r, warnings := w.issues()
	w.logsIn(w.envelope(r.ID), "")
	w.wants("least_settings_b", "/role=least_settings, /work_mem=6MB")
	w.wants("least_settings", "/deadlock_timeout=3s, /work_mem=6MB")
	told(t, warnings, `deadlock_timeout of role "least_settings_b" is gone, and Pawl recorded "3s": it could not be undone (`, `Fix, as a superuser: ALTER ROLE "least_settings_b" SET "deadlock_timeout" TO E'3s'`)
}

// adoption adopts again, for what it says.
func (w *world) adoption() *pawlv1.Event {
	w.t.Helper()
	r := w.next(saga.Adopt)
	e, err := w.Adopt(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.basis = r.ID
	return e
}

// Too long a value would not fit into an envelope with the others.
func TestSettingThatIsTooLongIsRecorded(t *testing.T) {
	w := settled(t, "too_long", inventory.InPlace)
	w.sql("ALTER ROLE too_long SET search_path TO '" + strings.Repeat("x", 5000) + "'")
	_, err := w.Adopt(t.Context(), w.next(saga.Adopt))
	if !saga.IsPermanent(err) || !strings.Contains(err.Error(), `ALTER ROLE "too_long" RESET "search_path"`) {
		t.Errorf("adopted: %v", err)
	}
	if d := postgres.Differences("too_long", nil, nil); len(d) > 0 {
		t.Error(d)
	}
}

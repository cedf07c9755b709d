package rotator

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
)

func TestLoginsTurnByTurnWhateverTheRoleIsCalled(t *testing.T) {
	for i, role := range []string{"dpg_cluster", `O'Brien "x" Ä`} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			w := newWorld(t, role, inventory.Alternating)
			adopted := w.envelope(w.basis)
			first := w.rotate(saga.Alternating)
			w.logsIn(w.envelope(first.ID), "")
			w.logsIn(adopted, postgres.NoLogin)
			second := w.rotate(saga.Alternating)
			if got := w.envelope(second.ID).User; got != role {
				t.Errorf("second rotation staged %q, want %q", got, role)
			}
			w.logsIn(w.envelope(second.ID), "")
			w.logsIn(w.envelope(first.ID), postgres.NoLogin)
			if second.Staged().GetCommittedAt()["coordinator"] == nil {
				t.Error("no time of commit")
			}
			w.do(w.Erase, w.completed(second), saga.Erased)
			w.do(w.Erase, w.completed(second), saga.Erased) // again, after a crash
			if idle := w.role(role + "_b"); idle.CanLogin || !idle.Verifier.IsZero() {
				t.Error("the idle login kept its password")
			}
			if left, _ := w.envelopes.Rotations(t.Context(), ""); len(left) != 1 || left[0] != second.ID {
				t.Errorf("envelopes left: %v; want the current one's", left)
			}
		})
	}
}

func TestEachRecipientIsSealedWhatItNeeds(t *testing.T) {
	w := newWorld(t, "sealed", inventory.Alternating)
	r := w.rotate(saga.Alternating)
	for _, rotation := range []string{w.basis, r.ID} {
		for recipient, c := range w.envelopes.envelopes[rotation] {
			own := recipient == saga.DBRotator
			if c.Verifier.IsZero() || !own && len(c.Before) > 0 || recipient == saga.Verifier && len(c.Earlier) > 0 {
				t.Errorf("%s of %s: no verifier: %v; before: %v", recipient, rotation, c.Verifier.IsZero(), c.Before)
			}
		}
		if len(w.envelopes.envelopes[rotation]) != 3 {
			t.Error("not sealed for each")
		}
	}
	publishers := w.envelopes.envelopes[r.ID][saga.SecretPublisher]
	if role := w.role(publishers.User); !role.Verifier.Equal(publishers.Verifier) {
		t.Error("the publisher's verifier is not the node's")
	}
}

func TestAdoptionReadsTheFirstSinkThatSaysWhichLoginToUse(t *testing.T) {
	w := newWorld(t, "lookup_first", inventory.Alternating)
	w.credential.Publish = append([]inventory.Sink{{Pgpass: &inventory.Pgpass{Path: "/nowhere"}}}, w.credential.Publish...)
	if got := source(w.credential); got != w.file {
		t.Errorf("reads %s, want %s", got, w.file)
	}
	if login, err := w.published(t.Context(), w.credential); err != nil || login.User != w.credential.Role {
		t.Errorf("%q, %v", login.User, err)
	}
}

func TestInPlaceReplacesThePassword(t *testing.T) {
	w := newWorld(t, "in_place", inventory.InPlace)
	adopted := w.envelope(w.basis)
	r := w.rotate(saga.InPlace)
	w.logsIn(w.envelope(r.ID), "")
	w.logsIn(adopted, postgres.WrongPassword)
	w.do(w.Erase, w.completed(r), saga.Erased)
	w.logsIn(w.envelope(r.ID), "")
}

func TestRotationsOpenNoNewSessions(t *testing.T) {
	w := newWorld(t, "few_logins", inventory.Alternating)
	w.role("few_logins") // the session is there now
	before := logins(t)
	for range 3 {
		w.rotate(saga.Alternating)
	}
	if n := logins(t) - before; n != 0 {
		t.Errorf("three rotations opened %d new sessions, want none", n)
	}
}

func logins(t *testing.T) int {
	t.Helper()
	log, err := os.ReadFile(server.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(log), "connection authorized: ")
}

func TestUnknownCommitOutcomeKeepsThePassword(t *testing.T) {
	for _, strategy := range []string{inventory.Alternating, inventory.InPlace} {
		for i, cut := range []pgserver.Cut{pgserver.BeforeCommit, pgserver.AfterCommit} {
			t.Run(fmt.Sprint(strategy, i), func(t *testing.T) {
				w := newWorld(t, fmt.Sprint("cut ", strategy, i), strategy)
				done := w.through().Arm(cut, "PASSWORD")
				r := w.next(strategy)
				w.do(w.Stage, r, saga.Staged)
				select {
				case <-done:
				default:
					t.Fatal("nothing was cut")
				}
				if n := len(w.envelopes.envelopes); n != 2 {
					t.Errorf("%d credentials were sealed, want the adopted and one more", n)
				}
				w.logsIn(w.envelope(r.ID), "")
			})
		}
	}
}

func TestCrashAfterSealingReusesThePassword(t *testing.T) {
	w := newWorld(t, "crashed", inventory.Alternating)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	sealed := w.envelope(r.ID)
	second := w.replica()
	w.do(second.Stage, r, saga.Staged)
	if again := w.envelope(r.ID); !again.Password.Equal(sealed.Password) {
		t.Error("the second attempt made another password")
	}
	w.logsIn(sealed, "")
}

// What was just sealed is known without opening it; what lay there already is not.
func TestStageOpensWhatAnotherReplicaSealed(t *testing.T) {
	w := newWorld(t, "sealed_by_another", inventory.Alternating)
	r := w.next(saga.Alternating)
	theirs, err := generate(r, other(w.credential, w.user))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		ours, err := generate(r, theirs.User)
		if err != nil {
			t.Fatal(err)
		}
		if want {
			ours = theirs
		}
		got, err := w.sealOnce(t.Context(), ours)
		if err != nil || !got.Password.Equal(theirs.Password) {
			t.Errorf("not the password that lies there, %v", err)
		}
	}
}

func TestTwoReplicasStageOnePassword(t *testing.T) {
	w := newWorld(t, "raced", inventory.Alternating)
	r := w.next(saga.Alternating)
	replicas := []*Rotator{w.Rotator, w.replica(), w.replica()}
	errs := make(chan error)
	for _, o := range replicas {
		go func() { _, err := o.Stage(t.Context(), r); errs <- err }()
	}
	for range replicas {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	w.logsIn(w.envelope(r.ID), "")
}

func TestLateStageOfARolledBackRotationIsRefused(t *testing.T) {
	for _, strategy := range []string{inventory.Alternating, inventory.InPlace} {
		t.Run(strategy, func(t *testing.T) {
			w := newWorld(t, "zombie "+strategy, strategy)
			r := w.next(strategy)
			adopted, before := w.envelope(w.basis), w.role("zombie "+strategy)
			undo := w.rotation(r.ID, strategy, w.generation, saga.StageFailed)
			w.do(w.Unstage, undo, saga.Unstaged) // nothing was done, and still it fences off
			_, err := w.Stage(t.Context(), r)
			if !errors.As(err, new(*postgres.FencedOff)) || !saga.IsPermanent(err) {
				t.Errorf("error %v; want a permanent FencedOff", err)
			}
			if w.role(before.Name) != before || w.role(before.Name+"_b").Exists {
				t.Error("the late stage changed a role")
			}
			w.logsIn(adopted, "")
			w.do(w.Unstage, undo, saga.Unstaged) // an envelope lies there now, and nothing was done
		})
	}
}

func TestStageRefusesWhatItMustNotOverwrite(t *testing.T) {
	_, stranger := newPassword(t)
	for _, c := range []struct {
		name, strategy string
		arrange        func(w *world)
		want           string
	}{
		{"in-place password changed by a stranger", inventory.InPlace, func(w *world) { w.sql(`ALTER ROLE victim PASSWORD '` + stranger.Reveal() + `'`) }, "pawl adopt"},
		{"in-place role refused its logins", inventory.InPlace, func(w *world) { w.sql(`ALTER ROLE victim NOLOGIN`) }, "may not log in"},
		{"role dropped", inventory.Alternating, func(w *world) { w.sql(`DROP ROLE victim`) }, "does not exist"},
		{"role became a superuser", inventory.Alternating, func(w *world) { w.sql(`ALTER ROLE victim SUPERUSER`) }, "superuser"},
		{"role became a replication role", inventory.InPlace, func(w *world) { w.sql(`ALTER ROLE victim REPLICATION`) }, "REPLICATION"},
		{"sibling is somebody else's", inventory.Alternating, func(w *world) { w.sql(`CREATE ROLE victim_b`) }, "no member"},
		{"sibling is a superuser", inventory.Alternating, func(w *world) { w.sql(`CREATE ROLE victim_b SUPERUSER`) }, "superuser"},
		{"the database is ahead", inventory.Alternating, func(w *world) { w.sql(`INSERT INTO pawl.fence VALUES ('victim', 99, 1, 'r99', now())`) }, "ahead of the log"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "victim", c.strategy)
			t.Cleanup(func() { w.sql("DROP ROLE IF EXISTS victim_b, victim", "DELETE FROM pawl.fence WHERE role = 'victim'") })
			c.arrange(w)
			before := [2]postgres.Role{w.role("victim"), w.role("victim_b")}
			_, err := w.Stage(t.Context(), w.next(c.strategy))
			if !saga.IsPermanent(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want a permanent one with %q", err, c.want)
			}
			if after := [2]postgres.Role{w.role("victim"), w.role("victim_b")}; after != before {
				t.Error("a role was changed")
			}
		})
	}
}

func TestPasswordChangedAfterSealingIsNotOverwritten(t *testing.T) {
	for _, strategy := range []string{inventory.Alternating, inventory.InPlace} {
		t.Run(strategy, func(t *testing.T) {
			w := newWorld(t, "drift "+strategy, strategy)
			target := w.role("drift " + strategy)
			if strategy == inventory.Alternating {
				w.rotate(saga.Alternating) // so that the idle login exists
			}
			r := w.next(strategy)
			if _, err := w.decide(t.Context(), r, target.Name); err != nil {
				t.Fatal(err)
			}
			_, stranger := newPassword(t)
			w.sql(fmt.Sprintf(`ALTER ROLE "%s" PASSWORD '%s'`, target.Name, stranger.Reveal()))
			_, err := w.Stage(t.Context(), r)
			if !saga.IsPermanent(err) || !strings.Contains(err.Error(), "did not set") {
				t.Errorf("stage: %v; want drift", err)
			}
			_, err = w.Unstage(t.Context(), w.rotation(r.ID, strategy, w.generation, saga.StageFailed))
			// In place the published password is dead: a person must know. The idle
			// login of a pair carries nothing of ours, and nobody waits for it.
			if inPlace := strategy == inventory.InPlace; inPlace != (err != nil && strings.Contains(err.Error(), "did not set")) {
				t.Errorf("unstage: %v", err)
			}
			if !w.role(target.Name).Verifier.Equal(stranger) {
				t.Error("the stranger's password was overwritten")
			}
		})
	}
}

// The erase of the rotation before may strip the idle login between the look
// at it and the ALTER.
func TestEraseDuringStageIsNoDrift(t *testing.T) {
	w := newWorld(t, "stripped", inventory.Alternating)
	first := w.rotate(saga.Alternating)
	r := w.next(saga.Alternating)
	envelope, err := w.decide(t.Context(), r, "stripped")
	if err != nil {
		t.Fatal(err)
	}
	w.do(w.Erase, w.completed(first), saga.Erased)
	w.do(w.Stage, r, saga.Staged)
	w.logsIn(envelope, "")
}

func TestIdleLoginInUseIsNotOverwritten(t *testing.T) {
	w := newWorld(t, "busy", inventory.Alternating)
	adopted := w.envelope(w.basis)
	conn := w.connect(adopted.User, adopted.Password)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	w.sql("ALTER ROLE busy NOLOGIN") // retired by hand, while in use
	w.basis, w.user = r.ID, "busy_b"
	_, err := w.Stage(t.Context(), w.next(saga.Alternating))
	if err == nil || saga.IsPermanent(err) || !strings.Contains(err.Error(), "api@127.0.0.1") {
		t.Errorf("error %v; want a retriable one that names the session", err)
	}
	w.hangUp(conn)
}

func TestAdoptionRefusesWhatDoesNotFit(t *testing.T) {
	password, verifier := newPassword(t)
	for _, c := range []struct {
		name, role, user string
		published        secret.String
		want             string
	}{
		{"no such role", "", "adoptee", password, "does not exist"},
		{"superuser", "CREATE ROLE adoptee SUPERUSER LOGIN PASSWORD '%s'", "adoptee", password, "superuser"},
		{"may not log in", "CREATE ROLE adoptee PASSWORD '%s'", "adoptee", password, "may not log in"},
		{"no password", "CREATE ROLE adoptee LOGIN --%s", "adoptee", password, "has no password"},
		{"another password", "CREATE ROLE adoptee LOGIN PASSWORD '%s'", "adoptee", secret.New("canary-wrong"), "is not the one"},
		{"another user", "CREATE ROLE adoptee LOGIN PASSWORD '%s'", "somebody", password, "neither"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := bareWorld(t, "adoptee", inventory.Alternating)
			t.Cleanup(func() { w.sql("DROP ROLE IF EXISTS adoptee") })
			if c.role != "" {
				w.sql(fmt.Sprintf(c.role, verifier.Reveal()))
			}
			w.publish(c.user, c.published)
			r := w.next(saga.Adopt)
			_, err := w.Adopt(t.Context(), r)
			if !saga.IsPermanent(err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("error %v; want a permanent one with %q", err, c.want)
			}
			if len(w.envelopes.envelopes) != 0 {
				t.Error("something was sealed")
			}
			w.do(w.Forget, r, saga.Unstaged)
		})
	}
}

func TestAdoptionGoesOnFromTheFenceItFinds(t *testing.T) {
	w := newWorld(t, "fence_found", inventory.Alternating)
	w.rotate(saga.Alternating)
	w.publish(w.user, w.envelope(w.basis).Password)
	e := w.do(w.Adopt, w.rotation("again", saga.Adopt, 1), saga.Adopted)
	if got := e.GetStaged(); got.GetFence() != w.generation || got.GetUser() != "fence_found_b" || got.GetFingerprint() == "" {
		t.Errorf("adopted %v; want fence %d and user fence_found_b", got, w.generation)
	}
	w.do(w.Forget, w.rotation("again", saga.Adopt, 1, saga.PublishFailed), saga.Unstaged)
	if _, ok := w.envelopes.envelopes["again"]; ok {
		t.Error("the envelope was not forgotten")
	}
}

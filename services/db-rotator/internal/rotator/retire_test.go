package rotator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
)

func TestRetireWaitsForLaggardsAndNamesThem(t *testing.T) {
	w := newWorld(t, "lagging", inventory.Alternating)
	adopted := w.envelope(w.basis)
	conn := w.connect(adopted.User, adopted.Password)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	_, err := w.Retire(t.Context(), r)
	wait := new(saga.NotYet)
	if !errors.As(err, &wait) || len(wait.Laggards) != 1 || !strings.HasPrefix(wait.Laggards[0], "api@127.0.0.1 pid ") || wait.Again <= 0 {
		t.Fatalf("%v; want NotYet with the laggard", err)
	}
	w.logsIn(adopted, "")
	w.hangUp(conn)
	w.do(w.Retire, r, saga.Retired)
	w.logsIn(adopted, postgres.NoLogin)
	w.do(w.Retire, r, saga.Retired) // again, after a crash
}

func TestDrainWindowIsSharedByReplicas(t *testing.T) {
	w := newWorld(t, "draining", inventory.Alternating)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	r.Requested().Drain = durationpb.New(time.Hour)
	for i, o := range []*Rotator{w.Rotator, w.replica()} {
		_, err := o.Retire(t.Context(), r)
		if wait := new(saga.NotYet); !errors.As(err, &wait) || wait.Again != 15*time.Second {
			t.Fatalf("replica %d: %v; want NotYet, again in 15s", i, err)
		}
	}
	// A minute of emptiness, as the database's clock would tell it.
	w.sql("UPDATE pawl.fence SET idle_since = idle_since - interval '1 hour' WHERE role = 'draining'")
	w.do(w.Retire, r, saga.Retired)
}

func TestRetireNeverTakesTheLastWorkingLogin(t *testing.T) {
	for i, sabotage := range []string{`ALTER ROLE "last %d_b" NOLOGIN`, `ALTER ROLE "last %d_b" PASSWORD NULL`} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			w := newWorld(t, fmt.Sprint("last ", i), inventory.Alternating)
			r := w.next(saga.Alternating)
			w.do(w.Stage, r, saga.Staged)
			w.sql(fmt.Sprintf(sabotage, i))
			if _, err := w.Retire(t.Context(), r); err == nil {
				t.Error("the old login was retired while the new one does not work")
			}
			w.logsIn(w.envelope(w.basis), "")
		})
	}
}

func TestUndoPutsTheLoginBackExactly(t *testing.T) {
	_, kept := newPassword(t)
	for _, c := range []struct {
		name, strategy string
		arrange        string
	}{
		{"sibling that did not exist", inventory.Alternating, ""},
		{"sibling with a kept verifier", inventory.Alternating, `CREATE ROLE undone_b PASSWORD '` + kept.Reveal() + `' IN ROLE undone; ALTER ROLE undone_b SET role TO undone`},
		{"sibling without a password", inventory.Alternating, `CREATE ROLE undone_b IN ROLE undone; ALTER ROLE undone_b SET role TO undone`},
		{"in place", inventory.InPlace, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "undone", c.strategy)
			t.Cleanup(func() { w.sql("DROP ROLE IF EXISTS undone_b, undone", "DELETE FROM pawl.fence WHERE role = 'undone'") })
			if c.arrange != "" {
				w.sql(c.arrange)
			}
			before := [2]postgres.Role{w.role("undone"), w.role("undone_b")}
			r := w.next(c.strategy)
			w.do(w.Stage, r, saga.Staged)
			staged := w.envelope(r.ID)
			w.logsIn(staged, "")
			undo := w.rotation(r.ID, c.strategy, w.generation, saga.Staged, saga.PublishFailed)
			w.do(w.Unstage, undo, saga.Unstaged)
			w.do(w.Unstage, undo, saga.Unstaged) // again, after a crash
			after := [2]postgres.Role{w.role("undone"), w.role("undone_b")}
			if !before[1].Exists && c.strategy == inventory.Alternating { // it stays, inert
				before[1] = postgres.Role{Name: "undone_b", Exists: true, ConnLimit: -1}
			}
			if after != before {
				t.Errorf("after the undo %+v; want %+v (verifiers equal: %v)", after, before, after[1].Verifier.Equal(before[1].Verifier))
			}
			w.logsIn(w.envelope(w.basis), "")
			w.do(w.Erase, w.rotation(r.ID, c.strategy, w.generation, saga.Staged, saga.PublishFailed, saga.RolledBack), saga.Erased)
			if _, ok := w.envelopes.envelopes[r.ID]; ok {
				t.Error("the failed rotation's envelope is still there")
			}
			w.logsIn(w.envelope(w.basis), "")
		})
	}
}

func TestUndoWaitsForWhoeverUsesTheNewLogin(t *testing.T) {
	w := newWorld(t, "hasty", inventory.Alternating)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	staged := w.envelope(r.ID)
	conn := w.connect(staged.User, staged.Password)
	undo := w.rotation(r.ID, saga.Alternating, w.generation, saga.Staged, saga.PublishFailed)
	_, err := w.Unstage(t.Context(), undo)
	if wait := new(saga.NotYet); !errors.As(err, &wait) || len(wait.Laggards) != 1 {
		t.Errorf("%v; want NotYet with the laggard", err)
	}
	w.logsIn(staged, "")
	w.hangUp(conn)
	w.do(w.Unstage, undo, saga.Unstaged)
	w.logsIn(staged, postgres.WrongPassword)
}

func TestRollbackRestoresThePredecessor(t *testing.T) {
	t.Run("alternating", func(t *testing.T) {
		w := newWorld(t, "back", inventory.Alternating)
		predecessor := w.envelope(w.basis)
		done := w.rotate(saga.Alternating)
		r := w.next(saga.RollbackAlternating)
		r.Requested().Restores, r.Requested().RestoresUser = predecessor.Rotation, predecessor.User
		w.do(w.Reinstate, r, saga.Reinstated)
		w.do(w.Reinstate, r, saga.Reinstated)
		w.logsIn(predecessor, "")
		w.logsIn(w.envelope(done.ID), "")
		w.do(w.Unstage, r, saga.Unstaged)
		w.logsIn(w.envelope(done.ID), postgres.NoLogin)
		rolledBack := w.envelope(done.ID)
		end := w.rotation(r.ID, saga.RollbackAlternating, w.generation, saga.Reinstated, saga.Restored, saga.Rerestarted, saga.Unstaged, saga.RolledBack)
		end.Events[saga.Requested] = r.Events[saga.Requested]
		w.do(w.Erase, end, saga.Erased)
		w.logsIn(predecessor, "")
		if w.role(rolledBack.User).CanLogin || !w.role(rolledBack.User).Verifier.IsZero() {
			t.Error("the rolled-back login kept its password")
		}
		w.envelope(predecessor.Rotation) // still there
	})
	t.Run("in-place", func(t *testing.T) {
		w := newWorld(t, "back2", inventory.InPlace)
		predecessor := w.envelope(w.basis)
		done := w.rotate(saga.InPlace)
		r := w.next(saga.RollbackInPlace)
		r.Requested().Restores, r.Requested().RestoresUser = predecessor.Rotation, predecessor.User
		w.do(w.Unstage, r, saga.Unstaged)
		w.do(w.Unstage, r, saga.Unstaged)
		w.logsIn(predecessor, "")
		w.logsIn(w.envelope(done.ID), postgres.WrongPassword)
	})
}

func TestReinstateRefusesAPasswordItDoesNotKnow(t *testing.T) {
	w := newWorld(t, "tampered", inventory.Alternating)
	predecessor := w.envelope(w.basis)
	w.rotate(saga.Alternating)
	_, stranger := newPassword(t)
	w.sql("ALTER ROLE tampered PASSWORD '" + stranger.Reveal() + "'")
	r := w.next(saga.RollbackAlternating)
	r.Requested().Restores, r.Requested().RestoresUser = predecessor.Rotation, predecessor.User
	if _, err := w.Reinstate(t.Context(), r); err == nil || !strings.Contains(err.Error(), "did not set") {
		t.Errorf("error %v; want drift", err)
	}
	if w.role("tampered").CanLogin {
		t.Error("a login with an unknown password was let in")
	}
}

func TestEraseLeavesALaterRotationAlone(t *testing.T) {
	w := newWorld(t, "overtaken", inventory.Alternating)
	first := w.rotate(saga.Alternating)
	end := w.completed(first)
	second := w.next(saga.Alternating)
	w.do(w.Stage, second, saga.Staged)
	w.do(w.Erase, end, saga.Erased)
	w.logsIn(w.envelope(second.ID), "")
	w.logsIn(w.envelope(first.ID), "")
}

// A process that wakes up late seals for another recipient what was erased.
func TestWhatWasSealedTooLateGoesWithTheNextErase(t *testing.T) {
	w := newWorld(t, "sealed late", inventory.InPlace)
	first := w.rotate(saga.InPlace)
	late := w.envelope(first.ID)
	w.do(w.Erase, w.completed(first), saga.Erased)
	second := w.rotate(saga.InPlace)
	if err := w.envelopes.Erase(t.Context(), "", first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.envelopes.Seal(t.Context(), saga.SecretPublisher, late); err != nil {
		t.Fatal(err)
	}
	w.do(w.Erase, w.completed(second), saga.Erased)
	if left, err := w.envelopes.Rotations(t.Context(), ""); err != nil || !slices.Equal(left, []string{second.ID}) {
		t.Errorf("left are the envelopes of %v (%v); want those of %s alone", left, err, second.ID)
	}
}

func TestEraseDoesNotTouchAStrangersPassword(t *testing.T) {
	w := newWorld(t, "reused", inventory.Alternating)
	end := w.completed(w.rotate(saga.Alternating))
	_, stranger := newPassword(t)
	w.sql("ALTER ROLE reused LOGIN PASSWORD '" + stranger.Reveal() + "'")
	if _, err := w.Erase(t.Context(), end); err == nil || !strings.Contains(err.Error(), "did not set") {
		t.Errorf("error %v; want drift", err)
	}
	if !w.role("reused").Verifier.Equal(stranger) {
		t.Error("the stranger's password was taken")
	}
}

func TestEraseLeavesALoginThatIsNotOursAlone(t *testing.T) {
	w := newWorld(t, "mine", inventory.Alternating)
	_, theirs := newPassword(t)
	w.sql("CREATE ROLE mine_b LOGIN PASSWORD '" + theirs.Reveal() + "'")
	r := w.next(saga.Alternating)
	if _, err := w.Stage(t.Context(), r); !saga.IsPermanent(err) {
		t.Fatalf("stage: %v", err)
	}
	failed := w.rotation(r.ID, saga.Alternating, w.generation, saga.StageFailed, saga.Unstaged, saga.RolledBack)
	for _, step := range []service.Handler{w.Unstage, w.Erase} {
		if _, err := step(t.Context(), failed); err != nil {
			t.Fatal(err)
		}
		if role := w.role("mine_b"); !role.CanLogin || !role.Verifier.Equal(theirs) {
			t.Error("somebody else's login was taken")
		}
	}
}

// TestWhoReadTheSinkJustBeforeItWasRestoredIsLetIn: the idle login is put back
// only once nobody has come with it for a while.
func TestWhoReadTheSinkJustBeforeItWasRestoredIsLetIn(t *testing.T) {
	w := newWorld(t, "late reader", saga.Alternating)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	back := w.rotation(r.ID, saga.Alternating, r.Requested().GetGeneration(), saga.Staged, saga.PublishFailed, saga.Restored)
	back.Requested().Drain = durationpb.New(time.Hour)
	_, err := w.Unstage(t.Context(), back)
	if waits := new(saga.NotYet); !errors.As(err, &waits) || waits.Again > grace {
		t.Fatalf("put back at once: %v", err)
	}
	w.logsIn(w.envelope(r.ID), "")
	back.Requested().Drain = durationpb.New(0)
	w.do(w.Unstage, back, saga.Unstaged)
	w.logsIn(w.envelope(r.ID), postgres.WrongPassword)
}

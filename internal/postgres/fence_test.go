package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/secret"
)

func setVerifier(name string, verifier secret.String) func(context.Context, *Tx) error {
	return func(ctx context.Context, tx *Tx) error { return tx.SetVerifier(ctx, name, true, verifier) }
}

func nothing(context.Context, *Tx) error { return nil }

func stored(t *testing.T, a *Admin, role string) secret.String {
	t.Helper()
	r, err := a.RoleState(t.Context(), role)
	if err != nil {
		t.Fatal(err)
	}
	return r.Verifier
}

func TestNeitherPasswordNorVerifierReachesTheServersLog(t *testing.T) {
	name := `O'Brien "x" Ä\`
	run(t, "CREATE ROLE "+identifier(name))
	a := root(t)
	password, verifier := newPassword(t)
	if err := a.Fenced(t.Context(), Fence{Role: name, Generation: 1, Phase: 1, Rotation: "r1"}, setVerifier(name, verifier)); err != nil {
		t.Fatal(err)
	}
	if !stored(t, a, name).Equal(verifier) {
		t.Fatal("the verifier was not stored")
	}
	target := superuser()
	target.User, target.Password = name, password
	connect(t, target)

	// A statement that fails is logged by other rules.
	err := a.Fenced(t.Context(), Fence{Role: "missing", Generation: 1, Phase: 1, Rotation: "r1"}, setVerifier("missing", verifier))
	if !IsRefused(err, "42704") || strings.Contains(fmt.Sprintf("%+v %#v", err, err), verifier.Reveal()) {
		t.Errorf("error %v; want SQLSTATE 42704 and no verifier", err)
	}
	assertQuiet(t, password, verifier)
}

func TestLateWorkerIsRefusedByTheFence(t *testing.T) {
	run(t, "CREATE ROLE fenced")
	a := root(t)
	_, early := newPassword(t)
	_, late := newPassword(t)
	if err := a.Fenced(t.Context(), Fence{Role: "fenced", Generation: 7, Phase: 1, Rotation: "r7"}, setVerifier("fenced", early)); err != nil {
		t.Fatal(err)
	}
	if err := a.Fenced(t.Context(), Fence{Role: "fenced", Generation: 7, Phase: 3, Rotation: "r7"}, nothing); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		fence Fence
		ahead bool
	}{{Fence{Role: "fenced", Generation: 7, Phase: 1, Rotation: "r7"}, false}, {Fence{Role: "fenced", Generation: 6, Phase: 9, Rotation: "r6"}, true}} {
		err := a.Fenced(t.Context(), c.fence, setVerifier("fenced", late))
		refused := new(FencedOff)
		if !errors.As(err, &refused) || refused.Ahead() != c.ahead || refused.Stored.Generation != 7 || refused.Stored.Phase != 3 {
			t.Errorf("%+v: %v; want FencedOff at generation 7, phase 3", c.fence, err)
		}
	}
	if !stored(t, a, "fenced").Equal(early) {
		t.Error("a refused worker changed the role")
	}
	if err := a.Fenced(t.Context(), Fence{Role: "fenced", Generation: 7, Phase: 3, Rotation: "r7"}, nothing); err != nil {
		t.Errorf("a step that is done again: %v", err)
	}
	if err := a.Fenced(t.Context(), Fence{Role: "fenced", Generation: 8, Phase: 1, Rotation: "r8"}, nothing); err != nil {
		t.Errorf("the next rotation: %v", err)
	}
}

func TestUnknownCommitOutcomeIsReportedAsSuch(t *testing.T) {
	run(t, "CREATE ROLE cut_off")
	cutter, err := pgserver.NewCutter(net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cutter.Close() })
	through := admin(t, server.Superuser, server.Password, net.JoinHostPort(cutter.Host, strconv.Itoa(int(cutter.Port))))
	for i, c := range []struct {
		cut    pgserver.Cut
		landed bool
	}{{pgserver.BeforeCommit, false}, {pgserver.AfterCommit, true}} {
		_, verifier := newPassword(t)
		done := cutter.Arm(c.cut, "ALTER ROLE")
		err := through.Fenced(t.Context(), Fence{Role: "cut_off", Generation: uint64(i + 1), Phase: 1, Rotation: "r"}, setVerifier("cut_off", verifier))
		if !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("cut %d: %v; want ErrUnknownOutcome", c.cut, err)
		}
		select {
		case <-done:
		default:
			t.Fatal("nothing was cut")
		}
		if landed := stored(t, through, "cut_off").Equal(verifier); landed != c.landed {
			t.Errorf("cut %d: landed %v, want %v", c.cut, landed, c.landed)
		}
	}
}

func TestPausedWorkerDoesNotHoldTheRoleForEver(t *testing.T) {
	run(t, "CREATE ROLE paused")
	a := root(t)
	var inside string
	err := a.Fenced(t.Context(), Fence{Role: "paused", Generation: 1, Phase: 1, Rotation: "r1"}, func(ctx context.Context, tx *Tx) error {
		return tx.conn.QueryRow(ctx, "SHOW idle_in_transaction_session_timeout").Scan(&inside)
	})
	if err != nil || inside != "5s" {
		t.Errorf("timeout %q, %v; want 5s", inside, err)
	}
}

func TestFirstUseByManyCreatesTheFenceOnce(t *testing.T) {
	run(t, "DROP SCHEMA IF EXISTS pawl CASCADE")
	a := root(t)
	errs := make(chan error)
	for i := range maxSessions {
		go func() {
			errs <- a.Fenced(t.Context(), Fence{Role: fmt.Sprint("many", i), Generation: 1, Phase: 1, Rotation: "r"}, nothing)
		}()
	}
	for range maxSessions {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestUnusedBeginsAnewAfterASessionOrAGap(t *testing.T) {
	password, verifier := newPassword(t)
	run(t, "CREATE ROLE drained")
	a := root(t)
	fence := Fence{Role: "drained", Generation: 1, Phase: 1, Rotation: "r1"}
	if err := a.Fenced(t.Context(), fence, setVerifier("drained", verifier)); err != nil {
		t.Fatal(err)
	}
	look := func(gap time.Duration) (time.Duration, []Session) {
		t.Helper()
		unused, sessions, err := a.Unused(t.Context(), fence, "drained", false, gap)
		if err != nil {
			t.Fatal(err)
		}
		return unused, sessions
	}
	first, _ := look(time.Minute)
	second, _ := look(time.Minute)
	if second <= first || first > time.Second {
		t.Errorf("unused %v, then %v; want from zero, growing", first, second)
	}
	if anew, _ := look(time.Nanosecond); anew >= second {
		t.Errorf("unused %v after a gap, %v before; want it to begin anew", anew, second)
	}
	target := superuser()
	target.User, target.Password, target.ApplicationName = "drained", password, "laggard"
	conn := connect(t, target)
	if unused, sessions := look(time.Minute); unused != 0 || len(sessions) != 1 || !strings.HasPrefix(sessions[0].String(), "laggard@127.0.0.1 pid ") {
		t.Errorf("unused %v, sessions %v; want 0 and the laggard", unused, sessions)
	}
	conn.Close(t.Context())
	fence.Generation++
	if _, _, err := a.Unused(t.Context(), fence, "drained", false, time.Minute); !errors.As(err, new(*FencedOff)) {
		t.Errorf("another generation: %v; want FencedOff", err)
	}
}

// TestDrainNeitherEndsEarlyNorStandsWhenTheServersClockIsStepped plays a step of the
// server's clock by moving what was stored by it the other way.
func TestDrainNeitherEndsEarlyNorStandsWhenTheServersClockIsStepped(t *testing.T) {
	_, verifier := newPassword(t)
	run(t, "CREATE ROLE stepped")
	fence := Fence{Role: "stepped", Generation: 1, Phase: 1, Rotation: "r1"}
	if err := root(t).Fenced(t.Context(), fence, setVerifier("stepped", verifier)); err != nil {
		t.Fatal(err)
	}
	const gap = 45 * time.Second
	for _, c := range []struct {
		by   time.Duration
		anew bool // the time begins anew
	}{{20 * time.Second, false}, {time.Minute, true}, {time.Hour, true}, {24 * time.Hour, true}, {-20 * time.Second, false}, {-time.Minute, false}, {-time.Hour, false}, {-24 * time.Hour, false}} {
		for _, other := range []bool{false, true} { // another process has seen it, which was not there before
			a := root(t)
			look := func(a *Admin) time.Duration {
				unused, _, err := a.Unused(t.Context(), fence, "stepped", false, gap)
				if err != nil {
					t.Fatal(err)
				}
				return unused
			}
			run(t, "UPDATE pawl.fence SET idle_since = NULL, looked_at = NULL WHERE role = 'stepped'")
			look(a)
			run(t, "UPDATE pawl.fence SET idle_since = idle_since - interval '10 min' WHERE role = 'stepped'") // observed so far
			if unused := look(a); unused < 10*time.Minute || unused > 11*time.Minute {
				t.Fatalf("unused %v", unused)
			}
			run(t, fmt.Sprintf("UPDATE pawl.fence SET idle_since = idle_since - interval '%[1]f s', looked_at = looked_at - interval '%[1]f s' WHERE role = 'stepped'", c.by.Seconds()))
			key := "stepped/stepped"
			made := a.looks.last(key)
			made.looked = made.looked.Add(-c.by)
			a.looks.keep(key, made)
			if other {
				a = root(t)
			}
			want := 10 * time.Minute
			switch {
			case c.anew, other && c.by < 0:
				want = 0
			case other: // it takes the clock for right, within the gap
				want += c.by
			}
			if unused := look(a); (unused - want).Abs() > 5*time.Second {
				t.Errorf("clock stepped by %v, seen by another process: %v: unused for %v, not %v", c.by, other, unused, want)
			}
		}
	}
}

package postgres

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/secret"
)

// pairOf sets up an admin that Pawl turns, as a superuser would, and returns it
// with the password of its first login.
func pairOf(t *testing.T, user string, then ...string) (account inventory.Account, password, verifier secret.String) {
	t.Helper()
	account = ownAccount(user, filepath.Join(t.TempDir(), "admin.json"))
	account.Credential = "own"
	password, verifier = newPassword(t)
	sql := AdminSQL(account, inventory.Account{}, account.Logins())
	run(t, append([]string{sql, sql}, then...)...)
	if err := root(t).Fenced(t.Context(), Fence{Role: user, Generation: 1, Phase: 1, Rotation: "r"}, setVerifier(user, verifier)); err != nil {
		t.Fatal(err)
	}
	publish(t, account, inventory.Login{User: user, Password: password})
	return account, password, verifier
}

// An emergency may begin when every connection slot is taken.
func TestAdminKeepsASessionThatNobodyHasAskedFor(t *testing.T) {
	account, _, _ := pairOf(t, "keeps one")
	newOwn(t, account, nil)
	awaitSessions(t, account.User, 1)
}

// publish writes the account's file as the secret-publisher does.
func publish(t *testing.T, account inventory.Account, login inventory.Login) {
	t.Helper()
	text, err := json.Marshal(map[string]string{"user": login.User, "password": login.Password.Reveal()})
	if err == nil {
		err = os.WriteFile(account.PasswordFile+".tmp", text, 0o600)
	}
	if err == nil {
		err = os.Rename(account.PasswordFile+".tmp", account.PasswordFile)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newOwn(t *testing.T, account inventory.Account, others Others) *Admin {
	t.Helper()
	return adminOf(t, &inventory.Cluster{Name: "main", Admin: account}, "", others)
}

// who opened the session, and as whom it acts.
func who(t *testing.T, a *Admin) (session, acts string) {
	t.Helper()
	err := a.Do(t.Context(), func(c *pgx.Conn) error {
		return c.QueryRow(t.Context(), "SELECT session_user::text, current_user::text").Scan(&session, &acts)
	})
	if err != nil {
		t.Fatal(err)
	}
	return session, acts
}

func TestAnAdminTurnsItsOwnPairWithoutASuperuser(t *testing.T) {
	inBothWays(t, func(t *testing.T, earlier bool) {
		user, then := `Own "pair"`, ""
		if earlier {
			user = `Own "earlier" pair`
			then = pgserver.Earlier(user, []string{user, user + "_b"})
		}
		turnsItsOwnPair(t, user, then)
	})
}

func turnsItsOwnPair(t *testing.T, user, then string) {
	account, first, firstVerifier := pairOf(t, user, then)
	a, b := account.Logins()[0], account.Logins()[1]
	admin := newOwn(t, account, nil)
	change := func(generation uint64, work func(context.Context, *Tx) error) {
		t.Helper()
		if err := admin.Fenced(t.Context(), Fence{Role: a, Generation: generation, Phase: 1, Rotation: "r"}, work); err != nil {
			t.Fatal(err)
		}
	}
	second, secondVerifier := newPassword(t)
	change(2, setVerifier(b, secondVerifier))
	publish(t, account, inventory.Login{User: b, Password: second})
	awaitSessions(t, a, 0)
	if session, acts := who(t, admin); session != b || acts != a {
		t.Fatalf("logged in as %q, acting as %q; want %q as %q", session, acts, b, a)
	}
	// The second login turns the first one.
	change(3, func(ctx context.Context, tx *Tx) error { return tx.SetLogin(ctx, a, false) })
	if role, err := admin.RoleState(t.Context(), a); err != nil || role.CanLogin || !role.Verifier.Equal(firstVerifier) {
		t.Errorf("refused: %v, may log in %v; want its password kept", err, role.CanLogin)
	}
	change(4, func(ctx context.Context, tx *Tx) error { return tx.SetVerifier(ctx, a, false, secret.String{}) })
	if role, err := admin.RoleState(t.Context(), a); err != nil || !role.Verifier.IsZero() {
		t.Errorf("stripped: %v, want no password", err)
	}
	third, thirdVerifier := newPassword(t)
	change(5, setVerifier(a, thirdVerifier))
	publish(t, account, inventory.Login{User: a, Password: third})
	awaitSessions(t, b, 0)
	if session, _ := who(t, admin); session != a {
		t.Errorf("logged in as %q, want %q", session, a)
	}
	// What fails inside of the procedure is in the log, its statement is not.
	_, lost := newPassword(t)
	run(t, "ALTER ROLE "+identifier(b)+" RENAME TO "+identifier("gone of "+user))
	if err := admin.Fenced(t.Context(), Fence{Role: a, Generation: 6, Phase: 1, Rotation: "r"}, setVerifier(b, lost)); !IsRefused(err, "42704") {
		t.Errorf("a login that is gone: %v, want SQLSTATE 42704", err)
	}
	assertQuiet(t, first, second, third, firstVerifier, secondVerifier, thirdVerifier, lost)
}

func TestTheProcedureAltersThePairAloneAndTakesVerifiersAlone(t *testing.T) {
	_, password, verifier := pairOf(t, "guarded")
	run(t, "CREATE ROLE nobody_special LOGIN")
	target := superuser()
	target.User, target.Password = "guarded", password
	conn := connect(t, target)
	for name, c := range map[string][3]any{
		"a superuser":          {server.Superuser, true, verifier.Reveal()},
		"another role":         {"nobody_special", true, verifier.Reveal()},
		"a plaintext":          {"guarded_b", true, "plain-canary"},
		"an md5 hash":          {"guarded_b", true, "md5" + strings.Repeat("0", 32)},
		"more than a verifier": {"guarded_b", true, verifier.Reveal() + "' SUPERUSER --"},
		"neither yes nor no":   {"guarded_b", nil, verifier.Reveal()},
	} {
		_, err := conn.Exec(t.Context(), "CALL pawl.alter_login($1, $2, $3)", c[0], c[1], c[2])
		if !IsRefused(clean(err), NotPermitted) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want SQLSTATE 42501", name, clean(err))
		}
	}
	for _, role := range []string{"guarded_b", "nobody_special"} {
		if r, err := root(t).RoleState(t.Context(), role); err != nil || !r.Verifier.IsZero() || r.Superuser {
			t.Errorf("%s was altered (%v)", role, err)
		}
	}
	var may bool
	err := connect(t, superuser()).QueryRow(t.Context(), "SELECT has_function_privilege('nobody_special', 'pawl.alter_login(name, boolean, text)', 'execute')").Scan(&may)
	if err != nil || may {
		t.Errorf("anybody may call it: %v, %v", may, err)
	}
}

// awaitSessions waits until so many sessions of Pawl's are open as user; more than one
// means so many at least, since an admin keeps one open beside those in use.
func awaitSessions(t *testing.T, user string, want int) {
	t.Helper()
	conn := connect(t, superuser())
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var have int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", user).Scan(&have); err != nil {
			t.Fatal(clean(err))
		}
		if have == want || want > 1 && have > want {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("%d sessions of %q, want %d", have, user, want)
		}
	}
}

func TestSessionsOfTheOldLoginEndUnaskedAndBusyOnesWhenReleased(t *testing.T) {
	account, password, _ := pairOf(t, "moving")
	a := newOwn(t, account, nil)
	next, verifier := newPassword(t)
	err := a.Do(t.Context(), func(busy *pgx.Conn) error {
		if err := a.Fenced(t.Context(), Fence{Role: "moving", Generation: 2, Phase: 1, Rotation: "r"}, setVerifier("moving_b", verifier)); err != nil {
			return err
		}
		awaitSessions(t, "moving", 2)
		publish(t, account, inventory.Login{User: "moving_b", Password: next})
		awaitSessions(t, "moving", 1)
		_, err := busy.Exec(t.Context(), "SELECT 1")
		return err
	})
	if err != nil {
		t.Fatal(clean(err))
	}
	awaitSessions(t, "moving", 0)
	if session, _ := who(t, a); session != "moving_b" {
		t.Errorf("logged in as %q, want moving_b", session)
	}
	assertQuiet(t, password, next, verifier)
}

func TestTheFilesThenThePendingThenThePreviousLoginIsTried(t *testing.T) {
	account, good, _ := pairOf(t, "restored")
	wrong, _ := newPassword(t)
	works := inventory.Login{User: "restored", Password: good}
	stale := inventory.Login{User: "restored", Password: wrong}
	idle := inventory.Login{User: "restored_b", Password: wrong}
	for _, c := range []struct {
		name   string
		file   *inventory.Login // nil: there is none
		others []inventory.Login
		asked  int
	}{
		{"the file's works", &works, []inventory.Login{idle, stale}, 0},
		{"the pending works", &stale, []inventory.Login{works, idle}, 1},
		{"the previous works", &stale, []inventory.Login{idle, works}, 1},
		{"no file", nil, []inventory.Login{works}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.file == nil {
				_ = os.Remove(account.PasswordFile) // it may be gone already
			} else {
				publish(t, account, *c.file)
			}
			asked := 0
			a := newOwn(t, account, func(_ context.Context, credential string) ([]inventory.Login, error) {
				asked++
				if credential != "own" {
					t.Errorf("asked for the logins of %q", credential)
				}
				return slices.Clone(c.others), nil
			})
			for range 2 { // what worked is remembered
				if session, _ := who(t, a); session != "restored" {
					t.Errorf("logged in as %q", session)
				}
				a.pool.Reset()
			}
			if asked != c.asked {
				t.Errorf("others were asked for %d times, want %d", asked, c.asked)
			}
		})
	}
}

func TestNoLoginThatWorksNamesTheFileAndTriesEachOnce(t *testing.T) {
	account, good, _ := pairOf(t, "shut_out")
	wrong, _ := newPassword(t)
	publish(t, account, inventory.Login{User: "shut_out", Password: wrong})
	a := newOwn(t, account, func(context.Context, string) ([]inventory.Login, error) {
		return []inventory.Login{{User: "shut_out_b", Password: good}}, nil
	})
	err := a.Do(t.Context(), func(*pgx.Conn) error { return nil })
	if !IsRefused(err, WrongPassword) || !strings.Contains(err.Error(), account.PasswordFile) {
		t.Errorf("got %v; want the refusal, and the file to correct", err)
	}
	// A file that is put right is used again, whatever was tried before.
	publish(t, account, inventory.Login{User: "shut_out", Password: good})
	if session, _ := who(t, a); session != "shut_out" {
		t.Errorf("logged in as %q", session)
	}
}

func TestAStandInGivesWayOnceTheFilesLoginWorks(t *testing.T) {
	account := ownAccount("lagging", filepath.Join(t.TempDir(), "admin.json"))
	account.Credential = "own"
	one, two := inventory.Login{User: "lagging", Password: secret.New("one")}, inventory.Login{User: "lagging_b", Password: secret.New("two")}
	publish(t, account, two)
	moved, arrived := 0, false
	l := &logins{account: account, moved: func() { moved++ }, others: func(context.Context, string) ([]inventory.Login, error) {
		return []inventory.Login{one}, nil
	}}
	try := func(_ context.Context, login inventory.Login) error {
		if same(login, one) || arrived {
			return nil
		}
		return &Refused{SQLSTATE: WrongPassword}
	}
	if !l.search(t.Context(), l.inUse(), try) || !same(l.inUse(), one) {
		t.Fatal("the standby's own login was not found")
	}
	arrived = true
	if l.back(t.Context(), try); !same(l.inUse(), one) {
		t.Error("the file's login was tried again at once")
	}
	l.at, arrived = time.Now().Add(-tryAgain), false
	if l.back(t.Context(), try); !same(l.inUse(), one) || time.Since(l.at) > tryAgain/2 {
		t.Error("the file's login was refused, and used or tried for ever")
	}
	l.at, arrived = time.Now().Add(-tryAgain), true
	if l.back(t.Context(), try); !same(l.inUse(), two) || moved != 1 {
		t.Errorf("the file's login works and is not used (sessions ended %d times)", moved)
	}
}

package rotator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// emergency is one of the world's credential that has begun.
func (w *world) emergency(supersedes *service.Rotation) *service.Rotation {
	w.t.Helper()
	r := w.next(saga.Emergency)
	if supersedes != nil {
		r.Requested().Supersedes = supersedes.ID
	}
	return r
}

// insistently contains as the service does, which calls again: on a busy machine
// thieves can outlast an attempt.
func (w *world) insistently(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	for tries := 1; ; tries++ {
		e, err := w.Contain(ctx, r)
		if err == nil || tries == 20 {
			return e, err
		}
	}
}

// refusedNow asserts that nobody can log in with it, and nobody is.
func (w *world) refusedNow(c *sealed.Credential) {
	w.t.Helper()
	conn, err := postgres.Login(w.t.Context(), target(c.User, c.Password))
	if err == nil {
		w.hangUp(conn)
		w.t.Errorf("%q still logs in with what was stolen", c.User)
	}
	var sessions int
	if err := super.QueryRow(w.t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", c.User).Scan(&sessions); err != nil || sessions > 0 {
		w.t.Errorf("%d sessions of %q, %v", sessions, c.User, err)
	}
}

func TestStolenLoginIsRefusedAndTheApplicationReturnsOnItsCleanSibling(t *testing.T) {
	w := newWorld(t, "stolen", inventory.Alternating)
	w.rotate(saga.Alternating) // current is the sibling now, and both have passwords
	stolen := w.envelope(w.basis)
	session := w.connect(stolen.User, stolen.Password)

	r := w.emergency(nil)
	r.Requested().BareSince = timestamppb.New(time.Now().Add(-time.Hour)) // by the log; the other login has a password all the same
	r.State = w.startedNow(r)
	contained := w.do(w.Contain, r, saga.Contained).GetContained()
	if contained.GetClean() || contained.GetReturns() != stolen.User || contained.GetSessions() != 1 || len(contained.GetPending()) > 0 {
		t.Errorf("contained: %v; want in place, one session ended, nothing pending", contained)
	}
	if session.Ping(t.Context()) == nil {
		t.Error("the thief's session lives")
	}
	w.refusedNow(stolen)
	for _, login := range []string{"stolen", "stolen_b"} {
		if role := w.role(login); role.CanLogin || !role.Verifier.IsZero() {
			t.Errorf("%s may log in: %v; or has a password", login, role.CanLogin)
		}
	}
	w.do(w.Issue, r, saga.Staged)
	w.logsIn(w.envelope(r.ID), "")
	w.refusedNow(stolen)
	w.basis, w.user = r.ID, stolen.User

	// Again: the other login is bare by now, and long enough.
	stolen = w.envelope(r.ID)
	r = w.emergency(nil)
	r.Requested().BareSince = timestamppb.New(time.Now().Add(-time.Hour))
	r.State = w.startedNow(r)
	contained = w.do(w.Contain, r, saga.Contained).GetContained()
	if !contained.GetClean() || contained.GetReturns() != "stolen" {
		t.Errorf("contained: %v; want the clean login to return", contained)
	}
	w.do(w.Issue, r, saga.Staged)
	w.logsIn(w.envelope(r.ID), "")
	w.refusedNow(stolen)
	for _, known := range []string{w.envelopes.Fingerprint(stolen.User, stolen.Verifier)} {
		if !strings.Contains(strings.Join(w.envelope(r.ID).Compromised, " "), known) {
			t.Error("the new credential does not remember what was stolen")
		}
	}
}

// Between the refusal and the new password nobody is let in, and old and new are
// both expected: that is no agreement.
func TestDoctorSaysThatNobodyCanLogInDuringAnEmergency(t *testing.T) {
	w := newReconciling(t, "nobody", inventory.Alternating)
	w.newest = w.world.next(saga.Alternating)
	if checks := w.Reconciler.Examine(t.Context(), w.credential); finding(checks, true, "") || !finding(checks, false, "old and new are both expected") {
		t.Errorf("checks %v; want a rotation at work, and nothing wrong", checks)
	}
	w.sql("ALTER ROLE nobody NOLOGIN")
	if checks := w.Reconciler.Examine(t.Context(), w.credential); !finding(checks, true, "rotation "+w.newest.ID+" did not do it") {
		t.Errorf("checks %v; want that somebody has refused the login", checks)
	}
	w.sql("ALTER ROLE nobody LOGIN")

	w.newest = w.emergency(nil)
	w.newest.State = w.startedNow(w.newest)
	w.do(w.Contain, w.newest, saga.Contained)
	if checks := w.Reconciler.Examine(t.Context(), w.credential); !finding(checks, true, "emergency "+w.newest.ID+" has refused them") {
		t.Errorf("checks %v; want that the emergency lets nobody in", checks)
	}
	w.do(w.Issue, w.newest, saga.Staged)
	if checks := w.Reconciler.Examine(t.Context(), w.credential); finding(checks, true, "can log in with") {
		t.Errorf("checks %v; want the new login seen", checks)
	}
}

// startedNow is r's state with the time at which it was requested.
func (w *world) startedNow(r *service.Rotation) saga.State {
	w.t.Helper()
	state, err := saga.Fold(r.State.Flow.Name, []saga.Entry{{Event: saga.Requested, Seq: 1, At: time.Now()}})
	if err != nil {
		w.t.Fatal(err)
	}
	return state
}

// A session of the thief's that has begun to change its own password holds the
// row that is to be changed, for as long as it likes; so does one of Pawl's own
// that hangs; and a prepared transaction holds it without any session.
func TestLocksDoNotKeepAStolenLoginAlive(t *testing.T) {
	for name, hold := range map[string]func(w *world, stolen *sealed.Credential){
		"own password": func(w *world, stolen *sealed.Credential) {
			thief := w.connect(stolen.User, stolen.Password)
			_, verifier := newPassword(w.t)
			if _, err := thief.Exec(w.t.Context(), "BEGIN; ALTER ROLE CURRENT_USER PASSWORD '"+verifier.Reveal()+"'", pgx.QueryExecModeSimpleProtocol); err != nil {
				w.t.Fatal(err)
			}
		},
		"fence": func(w *world, _ *sealed.Credential) {
			hung := w.connect(server.Superuser, server.Password)
			if _, err := hung.Exec(w.t.Context(), "BEGIN; UPDATE pawl.fence SET phase = phase", pgx.QueryExecModeSimpleProtocol); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "locker_"+strings.ReplaceAll(name, " ", "_"), inventory.InPlace)
			w.rotate(saga.InPlace) // makes the fence
			stolen := w.envelope(w.basis)
			hold(w, stolen)
			contained := w.do(w.insistently, w.emergency(nil), saga.Contained).GetContained()
			if len(contained.GetPending()) > 0 {
				t.Errorf("not contained: %v", contained)
			}
			w.refusedNow(stolen)
		})
	}
}

func TestNodeThatIsAwayDelaysNoOtherAndIsNamed(t *testing.T) {
	w := newWorld(t, "partly", inventory.InPlace)
	stolen := w.envelope(w.basis)
	w.credential.Nodes = append(w.credential.Nodes, inventory.Node{Name: "away", Host: "127.0.0.1", Port: 1})
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained).GetContained()
	if contained.GetPending()["away"] == "" || contained.GetAt()["coordinator"] == nil {
		t.Fatalf("contained: %v", contained)
	}
	w.refusedNow(stolen)
	w.do(w.Issue, r, saga.Staged)
	w.logsIn(w.envelope(r.ID), "")
	if _, err := w.Release(t.Context(), r); err == nil || !strings.Contains(err.Error(), "away") {
		t.Errorf("release: %v; want the node that is away named", err)
	}
	w.credential.Nodes = w.credential.Nodes[:1] // assertQuiet and others look at all
}

// A session that is stopped, or is inside a library, does not look whether it is told to
// end. It keeps nobody waiting but the release, and does nothing more when it wakes up.
func TestStolenSessionThatDoesNotEndIsNamedAndDelaysOnlyTheRelease(t *testing.T) {
	settings := maps.Clone(loud)
	settings["authentication_timeout"] = "2s"
	for _, strategy := range []string{inventory.InPlace, inventory.Alternating} {
		t.Run(strategy, func(t *testing.T) {
			w := newFollowedWith(t, "hangs_"+strategy, strategy, settings, nil)
			stolen := w.envelope(w.basis)
			to := target(stolen.User, stolen.Password)
			to.Host, to.Port = w.primary.Host, w.primary.Port
			session, err := postgres.Login(t.Context(), to)
			if err != nil {
				t.Fatal(err)
			}
			pid := session.PgConn().PID()
			backend, err := os.FindProcess(int(pid))
			if err == nil {
				err = backend.Signal(syscall.SIGSTOP)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = backend.Signal(syscall.SIGCONT) }) // it may have ended
			_, verifier := newPassword(t)
			said := make(chan error, 1)
			go func() { // reaches the server, which reads it when it wakes up
				_, err := session.Exec(context.Background(), changesOwn+verifier.Reveal()+"'", pgx.QueryExecModeSimpleProtocol)
				said <- err
			}()
			r := w.emergency(nil)
			contained := w.do(w.insistently, r, saga.Contained).GetContained()
			if all := contained.GetUnending(); len(all) != 1 || all[0].GetPid() != int32(pid) || all[0].GetNode() != "coordinator" || len(contained.GetPending()) > 0 {
				t.Fatalf("contained: %v; want process %d named, and nothing pending", contained, pid)
			}
			if contained.GetClean() != (strategy == inventory.Alternating) {
				t.Errorf("a clean login returns: %v", contained.GetClean())
			}
			w.guarded(r)
			w.do(w.Issue, r, saga.Staged)
			for _, s := range []*pgserver.Server{w.primary, w.standby} {
				if err := w.logsInAt(s, r.ID); err != nil {
					t.Errorf("the application does not return: %v", err)
				}
			}
			named := fmt.Sprintf("process %d on coordinator", pid)
			w.untilReleased(r, func(why string) {
				if strings.Contains(why, named) {
					if err := backend.Signal(syscall.SIGCONT); err != nil {
						t.Fatal(err)
					}
					named = ""
				}
			})
			if named != "" {
				t.Error("released, and the session was never waited for")
			}
			if <-said == nil {
				t.Error("the session has changed its password after it was told to end")
			}
			for _, s := range []*pgserver.Server{w.primary, w.standby} {
				if err := w.logsInAt(s, r.ID); err != nil {
					t.Errorf("the application does not return: %v", err)
				}
			}
			w.endGuards()
		})
	}
}

// untilReleased releases as the service does, and tells each time what is waited for.
func (w *world) untilReleased(r *service.Rotation, waits func(why string)) {
	w.t.Helper()
	for {
		_, err := w.Release(w.t.Context(), r)
		wait := new(saga.NotYet)
		switch {
		case err == nil:
			return
		case !errors.As(err, &wait):
			w.t.Fatal(err)
		}
		waits(wait.Error())
		<-time.After(wait.Again)
	}
}

// Nothing comes after a lock that would end a session later.
func TestLockWaitsForASessionThatDoesNotEnd(t *testing.T) {
	w := newWorld(t, "hangs_on", inventory.InPlace)
	stolen := w.envelope(w.basis)
	session := w.connect(stolen.User, stolen.Password)
	backend, err := os.FindProcess(int(session.PgConn().PID()))
	if err == nil {
		err = backend.Signal(syscall.SIGSTOP)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = backend.Signal(syscall.SIGCONT) }) // it may have ended
	r := w.next(saga.Lock)
	for tries := 0; ; tries++ { // on a busy machine one attempt may see nothing
		e, err := w.Contain(t.Context(), r)
		if err == nil {
			t.Fatalf("contained: %v", e.GetSummary())
		}
		if strings.Contains(err.Error(), fmt.Sprintf("process %d on coordinator", backend.Pid)) {
			break
		}
		if tries == 10 {
			t.Fatal(err)
		}
	}
	if err := backend.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.do(w.insistently, r, saga.Contained)
	w.refusedNow(stolen)
}

// A host that is gone answers nothing, not even that nothing listens there.
func TestStolenLoginIsRefusedThoughAReplicaHangs(t *testing.T) {
	w := newWorld(t, "beside_a_hang", inventory.InPlace)
	stolen := w.envelope(w.basis)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // and accepts nobody
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	replica := inventory.Node{Name: "silent", Host: "127.0.0.1", Port: uint16(silent.Addr().(*net.TCPAddr).Port), ReplicaOf: "coordinator"}
	w.credential.Cluster.Nodes = map[string]inventory.Node{"coordinator": w.credential.Nodes[0], "silent": replica}
	contained := w.do(w.insistently, w.emergency(nil), saga.Contained).GetContained()
	if contained.GetPending()["silent"] == "" || contained.GetAt()["coordinator"] == nil {
		t.Errorf("contained: %v", contained)
	}
	w.refusedNow(stolen)
}

func TestNodeThatComesBackIsContainedAndGetsTheNewPassword(t *testing.T) {
	w := newCluster(t, "two_of_them", inventory.InPlace)
	stolen := w.envelope(w.basis)
	late := w.servers[1]
	port := w.credential.Nodes[1].Port
	w.credential.Nodes[1].Port = 1
	w.Close()
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained).GetContained()
	if len(contained.GetPending()) != 1 {
		t.Fatalf("contained: %v", contained)
	}
	w.do(w.Issue, r, saga.Staged)
	w.credential.Nodes[1].Port = port
	w.Close()
	thief := target(stolen.User, stolen.Password)
	thief.Host, thief.Port = late.Host, late.Port
	session, err := postgres.Login(t.Context(), thief)
	if err != nil {
		t.Fatalf("the node was not as it was left, so this proves nothing: %v", err)
	}
	defer session.Close(context.Background())
	waiting := new(saga.NotYet)
	if _, err := w.Release(t.Context(), r); !errors.As(err, &waiting) || !strings.Contains(waiting.Why, "handshake") {
		t.Errorf("release: %v; want it to wait for handshakes alone", err)
	}
	if session.Ping(t.Context()) == nil {
		t.Error("the thief's session on the node that came back lives")
	}
	if again, err := postgres.Login(t.Context(), thief); err == nil {
		again.Close(context.Background())
		t.Error("the stolen password works on the node that came back")
	}
	fresh := target(stolen.User, w.envelope(r.ID).Password)
	fresh.Host, fresh.Port = late.Host, late.Port
	back, err := postgres.Login(t.Context(), fresh)
	if err != nil {
		t.Fatalf("the new password does not work on the node that came back: %v", err)
	}
	defer back.Close(context.Background())
	if _, err := w.Release(t.Context(), r); !errors.As(err, &waiting) || back.Ping(t.Context()) != nil {
		t.Errorf("looked at again (%v), the node was contained again", err)
	}
}

// A role that only has the name of the second login is somebody else's.
func TestRoleOfAnotherWithTheSiblingsNameIsLeftAlone(t *testing.T) {
	w := newWorld(t, "near", inventory.InPlace)
	password, verifier := newPassword(t)
	w.sql("CREATE ROLE near_b LOGIN PASSWORD '" + verifier.Reveal() + "'")
	stranger := w.connect("near_b", password)
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained).GetContained()
	w.do(w.Issue, r, saga.Staged)
	waiting := new(saga.NotYet)
	if _, err := w.Release(t.Context(), r); !errors.As(err, &waiting) {
		t.Error(err)
	}
	if err := stranger.Ping(t.Context()); err != nil {
		t.Errorf("another's session was ended: %v", err)
	}
	if role := w.role("near_b"); !role.CanLogin || role.Verifier.IsZero() {
		t.Error("another's role was refused")
	}
	if names := contained.GetLogins(); !slices.Equal(names, []string{"near"}) {
		t.Errorf("contained %v", names)
	}
	log := bus.Log{Records: []bus.Record{{Entry: saga.Entry{Event: saga.Contained}, Body: r.Events[saga.Contained]}}}
	if _, refused := refusedBy(log, r.State); len(refused) > 0 {
		t.Errorf("the reconciler would refuse %v for ever", refused)
	}
}

// Locked is locked, whoever gives the login back, until it is unlocked on a new
// password.
func TestLockedLoginStaysRefusedUntilItIsUnlocked(t *testing.T) {
	w := newReconciling(t, "locked", inventory.Alternating)
	stolen := w.envelope(w.basis)
	lock := w.world.next(saga.Lock)
	w.do(w.Contain, lock, saga.Contained)
	w.refusedNow(stolen)
	done := w.rotation(lock.ID, saga.Lock, lock.Requested().GetGeneration(), saga.Contained, saga.Completed)
	maps.Copy(done.Events, lock.Events)
	w.newest = done
	w.pass(t.Context(), true)
	w.expectNotes()
	w.sql("ALTER ROLE locked LOGIN PASSWORD '" + stolen.Verifier.Reveal() + "'")
	session := w.connect(stolen.User, stolen.Password)
	w.pass(t.Context(), true)
	w.expectNotes("repaired")
	w.refusedNow(stolen)
	if session.Ping(t.Context()) == nil {
		t.Error("a session of a locked login lives")
	}
	unlock := w.emergency(nil)
	w.do(w.Contain, unlock, saga.Contained)
	w.do(w.Issue, unlock, saga.Staged)
	w.logsIn(w.envelope(unlock.ID), "")
	if w.envelope(unlock.ID).Password.Equal(stolen.Password) {
		t.Error("unlocked on the old password")
	}
}

func TestLateStepOfASupersededRotationIsRefused(t *testing.T) {
	w := newWorld(t, "zombie", inventory.Alternating)
	late := w.next(saga.Alternating)
	r := w.emergency(late)
	w.do(w.Contain, r, saga.Contained)
	if _, err := w.Stage(t.Context(), late); err == nil {
		t.Error("a late stage gave a login back")
	}
	if w.role("zombie").CanLogin || w.role("zombie_b").CanLogin {
		t.Error("a login may log in")
	}
}

func TestGlassBreaksWithoutALog(t *testing.T) {
	w := newWorld(t, "glass", inventory.Alternating)
	stolen := w.envelope(w.basis)
	w.connect(stolen.User, stolen.Password)
	alone := New(nil, nil)
	defer alone.Close()
	contained, err := alone.BreakGlass(context.Background(), w.credential, nil, nil)
	if err != nil || contained.GetSessions() != 1 {
		t.Errorf("%v, %v", contained, err)
	}
	w.refusedNow(stolen)
	// The log learns of it afterwards, and goes on from there.
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	w.logsIn(w.envelope(r.ID), "")
}

func TestThiefCannotChangeThePasswordWhileHeIsThrownOut(t *testing.T) {
	w := newWorld(t, "resetter", inventory.InPlace)
	stolen := w.envelope(w.basis)
	password, verifier := newPassword(t)
	thief := w.connect(stolen.User, stolen.Password)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := thief.Exec(context.Background(), "ALTER ROLE CURRENT_USER PASSWORD '"+verifier.Reveal()+"'", pgx.QueryExecModeSimpleProtocol); err != nil {
				return
			}
		}
	}()
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	<-ended
	w.do(w.Issue, r, saga.Staged)
	w.refusedNow(&sealed.Credential{User: stolen.User, Password: password})
	w.logsIn(w.envelope(r.ID), "")
}

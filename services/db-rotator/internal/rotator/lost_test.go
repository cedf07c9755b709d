package rotator

import (
	"context"
	"errors"
	"maps"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
)

// stagedLog is the log of an emergency that has got to staged just now.
func (w *world) stagedLog(r *service.Rotation) bus.Log {
	w.t.Helper()
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for i, e := range []saga.Event{saga.Requested, saga.Contained, saga.Staged} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 1), At: time.Now()}, Body: r.Events[e]})
	}
	state, err := log.Fold()
	if err != nil {
		w.t.Fatal(err)
	}
	r.State = state
	return log
}

// watchesFromHere has the guard watch, of a process that was started since.
func (w *world) watchesFromHere(r *service.Rotation) {
	log := w.stagedLog(r)
	w.newest = func(context.Context, string) (bus.Log, error) { return log, nil }
	w.guard(w.credential, r.ID, log.Records[0].Seq)
}

// logsInWithin tries the new password until it works on the server.
func (w *followed) logsInWithin(s *pgserver.Server, rotation string, d time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for err := w.logsInAt(s, rotation); err != nil; err = w.logsInAt(s, rotation) {
		select {
		case <-ctx.Done():
			w.t.Fatalf("the application does not return on port %d: %v", s.Port, err)
		case <-again.C:
		}
	}
}

// quick are the settings of a server whose handshakes end soon.
func quick(timeout string) map[string]string {
	settings := maps.Clone(loud)
	settings["authentication_timeout"] = timeout
	return settings
}

// behindAnAddress is a world whose node is an address that can be led to the standby, of
// which pawl.yaml does not know.
func behindAnAddress(t *testing.T, role, strategy string) (*followed, *pgserver.Cutter) {
	t.Helper()
	w := newFollowedWith(t, role, strategy, quick("2s"), nil)
	address, err := pgserver.NewCutter(net.JoinHostPort(w.primary.Host, strconv.Itoa(int(w.primary.Port))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { address.Close() })
	w.credential.Nodes[0].Port = address.Port
	w.credential.Cluster.Nodes = map[string]inventory.Node{"coordinator": w.credential.Nodes[0]}
	w.Close()
	return w, address
}

// failsOver kills the primary, and lets the standby take the writes.
func (w *followed) failsOver() {
	w.t.Helper()
	if err := w.primary.Kill(); err != nil {
		w.t.Fatal(err)
	}
	if err := w.standby.Promote(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// follows has the standby follow nobody, so that it gets nothing more.
func (w *followed) followsNobody() {
	w.t.Helper()
	w.awaits(w.standby, "SELECT pg_last_wal_replay_lsn() >= '"+w.positionOf(w.primary)+"'")
	if err := w.standby.Follow(w.t.Context(), nil); err != nil {
		w.t.Fatal(err)
	}
}

// refusedAt asserts that a password does not let in on the server.
func (w *followed) refusedAt(s *pgserver.Server, user string, password secret.String) {
	w.t.Helper()
	to := target(user, password)
	to.Host, to.Port = s.Host, s.Port
	if conn, err := postgres.Login(w.t.Context(), to); err == nil {
		_ = conn.Close(w.t.Context())
		w.t.Errorf("what was stolen lets in on port %d", s.Port)
	}
}

// TestFailoverInMidEmergencyGivesTheStolenLoginBack, and keeps the application out: the
// server that takes the writes by now lacks what was committed.
func TestFailoverInMidEmergencyGivesTheStolenLoginBack(t *testing.T) {
	t.Run("to a replica that is late", func(t *testing.T) {
		w := newFollowed(t, "lost_late", inventory.InPlace, "0")
		stolen := w.envelope(w.basis)
		w.followsNobody()
		r := w.emergency(nil)
		w.do(w.Contain, r, saga.Contained)
		w.do(w.Issue, r, saga.Staged)
		w.failsOver()
		w.watchesFromHere(r)
		w.logsInWithin(w.standby, r.ID, time.Minute)
		w.refusedAt(w.standby, stolen.User, stolen.Password)
		w.endGuards()
	})
	for _, strategy := range []string{inventory.InPlace, inventory.Alternating} {
		t.Run("to a server that pawl.yaml does not name, "+strategy, func(t *testing.T) {
			w, address := behindAnAddress(t, "lost_"+strategy, strategy)
			stolen := w.envelope(w.basis)
			w.followsNobody()
			r := w.emergency(nil)
			w.do(w.Contain, r, saga.Contained)
			w.do(w.Issue, r, saga.Staged)
			w.failsOver()
			thief := w.thiefAt(w.standby, stolen.User, stolen.Password)
			address.Retarget(w.standby.Address())
			w.watchesFromHere(r)
			w.logsInWithin(w.standby, r.ID, time.Minute)
			w.refusedAt(w.standby, stolen.User, stolen.Password)
			if thief.Ping(t.Context()) == nil {
				t.Error("the thief stays on the server that takes the writes by now")
			}
			application := w.thiefAt(w.standby, w.envelope(r.ID).User, w.envelope(r.ID).Password)
			w.untilReleased(r, func(string) {})
			if err := application.Ping(t.Context()); err != nil {
				t.Errorf("the application was ended once the node was in order: %v", err)
			}
			w.endGuards()
		})
	}
}

// TestPasswordIsIssuedWhereAFailoverLostTheContainment, while the stolen login still lets in.
func TestPasswordIsIssuedWhereAFailoverLostTheContainment(t *testing.T) {
	w, address := behindAnAddress(t, "lost_before", inventory.Alternating)
	stolen := w.envelope(w.basis)
	w.followsNobody()
	r := w.emergency(nil)
	r.State = w.startedNow(r)
	if contained := w.do(w.Contain, r, saga.Contained).GetContained(); !contained.GetClean() {
		t.Fatalf("contained: %v; want the sibling to return", contained)
	}
	w.failsOver()
	thief := w.thiefAt(w.standby, stolen.User, stolen.Password)
	address.Retarget(w.standby.Address())
	w.Close()
	w.do(w.Issue, r, saga.Staged)
	w.refusedAt(w.standby, stolen.User, stolen.Password)
	if thief.Ping(t.Context()) == nil {
		t.Error("the thief stays on the server that takes the writes by now")
	}
	if err := w.logsInAt(w.standby, r.ID); err != nil {
		t.Errorf("the application does not return: %v", err)
	}
}

// TestEmergencyIsReleasedWithoutWhatAFailoverLost: nobody has watched meanwhile.
func TestEmergencyIsReleasedWithoutWhatAFailoverLost(t *testing.T) {
	w, address := behindAnAddress(t, "lost_unseen", inventory.Alternating)
	stolen := w.envelope(w.basis)
	w.followsNobody()
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	w.failsOver()
	address.Retarget(w.standby.Address())
	w.stagedLog(r)
	w.untilReleased(r, func(string) {})
	w.refusedAt(w.standby, stolen.User, stolen.Password)
	if err := w.logsInAt(w.standby, r.ID); err != nil {
		t.Errorf("the application does not return: %v", err)
	}
}

// TestFailoverThatLosesOnlyTheLastCommitKeepsTheApplicationOut: the replica has replayed
// the new password, and not that it may log in.
func TestFailoverThatLosesOnlyTheLastCommitKeepsTheApplicationOut(t *testing.T) {
	w, address := behindAnAddress(t, "lost_last", inventory.InPlace)
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	s, err := w.lead(t.Context(), w.credential, w.credential.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := w.decideAnew(t.Context(), r)
	if err == nil {
		err = w.setAnew(t.Context(), r, s, envelope, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.followsNobody()
	w.do(w.Issue, r, saga.Staged)
	w.failsOver()
	if w.logsInAt(w.standby, r.ID) == nil {
		t.Fatal("nothing was lost: this test proves nothing")
	}
	address.Retarget(w.standby.Address())
	w.watchesFromHere(r)
	w.logsInWithin(w.standby, r.ID, time.Minute)
	w.endGuards()
}

// TestRotationThatFollowsIsContainedForWhatAFailoverLost: the guard knows by its log
// only later that its emergency has been overtaken.
func TestRotationThatFollowsIsContainedForWhatAFailoverLost(t *testing.T) {
	w := newWorld(t, "lost_overtaken", inventory.InPlace)
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	w.stagedLog(r)
	envelope := w.envelope(r.ID)
	w.basis, w.user = r.ID, envelope.User
	next := w.envelope(w.rotate(saga.InPlace).ID)
	s, err := w.lead(t.Context(), w.credential, w.credential.Primary())
	if err != nil {
		t.Fatal(err)
	}
	if lost, err := w.regain(t.Context(), r, s, envelope); lost || err != nil {
		t.Errorf("regained: %v, %v", lost, err)
	}
	w.logsIn(next, "")
}

// TestThiefWhoBeganBeforeALateReplicaReplayedStays: the primary had been given the
// password before he began, and the replica after that.
func TestThiefWhoBeganBeforeALateReplicaReplayedStays(t *testing.T) {
	w := newFollowed(t, "late_began", inventory.InPlace, "0")
	stolen := w.envelope(w.basis)
	w.pauseReplay()
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	to := target(stolen.User, stolen.Password)
	to.Host, to.Port = w.standby.Host, w.standby.Port
	complete := w.begins(to)
	w.watchesFromHere(r)
	w.at(w.standby, "SELECT pg_wal_replay_resume()")
	w.awaits(w.standby, "SELECT pg_last_wal_replay_lsn() >= '"+w.positionOf(w.primary)+"'")
	if thief := complete(); thief.err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := thief.conn.Exec(ctx, "SELECT pg_sleep(9)", pgx.QueryExecModeSimpleProtocol); err == nil {
			t.Error("who began to log in before the replica replayed the new password stays there")
		}
	}
	w.logsInWithin(w.standby, r.ID, time.Minute)
	w.endGuards()
}

// TestReleaseForgetsTheHandshakesOfAReplica, which has another authentication_timeout,
// and may have got the new password only now. Nobody has watched meanwhile.
func TestReleaseForgetsTheHandshakesOfAReplica(t *testing.T) {
	w := newFollowedWith(t, "late_handshake", inventory.InPlace, quick("1s"), map[string]string{"authentication_timeout": "8s"})
	stolen := w.envelope(w.basis)
	w.pauseReplay()
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	w.stagedLog(r)
	s, err := w.lead(t.Context(), w.credential, w.credential.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	issued, _ := r.State.Has(saga.Staged)
	for left := time.Hour; left > 0; { // at the primary
		if left, err = w.handshakes(t.Context(), s, w.credential, issued.At); err != nil {
			t.Fatal(err)
		}
		<-time.After(left)
	}
	to := target(stolen.User, stolen.Password)
	to.Host, to.Port = w.standby.Host, w.standby.Port
	complete := w.begins(to)
	w.at(w.standby, "SELECT pg_wal_replay_resume()")
	w.awaits(w.standby, "SELECT pg_last_wal_replay_lsn() >= '"+w.positionOf(w.primary)+"'")
	w.untilReleased(r, func(string) {})
	if thief := complete(); thief.err == nil && thief.conn.Ping(t.Context()) == nil {
		t.Error("released, and a handshake from before succeeds on the replica")
	}
	if err := errors.Join(w.logsInAt(w.primary, r.ID), w.logsInAt(w.standby, r.ID)); err != nil {
		t.Errorf("the application does not return: %v", err)
	}
}

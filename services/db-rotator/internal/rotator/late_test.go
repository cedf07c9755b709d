package rotator

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
)

// thiefAt is logged in on a server with the login's password.
func (w *followed) thiefAt(s *pgserver.Server, user string, password secret.String) *pgx.Conn {
	w.t.Helper()
	to := target(user, password)
	to.Host, to.Port = s.Host, s.Port
	conn, err := postgres.Login(w.t.Context(), to)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// pauseReplay has the standby replay nothing more.
func (w *followed) pauseReplay() {
	w.t.Helper()
	w.awaits(w.standby, "SELECT pg_last_wal_replay_lsn() >= '"+w.positionOf(w.primary)+"'")
	w.at(w.standby, "SELECT pg_wal_replay_pause()")
}

// TestThiefStaysOnTheReplicaOfAPrimaryThatIsAway, and no step after that knows of the
// replica: each would wait for it, or say that it is new in pawl.yaml.
func TestThiefStaysOnTheReplicaOfAPrimaryThatIsAway(t *testing.T) {
	w := newFollowed(t, "orphaned", inventory.InPlace, "0")
	c, stolen := w.credential, w.envelope(w.basis)
	beside := inventory.Node{Name: "beside", Host: server.Host, Port: server.Port}
	w.sql("CREATE ROLE orphaned LOGIN PASSWORD '" + stolen.Verifier.Reveal() + "'")
	port := c.Nodes[0].Port
	c.Nodes = append(c.Nodes, beside)
	c.Cluster.Nodes["beside"] = beside
	thief := w.thiefAt(w.standby, stolen.User, stolen.Password)
	c.Nodes[0].Port = 1
	w.Close()
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained).GetContained()
	if pending := contained.GetPending(); len(pending) != 2 || !strings.Contains(pending["replica"], "coordinator") || contained.GetAt()["beside"] == nil {
		t.Errorf("contained: %v; want the primary that is away and its replica named", contained)
	}
	if thief.Ping(t.Context()) == nil {
		t.Error("the thief's session on the replica lives")
	}
	w.do(w.Issue, r, saga.Staged)
	for _, node := range r.Reached(c.Members()) {
		if r.Staged().GetCommittedAt()[node.Name] == nil {
			t.Errorf("%s counts as reached, and was not given the password", node.Name)
		}
	}
	c.Nodes[0].Port = port
	w.Close()
	for waits := new(saga.NotYet); !strings.Contains(waits.Why, "handshake"); { // by then nothing is pending
		if _, err := w.Release(t.Context(), r); !errors.As(err, &waits) {
			t.Fatalf("release: %v; want it to wait for the replica, and then for handshakes", err)
		}
	}
	for _, s := range []*pgserver.Server{w.primary, w.standby} {
		if err := w.logsInAt(s, r.ID); err != nil {
			t.Errorf("the application does not return: %v", err)
		}
	}
}

// TestThiefSurvivesTheReleaseWhereTheDatabaseIsAheadOfTheLog: as after a restored store.
// Whether a session is older than the new password says the fence, if it is this rotation's.
func TestThiefSurvivesTheReleaseWhereTheDatabaseIsAheadOfTheLog(t *testing.T) {
	settings := maps.Clone(loud)
	settings["authentication_timeout"] = "5s"
	w := newFollowedWith(t, "half_ahead", inventory.InPlace, settings, nil)
	w.rotate(saga.InPlace)
	w.at(w.primary, "UPDATE pawl.fence SET generation = 99, rotation = 'r99'")
	stolen := w.envelope(w.basis)
	to := target(stolen.User, stolen.Password)
	to.Host, to.Port = w.primary.Host, w.primary.Port
	complete := w.begins(to)
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	thief := complete()
	if thief.err != nil {
		t.Fatalf("the old handshake was refused, so this test proves nothing: %v", thief.err)
	}
	w.untilReleased(r, func(string) {})
	if thief.conn.Ping(t.Context()) == nil {
		t.Error("released, and the thief is still inside")
	}
	if err := w.logsInAt(w.primary, r.ID); err != nil {
		t.Errorf("the application does not return: %v", err)
	}
}

// TestGuardEndsForAFollowerThatIsLate: it answers every second time with the rotation
// before.
func TestGuardEndsForAFollowerThatIsLate(t *testing.T) {
	w := newWorld(t, "stale_log", inventory.InPlace)
	before := w.rotate(saga.InPlace)
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for i, e := range []saga.Event{saga.Requested, saga.Contained} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 10)}, Body: r.Events[e]})
	}
	stale := logOf(before)
	var asked atomic.Int32
	w.newest = func(context.Context, string) (bus.Log, error) {
		if asked.Add(1)%2 == 1 {
			return stale, nil
		}
		return log, nil
	}
	state, err := log.Fold()
	if err != nil {
		t.Fatal(err)
	}
	r.State = state
	w.do(w.Issue, r, saga.Staged)
	own, verifier := newPassword(t)
	w.sql("ALTER ROLE stale_log PASSWORD '" + verifier.Reveal() + "'")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		conn, err := postgres.Login(ctx, target("stale_log", own))
		if err != nil {
			break
		}
		w.hangUp(conn)
	}
	if ctx.Err() != nil {
		t.Error("the password of somebody who slipped in still lets in")
	}
	next := bus.Log{Credential: w.credential.Name, Rotation: "next", Records: []bus.Record{{Entry: saga.Entry{Event: saga.Requested, Seq: 12}}}}
	if g := (&watch{rotation: r.ID, began: 10}); !g.over(next) || g.over(stale) || g.over(log) {
		t.Error("the guard does not end with the rotation that follows, or with another one")
	}
	w.endGuards()
}

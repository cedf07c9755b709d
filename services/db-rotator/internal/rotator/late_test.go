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
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	pawlv1 "pawl.dev/proto/pawl/v1"
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

// TestOneLoginThatMayNotBeReadBlindsTheGuardsOfAServer: the account was given the one,
// and not the other.
func TestOneLoginThatMayNotBeReadBlindsTheGuardsOfAServer(t *testing.T) {
	w := leastWorld(t, "readable", inventory.InPlace, false)
	w.sql("CREATE ROLE unreadable LOGIN")
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	var notes []string
	w.note = func(_ context.Context, n *pawlv1.Note) { notes = append(notes, n.GetCredential()+": "+n.GetText()) }
	g := &watch{o: w.Rotator, c: w.credential, rotation: r.ID, seen: newWitness(nil, w.credential.Name, r.ID), altered: make(chan inventory.Node, 1)}
	g.contained, g.staged, g.begin, g.envelope = r.Events[saga.Contained].GetContained(), r.Staged(), r.Requested(), w.envelope(r.ID)
	unread := *w.credential
	unread.Name, unread.Role = "unread", "unreadable"
	other := &watch{o: w.Rotator, c: &unread, rotation: "other", seen: newWitness(nil, unread.Name, "other"), altered: make(chan inventory.Node, 1)}
	other.contained = &pawlv1.Contained{Returns: "unreadable", Logins: []string{"unreadable"}}
	_, verifier := newPassword(t)
	w.sql("ALTER ROLE readable PASSWORD '" + verifier.Reveal() + "'")
	admin, err := w.admin(w.credential, w.credential.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	post := &sentry{admin: admin, node: w.credential.Nodes[0]}
	for range 2 {
		post.sweep(t.Context(), []*watch{g, other})
	}
	select {
	case <-g.altered:
	default:
		t.Error("nobody sees that the password was changed")
	}
	if len(notes) != 1 || !strings.HasPrefix(notes[0], "unread: ") || !strings.Contains(notes[0], `"unreadable"`) {
		t.Errorf("noted: %q; want the login that cannot be read named, once", notes)
	}
}

// TestThiefStaysOnALateReplicaOfAnAttemptThatWasRepeated: the first has taken the
// passwords and died, so the second finds none of which the replica still has one.
func TestThiefStaysOnALateReplicaOfAnAttemptThatWasRepeated(t *testing.T) {
	w := newFollowed(t, "late_again", inventory.InPlace, "0")
	stolen := w.envelope(w.basis)
	w.pauseReplay()
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	if contained := w.do(w.Contain, r, saga.Contained).GetContained(); len(contained.GetCarried()) > 0 || contained.GetPending()["replica"] == "" {
		t.Fatalf("contained: %v; this test proves nothing", contained)
	}
	w.guarded(r)
	w.do(w.Issue, r, saga.Staged)
	to := target(stolen.User, stolen.Password)
	to.Host, to.Port = w.standby.Host, w.standby.Port
	if thief, err := postgres.Login(t.Context(), to); err == nil {
		if _, err := thief.Exec(t.Context(), "SELECT pg_sleep(9)"); err == nil {
			t.Error("the thief stays on the replica")
		}
		_ = thief.Close(context.Background())
	}
	w.at(w.standby, "SELECT pg_wal_replay_resume()")
	w.awaits(w.standby, "SELECT pg_last_wal_replay_lsn() >= '"+w.positionOf(w.primary)+"'")
	if err := w.logsInAt(w.standby, r.ID); err != nil {
		t.Errorf("the application does not return on the replica: %v", err)
	}
	w.endGuards()
}

// TestSiblingCountsAsCleanOnceItsUnexpectedPasswordWasTaken: by an attempt that died
// before it could say so. Who knows that password may be half through a handshake.
func TestSiblingCountsAsCleanOnceItsUnexpectedPasswordWasTaken(t *testing.T) {
	w := newWorld(t, "unclean", inventory.Alternating)
	w.rotate(saga.Alternating)
	r := w.emergency(nil)
	r.Requested().BareSince = timestamppb.New(time.Now().Add(-time.Hour)) // by the log; it has a password all the same
	r.State = w.startedNow(r)
	for attempt := range 2 {
		if contained := w.do(w.Contain, r, saga.Contained).GetContained(); contained.GetClean() {
			t.Errorf("attempt %d: a sibling that had a password returns as clean: %v", attempt, contained)
		}
	}
}

// TestThiefStaysOnALateReplicaThoughTheLoginIsLocked: no guard follows a lock.
func TestThiefStaysOnALateReplicaThoughTheLoginIsLocked(t *testing.T) {
	f := newFollowed(t, "locked_late", inventory.InPlace, "0")
	w := reconcilingAt(t, f.world)
	stolen := w.envelope(w.basis)
	f.pauseReplay()
	lock := w.world.next(saga.Lock)
	if contained := w.do(w.Contain, lock, saga.Contained).GetContained(); contained.GetPending()["replica"] == "" {
		t.Fatalf("contained: %v; want the replica to be late", contained)
	}
	done := w.rotation(lock.ID, saga.Lock, lock.Requested().GetGeneration(), saga.Contained, saga.Completed)
	maps.Copy(done.Events, lock.Events)
	w.newest = done
	for _, all := range []bool{true, false} {
		thief := f.thiefAt(f.standby, stolen.User, stolen.Password)
		w.pass(t.Context(), all)
		if thief.Ping(t.Context()) == nil {
			t.Errorf("a thief with a locked login stays on the replica after a pass (all: %v)", all)
		}
	}
	// The primary away: the replica waits for it no more.
	nodes, port := w.credential.Nodes, w.credential.Nodes[0].Port
	nodes[0].Port = 1
	w.Rotator.Close()
	thief := f.thiefAt(f.standby, stolen.User, stolen.Password)
	w.pass(t.Context(), true)
	if thief.Ping(t.Context()) == nil {
		t.Error("a thief with a locked login stays on the replica of a primary that is away")
	}
	nodes[0].Port = port
	w.Rotator.Close()
	f.at(f.standby, "SELECT pg_wal_replay_resume()")
	f.awaits(f.standby, "SELECT pg_last_wal_replay_lsn() >= '"+f.positionOf(f.primary)+"'")

	// Unlocked, and the log is a late follower's: the application stays.
	unlock := w.emergency(nil)
	w.do(w.Contain, unlock, saga.Contained)
	w.do(w.Issue, unlock, saga.Staged)
	envelope := w.envelope(unlock.ID)
	application := f.thiefAt(f.standby, envelope.User, envelope.Password)
	w.pass(t.Context(), true)
	if err := application.Ping(t.Context()); err != nil {
		t.Errorf("the application was ended after the unlock: %v", err)
	}
}

package rotator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
)

// halfOpen is a login whose client stops before its last message: the server has
// read the verifier by then, and will accept the old password whenever it comes.
type halfOpen struct {
	net.Conn
	writes  atomic.Int32
	paused  chan struct{}
	proceed chan struct{}
}

// lastWrite is the client's proof, after the startup packet and the first SASL
// message.
const lastWrite = 3

func (h *halfOpen) Write(p []byte) (int, error) {
	if h.writes.Add(1) == lastWrite {
		close(h.paused)
		<-h.proceed
	}
	return h.Conn.Write(p)
}

type outcome struct {
	conn *pgx.Conn
	err  error
}

// begins starts a login and returns once it is half open; complete ends it.
func (w *world) begins(to postgres.Target) (complete func() outcome) {
	w.t.Helper()
	h := &halfOpen{paused: make(chan struct{}), proceed: make(chan struct{})}
	config, err := pgx.ParseConfig("sslmode=disable")
	if err != nil {
		w.t.Fatal(err)
	}
	config.Host, config.Port, config.User, config.Password, config.Database = to.Host, to.Port, to.User, to.Password.Reveal(), to.Database
	config.RuntimeParams["application_name"] = to.ApplicationName
	config.Fallbacks = nil
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if h.Conn != nil { // pgx asks the server to cancel what it gave up
			return conn, err
		}
		h.Conn = conn
		return h, err
	}
	ended := make(chan outcome, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	w.t.Cleanup(cancel)
	go func() {
		conn, err := pgx.ConnectConfig(ctx, config)
		if conn != nil {
			w.t.Cleanup(func() { conn.Close(context.Background()) })
		}
		ended <- outcome{conn, err}
	}()
	select {
	case <-h.paused:
	case o := <-ended:
		w.t.Fatalf("the login ended before its last message: %v", o.err)
	}
	return func() outcome { close(h.proceed); return <-ended }
}

// guarded has the rotator's guard read a log that has got to contained, and no
// further: what came after, it must learn from the servers.
func (w *world) guarded(r *service.Rotation) {
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for _, e := range []saga.Event{saga.Requested, saga.Contained} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e}, Body: r.Events[e]})
	}
	w.newest = func(context.Context, string) (bus.Log, error) { return log, nil }
}

func TestHandshakeThatBeganBeforeComesInAndIsEnded(t *testing.T) {
	for name, guarded := range map[string]bool{"unguarded it lives": false, "guarded it dies": true} {
		t.Run(name, func(t *testing.T) {
			role := map[bool]string{true: "half_guarded", false: "half_alone"}[guarded]
			w := newWorld(t, role, inventory.InPlace)
			stolen := w.envelope(w.basis)
			complete := w.begins(target(stolen.User, stolen.Password))
			d := w.watched()
			r := w.emergency(nil)
			w.do(w.Contain, r, saga.Contained)
			w.refusedNow(stolen)
			if guarded {
				w.guarded(r)
			}
			w.do(w.Issue, r, saga.Staged)
			thief := complete()
			if thief.err != nil {
				if guarded {
					return // ended while it was being let in
				}
				t.Fatalf("the old handshake was refused, so this test proves nothing: %v", thief.err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := thief.conn.Exec(ctx, "SELECT pg_sleep(1)")
			if guarded == (err == nil) {
				t.Errorf("guarded %v: the thief's session ended with %v", guarded, err)
			}
			if guarded {
				d.awaits(t, evidence.Sessions, 2) // one is of the containment
			}
			w.logsIn(w.envelope(r.ID), "")
		})
	}
}

// Whoever slips in for a moment may change the password. The application is to
// be seen before the emergency is released, so that is too late to put it right.
func TestPasswordThatSomebodySlippedInToSetIsTakenAwayBeforeTheRelease(t *testing.T) {
	w := newFollowed(t, "half_changed", inventory.InPlace, "0")
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.guarded(r)
	w.do(w.Issue, r, saga.Staged)
	own, verifier := newPassword(t)
	w.at(w.primary, `ALTER ROLE half_changed PASSWORD '`+verifier.Reveal()+`'`)
	deadline := time.After(30 * time.Second)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := errors.Join(w.logsInAt(w.primary, r.ID), w.logsInAt(w.standby, r.ID))
		if err == nil {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("the application does not return: %v", err)
		case <-again.C:
		}
	}
	for _, s := range []*pgserver.Server{w.primary, w.standby} {
		to := target("half_changed", own)
		to.Host, to.Port = s.Host, s.Port
		if conn, err := postgres.Login(t.Context(), to); err == nil {
			t.Errorf("the password of somebody who slipped in still lets in on port %d", s.Port)
			_ = conn.Close(t.Context())
		}
	}
	w.endGuards()
}

// The process that watches may have died: who came in is gone all the same once
// the emergency is released, on the replica, too.
func TestWhoCameInUnwatchedIsEndedByTheRelease(t *testing.T) {
	settings := maps.Clone(loud)
	settings["authentication_timeout"] = "5s"
	w := newFollowedWith(t, "half_unwatched", inventory.InPlace, settings, nil)
	stolen := w.envelope(w.basis)
	var complete []func() outcome
	for _, s := range []*pgserver.Server{w.primary, w.standby} {
		to := target(stolen.User, stolen.Password)
		to.Host, to.Port = s.Host, s.Port
		complete = append(complete, w.begins(to))
	}
	r := w.emergency(nil)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	var thieves []*pgx.Conn
	for _, one := range complete {
		thief := one()
		if thief.err != nil {
			t.Fatalf("an old handshake was refused, so this test proves nothing: %v", thief.err)
		}
		thieves = append(thieves, thief.conn)
	}
	for {
		_, err := w.Release(t.Context(), r)
		wait := new(saga.NotYet)
		if err == nil {
			break
		} else if !errors.As(err, &wait) {
			t.Fatal(err)
		}
		<-time.After(wait.Again)
	}
	for i, thief := range thieves {
		if thief.Ping(t.Context()) == nil {
			t.Errorf("released, and thief %d is still inside", i)
		}
	}
	for _, s := range []*pgserver.Server{w.primary, w.standby} {
		if err := w.logsInAt(s, r.ID); err != nil {
			t.Errorf("the application does not return: %v", err)
		}
	}
}

// A handshake with a login that never gets LOGIN back cannot succeed.
func TestHandshakeWithALoginThatDoesNotReturnIsRefused(t *testing.T) {
	w := newWorld(t, "half_clean", inventory.Alternating)
	stolen := w.envelope(w.basis)
	complete := w.begins(target(stolen.User, stolen.Password))
	r := w.emergency(nil)
	r.Requested().BareSince = timestamppb.New(time.Now().Add(-time.Hour))
	r.State = w.startedNow(r)
	if contained := w.do(w.Contain, r, saga.Contained).GetContained(); !contained.GetClean() {
		t.Fatalf("contained: %v; want a clean login to return", contained)
	}
	w.do(w.Issue, r, saga.Staged)
	if thief := complete(); thief.err == nil {
		t.Error("the old handshake was let in")
	}
	w.logsIn(w.envelope(r.ID), "")
}

// TestLeastPrivilegedAdminContains without an observer, and never enters the
// application's database: what is not seen there is told, and holds nothing up.
func TestLeastPrivilegedAdminContains(t *testing.T) { inBothWays(t, contains) }

func contains(t *testing.T, earlier bool) {
	role := "least_stolen"
	if earlier {
		role = "earlier_stolen"
	}
	w := leastWorld(t, role, inventory.InPlace, earlier)
	d := w.watched()
	w.sql("CREATE TABLE "+role+"_table (); GRANT ALL ON "+role+"_table TO "+role, "CREATE ROLE friend_of_"+role+" LOGIN IN ROLE "+role)
	stolen := w.envelope(w.basis)
	password, verifier := newPassword(t)
	w.sql("ALTER ROLE friend_of_" + role + " PASSWORD '" + verifier.Reveal() + "'")
	friend := w.connect("friend_of_"+role, password)
	if _, err := friend.Exec(t.Context(), "SET ROLE "+role); err != nil {
		t.Fatal(err)
	}
	thief := w.connect(stolen.User, stolen.Password)
	if _, err := thief.Exec(t.Context(), "BEGIN; LOCK TABLE "+role+"_table; PREPARE TRANSACTION 'theirs'", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained).GetContained()
	if contained.GetPrepared() != 1 || contained.GetSessions() != 2 {
		t.Errorf("contained: %v; want one prepared transaction, and the sessions of the thief and of who acted as him", contained)
	}
	if friend.Ping(t.Context()) == nil {
		t.Error("a session that acted as the stolen role lives")
	}
	var left int
	if err := super.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_prepared_xacts) + (SELECT count(*) FROM pg_auth_members WHERE roleid = '"+role+"'::regrole AND member = 'admin_of_"+role+"'::regrole AND NOT admin_option)"+
		" + (SELECT count(*) FROM pg_roles WHERE rolname LIKE 'pawl\\_prepared\\_%')").Scan(&left); err != nil || left > 0 {
		t.Errorf("%d prepared transactions, or memberships or logins of Pawl's own are left, %v", left, err)
	}
	d.awaits(t, evidence.Catalogue, 1)
	if kept := fmt.Sprint(d.of(evidence.Catalogue)); !strings.Contains(kept, "add clusters.ruvector.observer") {
		t.Errorf("evidence does not say what was not seen: %s", kept)
	}
	if users, err := server.Entered(w.credential.Database); err != nil || slices.Contains(users, w.credential.Cluster.Admin.User) || !slices.Contains(users, role) {
		t.Errorf("%q logged in to the application's database (%v)", users, err)
	}
	w.do(w.Issue, r, saga.Staged)
	w.logsIn(w.envelope(r.ID), "")
}

// What a failover, a backup or a person brings back of what was stolen is
// refused again, although the node's own fence says that nothing was lost.
func TestStolenPasswordThatComesBackIsRefusedAgain(t *testing.T) {
	w := newWorld(t, "comes_again", inventory.Alternating)
	stolen := w.envelope(w.basis)
	r := w.emergency(nil)
	r.Requested().BareSince = timestamppb.New(time.Now().Add(-time.Hour))
	r.State = w.startedNow(r)
	w.do(w.Contain, r, saga.Contained)
	w.do(w.Issue, r, saga.Staged)
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for i, e := range []saga.Event{saga.Requested, saga.Contained, saga.Staged, saga.Published, saga.Restarted, saga.Verified, saga.Released, saga.Confirmed, saga.Completed} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 1)}, Body: r.Events[e]})
	}
	expected, err := w.expect(t.Context(), w.credential, log)
	if err != nil || expected == nil {
		t.Fatalf("nothing is expected: %v", err)
	}
	admin, err := w.admin(w.credential, w.credential.Primary())
	if err != nil {
		t.Fatal(err)
	}
	judge := func() verdict {
		held, err := admin.Holdings(t.Context(), expected.logins(), []string{w.credential.Role})
		if err != nil {
			t.Fatal(err)
		}
		return expected.judge(w.Rotator, held)
	}
	if v := judge(); v.wrong != "" {
		t.Fatalf("before: %v", v)
	}
	_, foreign := newPassword(t)
	for with, verifier := range map[string]secret.String{"with an earlier password": stolen.Verifier, "with a password that Pawl did not set": foreign} {
		w.sql("ALTER ROLE comes_again LOGIN PASSWORD '" + verifier.Reveal() + "'")
		if v := judge(); !v.lost || !v.back || !strings.Contains(v.wrong, with) {
			t.Fatalf("a stolen login that came back %s: %v; want it refused", with, v)
		}
	}
	p, err := w.lead(t.Context(), w.credential, w.credential.Primary())
	if err != nil {
		t.Fatal(err)
	}
	err = behindFence(t.Context(), p, expected.fence, r.StillDue, func(ctx context.Context, tx *postgres.Tx) error {
		return expected.restore(ctx, w.Rotator, tx, "coordinator")
	})
	if err != nil {
		t.Fatal(err)
	}
	w.refusedNow(stolen)
	w.logsIn(w.envelope(r.ID), "")
}

// A replica that has yet to replay still lets the thief in. It is named, delays
// nothing, and who comes in there is ended until it has replayed.
func TestThiefOnAReplicaThatIsLateIsThrownOutUntilItHasReplayed(t *testing.T) {
	w := newFollowed(t, "late_replica", inventory.InPlace, "0")
	stolen := w.envelope(w.basis)
	lsn := w.positionOf(w.primary)
	w.awaits(w.standby, "SELECT pg_last_wal_replay_lsn() >= '"+lsn+"'")
	w.at(w.standby, "SELECT pg_wal_replay_pause()")
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained).GetContained()
	if contained.GetPending()["replica"] == "" || contained.GetAt()["coordinator"] == nil {
		t.Fatalf("contained: %v", contained)
	}
	w.guarded(r)
	w.do(w.Issue, r, saga.Staged)
	back := target(stolen.User, w.envelope(r.ID).Password)
	back.Host, back.Port = w.primary.Host, w.primary.Port
	application, err := postgres.Login(t.Context(), back)
	if err != nil {
		t.Fatalf("the application does not return on the primary: %v", err)
	}
	defer application.Close(context.Background())
	waiting := new(saga.NotYet)
	if _, err := w.Release(t.Context(), r); !errors.As(err, &waiting) || !slices.Equal(waiting.Laggards, []string{"replica"}) {
		t.Errorf("release: %v; want the replica named", err)
	}
	if err := application.Ping(t.Context()); err != nil {
		t.Errorf("the application on the primary was thrown out for a replica that is late: %v", err)
	}
	to := target(stolen.User, stolen.Password)
	to.Host, to.Port = w.standby.Host, w.standby.Port
	thief, err := postgres.Login(t.Context(), to)
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := thief.Exec(ctx, "SELECT pg_sleep(9)"); err == nil {
			t.Error("the thief stays on the replica")
		}
		thief.Close(context.Background())
	}
	w.at(w.standby, "SELECT pg_wal_replay_resume()")
	w.awaits(w.standby, "SELECT pg_last_wal_replay_lsn() >= '"+w.positionOf(w.primary)+"'")
	if conn, err := postgres.Login(t.Context(), to); err == nil {
		conn.Close(context.Background())
		t.Error("the stolen password works on the replica after it has replayed")
	}
	if err := w.logsInAt(w.standby, r.ID); err != nil {
		t.Errorf("the application does not return on the replica: %v", err)
	}
}

func (w *followed) session(s *pgserver.Server) *pgx.Conn {
	w.t.Helper()
	to := target(s.Superuser, s.Password)
	to.Host, to.Port = s.Host, s.Port
	conn, err := postgres.Login(context.Background(), to) // also while the test ends
	if err == nil {                                       // what a superuser types here is no secret of Pawl's keeping
		_, err = conn.Exec(context.Background(), "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_transaction_sample_rate = 0; SET pg_stat_statements.track_utility = off", pgx.QueryExecModeSimpleProtocol)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return conn
}

func (w *followed) at(s *pgserver.Server, sql string) {
	w.t.Helper()
	conn := w.session(s)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(w.t.Context(), sql); err != nil {
		w.t.Fatal(err)
	}
}

func (w *followed) positionOf(s *pgserver.Server) (lsn string) {
	w.t.Helper()
	conn := w.session(s)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(w.t.Context(), "SELECT pg_current_wal_lsn()::text").Scan(&lsn); err != nil {
		w.t.Fatal(err)
	}
	return lsn
}

// awaits asks until it is true.
func (w *followed) awaits(s *pgserver.Server, question string) {
	w.t.Helper()
	conn := w.session(s)
	defer conn.Close(context.Background())
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for yes := false; !yes; <-tick.C {
		if err := conn.QueryRow(ctx, question).Scan(&yes); err != nil {
			w.t.Fatalf("%s: %v", question, err)
		}
	}
}

package rotator

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
)

// TestGuardEndsNoSessionOfTheRotationThatFollows: a rotation that begins as soon as the
// emergency has ended is quicker than the guard's next look at the log.
func TestGuardEndsNoSessionOfTheRotationThatFollows(t *testing.T) {
	w := newWorld(t, "left-behind-by-the-guard", inventory.Alternating)
	w.rotate(saga.Alternating)
	r := w.emergency(nil)
	r.State = w.startedNow(r)
	w.do(w.Contain, r, saga.Contained)
	staged := w.do(w.Issue, r, saga.Staged).GetStaged()
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for _, e := range []saga.Event{saga.Requested, saga.Contained, saga.Staged} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e}, Body: r.Events[e]})
	}
	g := &watch{o: w.Rotator, c: w.credential, rotation: r.ID, seen: newWitness(w.keeper, w.credential.Name, r.ID)}
	g.read(log)
	admin, err := w.admin(w.credential, w.credential.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	post := &sentry{admin: admin, node: w.credential.Nodes[0]}

	w.basis, w.user = r.ID, staged.GetUser()
	next := w.envelope(w.rotate(saga.Alternating).ID)
	application := w.connect(next.User, next.Password)
	post.sweep(t.Context(), []*watch{g})
	if err := application.Ping(t.Context()); err != nil {
		t.Errorf("the application, on %s: %v", next.User, err)
	}
}

// TestEmergenciesOnOneServerAreNotSweptOneByOne: each sweep is some queries, forty times a
// second, for as long as a handshake may last.
func TestEmergenciesOnOneServerAreNotSweptOneByOne(t *testing.T) {
	w := newWorld(t, "swept-together", inventory.Alternating)
	r := w.emergency(nil)
	r.State = w.startedNow(r)
	w.do(w.Contain, r, saga.Contained)
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for _, e := range []saga.Event{saga.Requested, saga.Contained} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e}, Body: r.Events[e]})
	}
	posts := func() (all []*sentry) {
		w.sentries.mu.Lock()
		defer w.sentries.mu.Unlock()
		return slices.Collect(maps.Values(w.sentries.posts))
	}
	var watches []*watch
	for range 3 {
		g := &watch{o: w.Rotator, c: w.credential, rotation: r.ID, seen: newWitness(w.keeper, w.credential.Name, r.ID)}
		g.read(log)
		w.sentries.join(g)
		watches = append(watches, g)
	}
	if all := posts(); len(all) != 1 || len(all[0].watches) != 3 {
		t.Errorf("three emergencies on one server have sentries %v", all)
	}
	for _, g := range watches {
		w.sentries.leave(g)
	}
	for began := time.Now(); len(posts()) > 0; time.Sleep(sweepEvery) { // nobody signals it
		if time.Since(began) > 30*time.Second {
			t.Fatal("a server is swept for nobody")
		}
	}
}

// TestNodeThatWasTooLateIsReachedBeforeTheApplicationIsRestarted: the application logs in
// to that node, too, so its restart would be tried for ever, and what comes after it never.
// The guard is of a process that was started since, as the reconciler starts it.
func TestNodeThatWasTooLateIsReachedBeforeTheApplicationIsRestarted(t *testing.T) {
	w := newCluster(t, "too_late", inventory.InPlace)
	stolen, late := w.envelope(w.basis), w.servers[1]
	lock := w.holds(late, "ALTER ROLE too_late CONNECTION LIMIT -1")
	r := w.emergency(nil)
	r.State = w.startedNow(r)
	if contained := w.do(w.Contain, r, saga.Contained).GetContained(); len(contained.GetPending()) != 1 {
		t.Fatalf("contained: %v; want the locked node to be late", contained)
	}
	w.do(w.Issue, r, saga.Staged)
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for i, e := range []saga.Event{saga.Requested, saga.Contained, saga.Staged} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 1), At: time.Now()}, Body: r.Events[e]})
	}
	w.newest = func(context.Context, string) (bus.Log, error) { return log, nil }
	w.guard(w.credential, r.ID, log.Records[0].Seq)
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	to := target(stolen.User, w.envelope(r.ID).Password)
	to.Host, to.Port = late.Host, late.Port
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := postgres.Login(ctx, to)
	for err != nil && ctx.Err() == nil {
		conn, err = postgres.Login(ctx, to)
	}
	if err != nil {
		t.Fatalf("the new password does not work on the node that was late: %v", err)
	}
	_ = conn.Close(t.Context())
}

// holds runs sql on the server in a transaction that stays open.
func (w *cluster) holds(s *pgserver.Server, sql string) pgx.Tx {
	w.t.Helper()
	conn, err := postgres.Login(w.t.Context(), postgres.Target{Host: s.Host, Port: s.Port, Database: "postgres", User: s.Superuser, Password: s.Password, SSLMode: "disable"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(w.t.Context())
	if err == nil {
		_, err = tx.Exec(w.t.Context(), sql)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return tx
}

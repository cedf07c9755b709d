package rotator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
)

// fenceOf is when the fence of the world's role was last passed.
func (w *world) fenceOf() postgres.Fence {
	w.t.Helper()
	admin, err := w.admin(w.credential, w.credential.Primary())
	if err != nil {
		w.t.Fatal(err)
	}
	stored, err := admin.Stored(w.t.Context(), w.credential.Role)
	if err != nil {
		w.t.Fatal(err)
	}
	return stored
}

// undoes has the release look at the settings, and returns what it warns of.
func (w *world) undoes(r *service.Rotation) (warnings string, err error) {
	w.t.Helper()
	s, err := w.lead(w.t.Context(), w.credential, w.credential.Primary())
	if err != nil {
		w.t.Fatal(err)
	}
	seen := &effect.Recorder{}
	err = w.settingsAgain(effect.With(w.t.Context(), seen), s, r, w.envelope(r.ID))
	return strings.Join(seen.Warnings(), "\n"), err
}

// sweeps has the sentry of the world's server look once for the emergency's guard.
func (w *world) sweeps(r *service.Rotation) {
	w.t.Helper()
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for _, e := range []saga.Event{saga.Requested, saga.Contained, saga.Staged} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e}, Body: r.Events[e]})
	}
	g := &watch{o: w.Rotator, c: w.credential, rotation: r.ID, seen: newWitness(w.keeper, w.credential.Name, r.ID), altered: make(chan inventory.Node, 1)}
	g.read(log)
	g.envelope = w.envelope(r.ID)
	admin, err := w.admin(w.credential, w.credential.Nodes[0])
	if err != nil {
		w.t.Fatal(err)
	}
	(&sentry{admin: admin, node: w.credential.Nodes[0]}).sweep(w.t.Context(), []*watch{g})
}

// TestReleaseThatCannotUndoASettingBeginsTheWatchAnew: two nodes that are a little apart
// would wait for each other then, and the application, which is back by now, be ended.
func TestReleaseThatCannotUndoASettingBeginsTheWatchAnew(t *testing.T) {
	for name, world := range map[string]func(t *testing.T) *world{
		"locked": func(t *testing.T) *world {
			w := settled(t, "stays_locked", inventory.InPlace)
			w.sql("ALTER ROLE stays_locked SET work_mem TO '9MB'", "BEGIN; ALTER ROLE stays_locked SET search_path TO worse; PREPARE TRANSACTION 'stays locked'")
			t.Cleanup(func() { w.sql("ROLLBACK PREPARED 'stays locked'") })
			return w
		},
		"not permitted": func(t *testing.T) *world {
			w := leastWorld(t, "stays_unpermitted", inventory.InPlace, true)
			w.sql("ALTER ROLE stays_unpermitted SET deadlock_timeout TO '3s'")
			w.adopt()
			w.sql("ALTER ROLE stays_unpermitted RESET deadlock_timeout")
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := world(t)
			r, _ := w.issues()
			envelope, passed := w.envelope(r.ID), w.fenceOf()
			application := w.connect(envelope.User, envelope.Password)
			for range 2 {
				warnings, err := w.undoes(r)
				if err != nil {
					t.Fatal(err)
				}
				told(t, warnings, "it could not be undone (")
				if now := w.fenceOf(); !now.Passed.Equal(passed.Passed) {
					t.Errorf("the fence was passed at %v and %v later: whoever waits for old handshakes begins again", passed.Passed, now.Passed.Sub(passed.Passed))
				}
			}
			w.sweeps(r)
			if err := application.Ping(t.Context()); err != nil {
				t.Errorf("the application was ended: %v", err)
			}
		})
	}
}

// slowly leads to the server by a line on which everything takes that long each way.
func (w *world) slowly(delay time.Duration) {
	w.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { listener.Close() })
	carry := func(to, from net.Conn) {
		defer to.Close()
		buffer := make([]byte, 1<<16)
		for {
			n, err := from.Read(buffer)
			<-time.After(delay)
			if _, failed := to.Write(buffer[:n]); err != nil || failed != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server.Address())
			if err != nil {
				client.Close()
				continue
			}
			go carry(upstream, client)
			go carry(client, upstream)
		}
	}()
	w.Close()
	w.credential.Nodes[0].Port = uint16(listener.Addr().(*net.TCPAddr).Port)
}

// leavesMany gives the login so many settings that only an application knows of.
func (w *world) leavesMany(login string, many int) {
	w.t.Helper()
	w.sql(fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE format('ALTER ROLE %%I SET %%I TO %%L', '%s', 'left.n' || i, i); END LOOP; END $$`, many, login))
}

// TestThousandsOfSettingsKeepTheApplicationAway: one by one, on a slow line, they take
// longer than a node has.
func TestThousandsOfSettingsKeepTheApplicationAway(t *testing.T) {
	w := settled(t, "flooded", inventory.InPlace, usual...)
	w.leavesMany("flooded", 2000)
	w.leaves("flooded", w.envelope(w.basis))
	w.slowly(5 * time.Millisecond)
	r, warnings := w.issues()
	w.logsIn(w.envelope(r.ID), "")
	told(t, warnings, `2004 settings of role "flooded" were not as recorded: all of them were reset, and the recorded ones given again. They were application_name, default_transaction_read_only, search_path, statement_timeout, left.n1, `)
	if left := w.untilUndone(r); left > 10 {
		t.Errorf("undone at the %dth try", left)
	}
	w.wants("flooded", usualShown)
}

// untilUndone tries as the release does, and returns how often.
func (w *world) untilUndone(r *service.Rotation) (tries int) {
	w.t.Helper()
	for tries = 1; ; tries++ {
		_, err := w.undoes(r)
		if err == nil {
			return tries
		}
		if !errors.As(err, new(*saga.NotYet)) {
			w.t.Fatal(err)
		}
	}
}

// TestSettingsThatAreLockedOneByOneKeepTheApplicationAway: each is waited for, in as many
// databases as there are. What the application meets is undone first.
func TestSettingsThatAreLockedOneByOneKeepTheApplicationAway(t *testing.T) {
	const databases = 12
	w := settled(t, "held_up", inventory.InPlace, usual...)
	hold := "BEGIN"
	for i := range databases {
		name := fmt.Sprint("held_up_", i)
		w.sql("CREATE DATABASE "+name, "ALTER ROLE held_up IN DATABASE "+name+" SET work_mem TO '9MB'")
		hold += "; ALTER ROLE held_up IN DATABASE " + name + " SET work_mem TO '8MB'"
	}
	w.leaves("held_up", w.envelope(w.basis))
	w.sql(hold + "; PREPARE TRANSACTION 'holds up'")
	release := func() { _, _ = super.Exec(context.Background(), "ROLLBACK PREPARED 'holds up'") }
	t.Cleanup(release) // if the test failed before
	began := time.Now()
	r, warnings := w.issues()
	w.logsIn(w.envelope(r.ID), "")
	told(t, warnings, `setting search_path of role "held_up" is "evil, public", and Pawl recorded "\"a, b\", public": it was undone`, "it could not be undone (", "could not be undone in 2s: that is tried again before the release")
	t.Logf("issued in %v", time.Since(began))
	release()
	w.untilUndone(r)
	w.wants("held_up", usualShown)
}

// TestReleaseWaitsForeverForSettingsThatPawlMayNotUndo: those that it may are undone, and
// of the others it is told each time.
func TestReleaseWaitsForeverForSettingsThatPawlMayNotUndo(t *testing.T) {
	w := leastWorld(t, "left_narrow", inventory.InPlace, false)
	w.sql("ALTER ROLE left_narrow SET search_path TO evil")
	w.leavesMany("left_narrow", 300)
	w.slowly(10 * time.Millisecond)
	r, warnings := w.issues()
	w.logsIn(w.envelope(r.ID), "")
	told(t, warnings, `search_path of role "left_narrow" is "evil", and Pawl recorded none: it was undone`, "that is tried again before the release")
	w.untilUndone(r)
	if warnings, err := w.undoes(r); err != nil {
		t.Error(err)
	} else {
		told(t, warnings, "could not be undone (", "280 more settings could not be undone")
	}
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// failover is an installation whose database has one address, as behind a
// virtual IP or a DNS name: which server answers there can change.
type failover struct {
	*world
	address *pgserver.Cutter
	notes   *nats.Subscription
	others  []*pgserver.Server
}

// credentials of the failover tests: each is rotated once before, and kept.
var failoverKinds = []kind{
	{name: "alternating", strategy: "alternating", before: []pawlv1.Action{adopt}, action: rotate, keep: "1h", end: saga.Completed},
	{name: "in-place", strategy: "in-place", before: []pawlv1.Action{adopt}, action: rotate, keep: "1h", end: saga.Completed},
}

func newFailover(t *testing.T) *failover {
	t.Helper()
	address, err := pgserver.NewCutter("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = address.Close() }) // the server behind it is gone already
	w := &failover{address: address}
	t.Cleanup(func() { // after the search for secrets
		for _, s := range w.others {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	w.world = newWorld(t, 1, func(apps *site.Apps, server *pgserver.Server) (all []site.Credential) {
		address.Retarget(at(server))
		for _, k := range failoverKinds {
			c := k.credential(k.name, apps)
			c.Port = address.Port
			all = append(all, c)
		}
		return all
	})
	if w.notes, err = w.client.NATS.SubscribeSync("pawl.note.*"); err != nil {
		t.Fatal(err)
	}
	return w
}

func at(s *pgserver.Server) string { return net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))) }

// standby follows the primary until it is cut off.
func (w *failover) standby() *pgserver.Server {
	w.t.Helper()
	s, err := w.site.Postgres.Standby(w.t.Context(), pgserver.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.others = append(w.others, s)
	return s
}

// to kills the primary and lets the standby take its place at the address.
func (w *failover) to(standby *pgserver.Server) {
	w.t.Helper()
	if err := w.site.Postgres.Kill(); err != nil {
		w.t.Fatal(err)
	}
	if err := standby.Promote(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.address.Retarget(at(standby))
	w.site.Postgres, w.site.Nodes[0].Server = standby, standby
	// The checks look past the address.
	w.site.Inventory.Clusters["main"].Nodes["primary"] = w.site.Nodes[0].Direct()
	w.admin.Close()
	w.newAdmin()
}

// repaired waits for the reconciler's note about each of the credentials.
func (w *failover) repaired(credentials ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 60*time.Second)
	defer cancel()
	missing := map[string]bool{}
	for _, c := range credentials {
		missing[c] = true
	}
	for len(missing) > 0 {
		m, err := w.notes.NextMsgWithContext(ctx)
		if err != nil {
			w.t.Fatalf("not repaired: %v: %v", missing, err)
		}
		note := &pawlv1.Note{}
		if err := bus.Decode(m.Header, m.Data, note); err != nil {
			w.t.Fatal(err)
		}
		if note.GetKind() == "drift" {
			w.t.Errorf("a lost write was taken for drift: %s", note.GetText())
		}
		if note.GetKind() == "repaired" {
			delete(missing, note.GetCredential())
		}
	}
}

// adopted starts each application and adopts its credential.
func (w *failover) adopted() {
	w.t.Helper()
	for _, k := range failoverKinds {
		if err := errors.Join(w.apps.Start(w.t.Context(), k.name), k.prepare(w.t.Context(), w.world, k.name)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// rotated turns all, and returns their logs.
func (w *failover) rotated() map[string]bus.Log { return w.turned(rotate) }

func (w *failover) turned(action pawlv1.Action) map[string]bus.Log {
	w.t.Helper()
	logs := map[string]bus.Log{}
	for _, k := range failoverKinds {
		log, err := w.client.Do(w.t.Context(), k.name, action)
		if err != nil || log.Find(saga.Completed) == nil {
			w.t.Fatalf("%s: %v %v %s", k.name, err, site.Events(log), failureOf(log))
		}
		logs[k.name] = log
	}
	return logs
}

func (w *failover) checkAll(logs map[string]bus.Log) {
	w.t.Helper()
	for _, k := range failoverKinds {
		if err := w.check(w.t.Context(), k.name, logs[k.name], k.strategy); err != nil {
			w.t.Errorf("%s: %v", k.name, err)
		}
	}
}

// restartApps has the applications log in again, as after any failover.
func (w *failover) restartApps() {
	w.t.Helper()
	for _, k := range failoverKinds {
		if err := w.apps.Start(w.t.Context(), k.name); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestLateStandbyPromotedAfterCompletion: it lacks the whole rotation.
func TestLateStandbyPromotedAfterCompletion(t *testing.T) {
	w := newFailover(t)
	w.adopted()
	standby := w.standby()
	if err := standby.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	logs := w.rotated()
	w.to(standby)
	w.repaired("alternating", "in-place")
	w.checkAll(logs)
	w.restartApps()
	w.checkAll(w.rotated())
}

// TestLateStandbyPromotedAfterAnEmergency: there, the stolen credential still works.
func TestLateStandbyPromotedAfterAnEmergency(t *testing.T) {
	w := newFailover(t)
	w.adopted()
	stolen := map[string]inventory.Login{}
	for _, k := range failoverKinds {
		login, err := w.site.Published(k.name)
		if err != nil {
			t.Fatal(err)
		}
		stolen[k.name] = login
	}
	standby := w.standby()
	if err := standby.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	logs := w.turned(contain)
	for name, login := range stolen {
		conn, err := site.LoginAt(t.Context(), site.Node{Server: standby}.Direct(), login, "thief")
		if err != nil {
			t.Fatalf("the standby does not let the stolen credential of %s in: nothing is shown here: %v", name, err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	w.to(standby)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, k := range failoverKinds {
		for {
			conn, err := site.LoginAt(ctx, w.site.Nodes[0].Direct(), stolen[k.name], "thief")
			if err != nil && strings.Contains(err.Error(), "SQLSTATE 28") { // not "no server answers"
				break
			}
			if err == nil {
				_ = conn.Close(ctx) // the guard may have ended it
			}
			if !pause(ctx, 200*time.Millisecond) {
				t.Fatalf("the stolen credential of %s is not refused: %v", k.name, err)
			}
		}
	}
	for _, k := range failoverKinds { // and is made up for on what took the place
		for err := w.check(ctx, k.name, logs[k.name], k.strategy); err != nil; err = w.check(ctx, k.name, logs[k.name], k.strategy) {
			if !pause(ctx, 200*time.Millisecond) {
				t.Fatalf("%s: %v", k.name, err)
			}
		}
	}
	w.restartApps()
	w.checkAll(w.rotated())
	for name, login := range stolen {
		if conn, err := site.LoginAt(t.Context(), w.site.Nodes[0].Direct(), login, "thief"); err == nil {
			_ = conn.Close(t.Context())
			t.Errorf("the stolen credential of %s is back", name)
		}
	}
}

// TestNodeRestoredFromAnOlderBackup: the same by other means, two rotations back.
func TestNodeRestoredFromAnOlderBackup(t *testing.T) {
	w := newFailover(t)
	w.adopted()
	w.rotated()
	backup := filepath.Join(t.TempDir(), "backup")
	if err := w.site.Postgres.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	w.rotated()
	logs := w.rotated()
	if err := w.site.Postgres.Restore(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	w.repaired("alternating", "in-place")
	w.checkAll(logs)
	w.restartApps()
	w.checkAll(w.rotated())
}

// TestLateStandbyPromotedInMidRotation: a step is held while a standby that
// lacks the ALTER takes over. The rotation finishes or is undone, and either way
// all agree.
func TestLateStandbyPromotedInMidRotation(t *testing.T) {
	var drills []drill
	for _, k := range failoverKinds {
		for _, step := range []string{"publish", "restart", "verify", "retire"} {
			drills = append(drills, drill{k.name, k, []string{step + ".append.before"}, "STOP"})
		}
	}
	for _, i := range newRandom(t).Perm(len(drills))[:sample(len(drills), 1)] {
		t.Run(drills[i].String(), func(t *testing.T) { promotedAt(t, drills[i]) })
	}
}

// sample is how many of so many a test runs.
func sample(of, few int) int {
	if *full {
		return of
	}
	return few
}

func promotedAt(t *testing.T, d drill) {
	w := newFailover(t)
	w.adopted()
	standby := w.standby()
	if err := standby.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := w.fleet.Order(d.credential, d.points[0], d.what); err != nil {
		t.Fatal(err)
	}
	answer, err := w.client.Ask(t.Context(), d.credential, rotate)
	if err != nil || answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		t.Fatal(answer, err)
	}
	w.held(d.credential, d.points[0])
	w.to(standby)
	w.fleet.Continue()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	log, err := w.client.Await(ctx, d.credential, answer.GetRotation(), saga.Completed, saga.RolledBack)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v %s", site.Events(log), failureOf(log))
	if err := w.check(t.Context(), d.credential, log, d.kind.strategy); err != nil {
		t.Error(err)
	}
}

// held waits until a process has stopped at the point: it first says so, and a
// SIGCONT that came before its SIGSTOP would be lost.
func (w *world) held(credential, point string) {
	w.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if pid, _, err := w.fleet.Stopped(credential, point); err == nil {
			// pid (name) state …
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); err == nil && len(fields) > 0 && fields[0] == "T" {
				return
			}
		}
		select {
		case <-w.t.Context().Done():
			w.t.Fatalf("%s: nobody came by %s", credential, point)
		case <-tick.C:
		}
	}
}

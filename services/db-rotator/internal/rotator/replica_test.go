package rotator

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
)

// followed is a world on a server of its own, whose standby replays late.
type followed struct {
	*world
	primary, standby *pgserver.Server
}

func newFollowed(t *testing.T, role, strategy, delay string) *followed {
	t.Helper()
	return newFollowedWith(t, role, strategy, loud, map[string]string{"recovery_min_apply_delay": delay})
}

func newFollowedWith(t *testing.T, role, strategy string, primary, standby map[string]string) *followed {
	t.Helper()
	w := &followed{}
	w.primary = running(t)(pgserver.Start(t.Context(), pgserver.Options{NoSync: true, Settings: primary}))
	w.standby = running(t)(w.primary.Standby(t.Context(), pgserver.Options{NoSync: true, Settings: standby}))
	w.world = bareWorld(t, role, strategy)
	w.others = []*pgserver.Server{w.primary, w.standby}
	c := w.credential
	c.Nodes = []inventory.Node{{Name: "coordinator", Host: w.primary.Host, Port: w.primary.Port}}
	c.Cluster.Nodes = map[string]inventory.Node{"coordinator": c.Nodes[0],
		"replica": {Name: "replica", Host: w.standby.Host, Port: w.standby.Port, ReplicaOf: "coordinator"}}
	password, verifier := newPassword(t)
	(&cluster{world: w.world}).on(w.primary, `CREATE ROLE "`+role+`" LOGIN PASSWORD '`+verifier.Reveal()+"'")
	w.publish(role, password)
	w.adopt()
	return w
}

// running stops a server that was started when the test ends.
func running(t *testing.T) func(*pgserver.Server, error) *pgserver.Server {
	return func(s *pgserver.Server, err error) *pgserver.Server {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
}

// logsInAt tries the sealed login on one of the two.
func (w *followed) logsInAt(s *pgserver.Server, rotation string) error {
	w.t.Helper()
	e := w.envelope(rotation)
	to := target(e.User, e.Password)
	to.Host, to.Port = s.Host, s.Port
	conn, err := postgres.Login(w.t.Context(), to)
	if err == nil {
		err = conn.Close(w.t.Context())
	}
	return err
}

func TestLoginIsStagedOnlyOnceReplicasAcceptIt(t *testing.T) {
	for _, flow := range []string{saga.Alternating, saga.InPlace} {
		w := newFollowed(t, "late "+flow, flow, "300ms")
		r := w.next(flow)
		e := w.do(w.Stage, r, saga.Staged)
		for _, s := range []*pgserver.Server{w.primary, w.standby} {
			if err := w.logsInAt(s, r.ID); err != nil {
				t.Errorf("%s: staged, and refused on port %d: %v", flow, s.Port, err)
			}
		}
		if at := e.GetStaged().GetCommittedAt(); len(at) != 2 || !at["replica"].AsTime().After(at["coordinator"].AsTime()) {
			t.Errorf("committed at %v", at)
		}
	}
}

// TestStageNamesAReplicaThatIsTooLate: the wait is bounded, and nothing is staged.
func TestStageNamesAReplicaThatIsTooLate(t *testing.T) {
	w := newFollowed(t, "too late", saga.Alternating, "0")
	if err := w.standby.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := w.Stage(ctx, w.next(saga.Alternating))
	if err == nil || !strings.Contains(err.Error(), "replica replica has") {
		t.Fatalf("staged ahead of a replica: %v", err)
	}
}

func TestCheckAsksWhoeverTakesTheWritesAndReachesReplicas(t *testing.T) {
	w := newFollowed(t, "watched", inventory.Alternating, "0")
	if checks := w.Check(t.Context(), w.credential); finding(checks, true, "") || !finding(checks, false, "can await it") {
		t.Errorf("checks %v; want none refused", checks)
	}
	c := w.credential
	before := c.Cluster.Nodes["replica"]
	c.Nodes[0].Port, before.Port = before.Port, c.Nodes[0].Port // as after a failover
	c.Cluster.Nodes = map[string]inventory.Node{"coordinator": c.Nodes[0], "replica": before}
	w.Close()
	if checks := w.Check(t.Context(), c); finding(checks, true, "") || !finding(checks, false, `"watched": may log in`) {
		t.Errorf("checks %v; want none refused of the promoted replica", checks)
	}
	before.Port = 1
	c.Nodes[0].Port = w.primary.Port
	c.Cluster.Nodes = map[string]inventory.Node{"coordinator": c.Nodes[0], "replica": before}
	w.Close()
	if checks := w.Check(t.Context(), c); !finding(checks, true, "replica: ") || finding(checks, true, "coordinator: ") {
		t.Errorf("checks %v; want the replica refused", checks)
	}
}

func TestSessionOnAReplicaKeepsTheOldLogin(t *testing.T) {
	w := newFollowed(t, "laggard on a replica", saga.Alternating, "0")
	first := w.rotate(saga.Alternating)
	w.do(w.Erase, w.completed(first), saga.Erased)
	old := target(w.envelope(w.basis).User, w.envelope(w.basis).Password)
	old.Host, old.Port = w.standby.Host, w.standby.Port
	conn, err := postgres.Login(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	_, err = w.Retire(t.Context(), r)
	waits, ok := err.(*saga.NotYet)
	if !ok || len(waits.Laggards) != 1 || !strings.HasSuffix(waits.Laggards[0], "on replica") {
		t.Fatalf("retired under a session on a replica: %v", err)
	}
}

// TestPromotedReplicaTakesTheWrites: the primary dies with an ALTER that its
// standby has not got. The rotation is put back, or done again, where the
// writes now go.
func TestPromotedReplicaTakesTheWrites(t *testing.T) {
	w := newFollowed(t, "promoted", saga.Alternating, "0")
	w.rotate(saga.Alternating)
	before := w.envelope(w.basis)
	if err := w.standby.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	r := w.next(saga.Alternating)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := w.Stage(ctx, r); err == nil {
		t.Fatal("staged ahead of a replica")
	}
	if err := w.primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := w.lead(t.Context(), w.credential, w.credential.Primary())
	if err != nil || p.Node != "replica" || p.Name != "coordinator" {
		t.Fatalf("led by %+v, %v", p, err)
	}
	back := w.rotation(r.ID, saga.Alternating, r.Requested().GetGeneration(), saga.StageFailed)
	w.do(w.Unstage, back, saga.Unstaged)
	if err := w.logsInAt(w.standby, before.Rotation); err != nil {
		t.Errorf("the predecessor is refused: %v", err)
	}
	if err := w.logsInAt(w.standby, r.ID); err == nil {
		t.Error("what was taken back logs in")
	}
	// And the reverse: two that take writes.
	if err := w.primary.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.lead(t.Context(), w.credential, w.credential.Primary()); err == nil || !strings.Contains(err.Error(), "coordinator and replica all take writes") {
		t.Errorf("a split brain is led: %v", err)
	}
}

// TestStandbyThatIsPromotedLateIsRepaired: it has lost a whole rotation.
func TestStandbyThatIsPromotedLateIsRepaired(t *testing.T) {
	f := newFollowed(t, "promoted late", saga.Alternating, "0")
	w := reconcilingAt(t, f.world)
	w.turn(saga.Alternating)
	w.pass(t.Context(), true)
	if err := f.standby.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	// As if the replica had never been in pawl.yaml: nobody waits for it.
	replica := w.credential.Cluster.Nodes["replica"]
	delete(w.credential.Cluster.Nodes, "replica")
	w.turn(saga.Alternating)
	w.credential.Cluster.Nodes["replica"] = replica
	w.notes = nil
	if err := f.primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.logsInAt(f.standby, w.newest.ID); err == nil {
		t.Fatal("nothing was lost")
	}
	w.pass(t.Context(), false) // the history tells it, not the clock
	w.expectNotes("history changed", "repaired")
	if err := f.logsInAt(f.standby, w.newest.ID); err != nil {
		t.Errorf("after the repair: %v", err)
	}
}

// TestAlterSurvivesACrashWhereTheAdminCommitsLazily: the role says
// synchronous_commit off, and the WAL writer is never in time.
func TestAlterSurvivesACrashWhereTheAdminCommitsLazily(t *testing.T) {
	for _, flow := range []string{saga.Alternating, saga.InPlace} {
		settings := maps.Clone(loud)
		settings["wal_writer_delay"], settings["synchronous_commit"] = "10s", "off"
		s := running(t)(pgserver.Start(t.Context(), pgserver.Options{NoSync: true, Settings: settings}))
		w := bareWorld(t, "lazy "+flow, flow)
		w.others = []*pgserver.Server{s}
		w.credential.Nodes = []inventory.Node{{Name: "coordinator", Host: s.Host, Port: s.Port}}
		password, verifier := newPassword(t)
		at := &cluster{world: w}
		at.on(s, `CREATE ROLE "`+w.credential.Role+`" LOGIN PASSWORD '`+verifier.Reveal()+"'")
		at.on(s, "ALTER ROLE postgres SET synchronous_commit = off")
		w.publish(w.credential.Role, password)
		w.adopt()
		r := w.next(flow)
		w.do(w.Stage, r, saga.Staged)
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		e := w.envelope(r.ID)
		to := target(e.User, e.Password)
		to.Host, to.Port = s.Host, s.Port
		conn, err := postgres.Login(t.Context(), to)
		if err != nil {
			t.Errorf("%s: what was staged is gone: %v", flow, err)
			continue
		}
		conn.Close(t.Context())
	}
}

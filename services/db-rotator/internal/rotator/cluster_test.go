package rotator

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
)

// workers are two more servers with the same superuser, for all tests of this
// file; TestMain stops them.
var workers = sync.OnceValue(func() error {
	for range 2 {
		s, err := pgserver.Start(context.Background(), pgserver.Options{NoSync: true, Settings: loud})
		if err != nil {
			return err
		}
		started = append(started, s)
	}
	return nil
})

var started []*pgserver.Server

// cluster is a world on the coordinator and two workers, each behind a cutter,
// with a salt of its own for the same password.
type cluster struct {
	*world
	servers []*pgserver.Server
	cutters []*pgserver.Cutter
}

func newCluster(t *testing.T, role, strategy string) *cluster {
	t.Helper()
	if err := workers(); err != nil {
		t.Fatal(err)
	}
	w := &cluster{world: bareWorld(t, role, strategy), servers: append([]*pgserver.Server{server}, started...)}
	w.others = started
	password, _ := newPassword(t)
	w.publish(role, password)
	w.credential.Nodes = nil
	for i, s := range w.servers {
		verifier, err := postgres.Verifier(password)
		if err != nil {
			t.Fatal(err)
		}
		w.on(s, "CREATE ROLE "+pgx.Identifier{role}.Sanitize()+" LOGIN PASSWORD '"+verifier.Reveal()+"'")
		cutter, err := pgserver.NewCutter(net.JoinHostPort(s.Host, strconv.Itoa(int(s.Port))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cutter.Close() })
		w.cutters = append(w.cutters, cutter)
		w.credential.Nodes = append(w.credential.Nodes, inventory.Node{Name: fmt.Sprint("node-", i), Host: s.Host, Port: cutter.Port})
	}
	w.adopt()
	return w
}

// on runs a statement on one server as its superuser.
func (w *cluster) on(s *pgserver.Server, sql string) {
	w.t.Helper()
	conn, err := postgres.Login(w.t.Context(), postgres.Target{Host: s.Host, Port: s.Port, Database: "postgres", User: s.Superuser, Password: s.Password, SSLMode: "disable"})
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close(w.t.Context())
	for _, s := range []string{"SET log_statement = 'none'", "SET log_min_duration_statement = -1", "SET log_transaction_sample_rate = 0", "SET pg_stat_statements.track_utility = off", sql} {
		if _, err := conn.Exec(w.t.Context(), s, pgx.QueryExecModeSimpleProtocol); err != nil {
			w.t.Fatal(err)
		}
	}
}

// expectSame asserts that all servers hold the same of the login: before its
// first rotation the salts differ.
func (w *cluster) expectSame(login string) {
	w.t.Helper()
	line := 0
	if login == w.credential.Sibling() {
		line = 1
	}
	for i, held := range w.held() {
		if strings.Split(held, "\n")[line] != strings.Split(w.held()[0], "\n")[line] {
			w.t.Errorf("server %d holds something else of %q than the first", i, login)
		}
	}
}

// held is what each server holds of both logins.
func (w *cluster) held() (all []string) {
	w.t.Helper()
	for i, s := range w.servers {
		admin, err := postgres.NewAdmin(inventory.Node{Name: w.credential.Nodes[i].Name, Host: s.Host, Port: s.Port}, w.credential.Cluster, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		defer admin.Close()
		text := ""
		for _, name := range []string{w.credential.Role, w.credential.Sibling()} {
			role, err := admin.RoleState(w.t.Context(), name)
			if err != nil {
				w.t.Fatal(err)
			}
			text += fmt.Sprintln(role.Exists, role.CanLogin, role.Verifier.Reveal())
		}
		all = append(all, text)
	}
	return all
}

func TestSameVerifierOnEveryNode(t *testing.T) {
	for _, flow := range []string{saga.Alternating, saga.InPlace} {
		w := newCluster(t, "everywhere "+flow, flow)
		for range 3 {
			r := w.rotate(flow)
			w.do(w.Erase, w.completed(r), saga.Erased)
		}
		w.expectSame(w.credential.Role)
		w.expectSame(w.credential.Sibling())
	}
}

// TestNodeThatDiesHalfWayIsPutBackWithTheOthers: the live nodes are put back at
// once, whatever the dead one does, and that one when it is there again.
func TestNodeThatDiesHalfWayIsPutBackWithTheOthers(t *testing.T) {
	for _, flow := range []string{saga.Alternating, saga.InPlace} {
		t.Run(flow, func(t *testing.T) {
			w := newCluster(t, "half way "+flow, flow)
			w.rotate(flow)
			before := w.held()
			r := w.next(flow)
			dies := w.servers[2]
			w.envelopes.afterSeal = func() { // the roles were read, nothing is altered yet
				if err := dies.Kill(); err != nil {
					t.Error(err)
				}
			}
			_, err := w.Stage(t.Context(), r)
			w.envelopes.afterSeal = nil
			if err == nil || saga.IsPermanent(err) {
				t.Fatalf("stage with a dead node: %v", err)
			}
			back := w.rotation(r.ID, flow, r.Requested().GetGeneration(), saga.StageFailed)
			if _, err := w.Unstage(t.Context(), back); err == nil {
				t.Fatal("taken back on a dead node")
			}
			if err := dies.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if now := w.held(); !slices.Equal(now[:2], before[:2]) {
				t.Error("the live nodes were not put back at once")
			}
			w.do(w.Unstage, back, saga.Unstaged)
			if !slices.Equal(w.held(), before) {
				t.Error("not every node is as it was")
			}
			w.logsIn(w.envelope(w.basis), "")
		})
	}
}

// TestCommitCutOnOneNodeOfThree, in each step that changes a role: the others'
// changes landed; the one whose answer was lost is looked at and made the same.
func TestCommitCutOnOneNodeOfThree(t *testing.T) {
	for side, where := range map[string]pgserver.Cut{"lost": pgserver.BeforeCommit, "landed": pgserver.AfterCommit} {
		for _, flow := range []string{saga.Alternating, saga.InPlace} {
			for _, step := range []string{"stage", "retire", "erase", "unstage", "reinstate"} {
				if flow == saga.InPlace && (step == "erase" || step == "reinstate") {
					continue // it changes no role, or there is none
				}
				t.Run(flow+" "+step+" "+side, func(t *testing.T) { cutAt(t, flow, step, where) })
			}
		}
	}
}

func cutAt(t *testing.T, flow, step string, where pgserver.Cut) {
	w := newCluster(t, strings.Join([]string{"cut", flow, step, fmt.Sprint(where)}, " "), flow)
	w.rotate(flow)
	before := w.held()
	r := w.next(flow)
	var happened <-chan struct{}
	cutIn := func(name string) {
		if name == step {
			happened = w.cutters[1].Arm(where, "")
		}
	}
	cutIn("stage")
	e := w.do(w.Stage, r, saga.Staged)
	if got := slices.Sorted(maps.Keys(e.GetStaged().GetCommittedAt())); !slices.Equal(got, []string{"node-0", "node-1", "node-2"}) {
		t.Errorf("committed at %v", got)
	}
	switch step {
	case "unstage":
		cutIn("unstage")
		w.do(w.Unstage, w.rotation(r.ID, flow, r.Requested().GetGeneration(), saga.StageFailed), saga.Unstaged)
		if !slices.Equal(w.held(), before) {
			t.Error("not every node is as it was")
		}
	case "reinstate":
		predecessor := w.envelope(w.basis)
		w.do(w.Retire, r, saga.Retired)
		w.basis, w.user = r.ID, e.GetStaged().GetUser()
		back := w.next(saga.RollbackAlternating)
		back.Requested().Restores, back.Requested().RestoresUser = predecessor.Rotation, predecessor.User
		cutIn("reinstate")
		w.do(w.Reinstate, back, saga.Reinstated)
		w.logsIn(predecessor, "")
		w.expectSame(predecessor.User)
	default:
		cutIn("retire")
		w.do(w.Retire, r, saga.Retired)
		cutIn("erase")
		w.do(w.Erase, w.completed(r), saga.Erased)
		w.logsIn(w.envelope(r.ID), "")
		w.expectSame(e.GetStaged().GetUser())
	}
	<-happened
}

package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// drawer is a keeper without a bus.
type drawer struct {
	mu    sync.Mutex
	all   []evidence.Snapshot
	fails error
	hangs chan struct{} // Keep waits for it, if set
	notes chan *pawlv1.Note
}

func (d *drawer) Keep(_ context.Context, s evidence.Snapshot) error {
	if d.hangs != nil {
		<-d.hangs
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fails == nil {
		d.all = append(d.all, s)
	}
	return d.fails
}

func (d *drawer) Catalogued(context.Context, string, string) (nodes []string, err error) {
	for _, s := range d.of(evidence.Catalogue) {
		nodes = append(nodes, s.Node)
	}
	return nodes, nil
}

func (d *drawer) of(kind string) []evidence.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(d.all), func(s evidence.Snapshot) bool { return s.Kind != kind })
}

// awaits waits until there are as many snapshots of the kind.
func (d *drawer) awaits(t *testing.T, kind string, n int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for len(d.of(kind)) < n {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%d snapshots of %s, want %d", len(d.of(kind)), kind, n)
		}
	}
}

// watched has the world's emergencies leave evidence in a drawer.
func (w *world) watched() *drawer {
	d := &drawer{notes: make(chan *pawlv1.Note, 16)}
	w.KeepEvidence(d, func(_ context.Context, n *pawlv1.Note) { d.notes <- n })
	return d
}

// thief logs in as somebody to be told of.
func (w *world) thief(role string) *pgx.Conn {
	w.t.Helper()
	to := target(role, w.envelope(w.basis).Password)
	to.ApplicationName = "<script>robber"
	conn, err := postgres.Login(w.t.Context(), to)
	if err == nil {
		_, err = conn.Exec(w.t.Context(), "SELECT 'loot'", pgx.QueryExecModeSimpleProtocol)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func TestContainmentTellsWhomItEndedAndWhatTheyHad(t *testing.T) {
	w := newWorld(t, "watched", inventory.InPlace)
	d := w.watched()
	w.thief("watched")
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained)
	sessions := d.of(evidence.Sessions)
	if len(sessions) == 0 || len(sessions[0].Tables[0].Rows) != 1 || contained.GetContained().GetSessions() != 1 {
		t.Fatalf("kept %v of %d sessions, when contained was about to be said", sessions, contained.GetContained().GetSessions())
	}
	if row := strings.Join(sessions[0].Tables[0].Rows[0], "|"); !strings.Contains(row, "watched|<script>robber|127.0.0.1|postgres|client backend|") || !strings.HasSuffix(row, "SELECT $?") {
		t.Errorf("the session is told as %s", row)
	}
	if n := <-d.notes; n.GetKind() != "evidence" || n.GetRotation() != r.ID || !strings.Contains(n.GetText(), "coordinator") {
		t.Errorf("note %v", n)
	}
	catalogue := d.of(evidence.Catalogue)
	if len(catalogue) != 1 || catalogue[0].Node != "coordinator" || !slices.ContainsFunc(catalogue[0].Tables, func(t postgres.Table) bool { return t.Name == "roles" && len(t.Rows) == 1 }) {
		t.Errorf("catalogue %v", catalogue)
	}

	// Contained again, as after a crash before it was said: what was seen first
	// stays, what is seen now stands beside it, and nobody looks twice.
	w.do(w.replicaOf(d).Contain, r, saga.Contained)
	if again := d.of(evidence.Sessions); len(again) < 2 || again[0].At != sessions[0].At || len(again[0].Tables[0].Rows) != 1 || len(again[1].Tables[0].Rows) != 0 {
		t.Errorf("afterwards, kept %v", again)
	}
}

// replicaOf is another process with the same drawer.
func (w *world) replicaOf(d *drawer) *Rotator {
	o := w.replica()
	o.KeepEvidence(d, w.note)
	return o
}

func TestEvidenceThatHangsOrFailsDelaysNoContainment(t *testing.T) {
	for name, spoil := range map[string]func(w *world, d *drawer) (mend func()){
		"the store hangs": func(_ *world, d *drawer) func() {
			d.hangs = make(chan struct{})
			return func() { close(d.hangs) }
		},
		"the store refuses": func(_ *world, d *drawer) func() { d.fails = errors.New("no incident key"); return func() {} },
		"a catalogue is locked": func(w *world, d *drawer) func() {
			hung := w.connect(server.Superuser, server.Password)
			if _, err := hung.Exec(w.t.Context(), "BEGIN; LOCK TABLE pg_catalog.pg_subscription IN ACCESS EXCLUSIVE MODE", pgx.QueryExecModeSimpleProtocol); err != nil {
				w.t.Fatal(err)
			}
			return func() {
				<-d.notes
				if !strings.Contains(fmt.Sprint(d.of(evidence.Catalogue)), "lock timeout") {
					w.t.Error("what could not be read is not named")
				}
				w.hangUp(hung)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "spoilt_"+strings.ReplaceAll(name, " ", "_"), inventory.InPlace)
			d := w.watched()
			stolen := w.envelope(w.basis)
			w.thief(stolen.User)
			mend := spoil(w, d)
			seen := &effect.Recorder{}
			r := w.emergency(nil)
			e, err := w.Contain(effect.With(t.Context(), seen), r) // hangs where it waits for the store
			if err != nil || len(e.GetContained().GetPending()) > 0 || e.GetContained().GetSessions() != 1 {
				t.Fatalf("contained %v, %v", e, err)
			}
			w.refusedNow(stolen)
			if warned := strings.Contains(fmt.Sprint(seen.Warnings()), "kept as evidence"); warned != strings.HasPrefix(name, "the store") {
				t.Errorf("warned: %v", seen.Warnings())
			}
			mend()
		})
	}
}

// A process that dies after it has contained leaves the look at the catalogue to
// whoever compares the nodes next.
func TestEvidenceOfAProcessThatDiedIsMadeUpFor(t *testing.T) {
	w := newWorld(t, "orphan", inventory.InPlace)
	r := w.emergency(nil)
	contained := w.do(w.Contain, r, saga.Contained).GetContained() // keeps nothing: it dies
	d := w.watched()
	for range 2 { // asked for twice, done once
		w.gather(w.credential, r.ID, contained)
	}
	<-d.notes
	if got := d.of(evidence.Catalogue); len(got) != 1 || got[0].Rotation != r.ID {
		t.Errorf("kept %v", got)
	}
	if !w.gatherOnce(t.Context(), w.credential, r.ID, contained, false) || len(d.of(evidence.Catalogue)) != 1 {
		t.Error("looked again at what is kept")
	}
}

func TestBrokenGlassLeavesEvidence(t *testing.T) {
	w := newWorld(t, "shards", inventory.InPlace)
	w.thief("shards")
	d := &drawer{}
	alone := New(nil, nil)
	defer alone.Close()
	contained, err := alone.BreakGlass(t.Context(), w.credential, d, nil)
	if err == nil {
		err = alone.Gather(t.Context(), d, w.credential, contained)
	}
	if err != nil || len(d.of(evidence.Sessions)) == 0 || len(d.of(evidence.Catalogue)) != 1 {
		t.Errorf("kept %v, %v", d.all, err)
	}
}

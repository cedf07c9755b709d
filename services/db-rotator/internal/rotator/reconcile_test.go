package rotator

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/trace/noop"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// reconciling is a world with a reconciler, and what that has noted.
type reconciling struct {
	*world
	*Reconciler
	newest *service.Rotation
	notes  []string
}

func newReconciling(t *testing.T, role, strategy string) *reconciling {
	t.Helper()
	return reconcilingAt(t, newWorld(t, role, strategy))
}

func reconcilingAt(t *testing.T, at *world) *reconciling {
	t.Helper()
	w := &reconciling{world: at}
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	w.Reconciler = &Reconciler{rotator: w.Rotator, every: time.Hour, standing: func(context.Context, bus.Log) (restored.Verdict, error) {
		return restored.Verdict{Standing: restored.Agrees}, nil
	},
		log:      func(context.Context, string) (bus.Log, error) { return logOf(w.newest), nil },
		expected: map[string]*expectation{}, history: map[string]postgres.History{}, said: map[string]string{},
		d: service.Dependencies{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Metrics: metrics, Tracer: noop.NewTracerProvider().Tracer(""),
			Inventory: &inventory.Inventory{Credentials: map[string]*inventory.Credential{w.credential.Name: w.credential}},
			Note: func(_ context.Context, n *pawlv1.Note) {
				w.notes = append(w.notes, n.GetKind()+": "+n.GetText())
			}}}
	return w
}

func logOf(r *service.Rotation) bus.Log {
	log := bus.Log{Credential: r.Credential.Name, Rotation: r.ID}
	for _, e := range slices.SortedFunc(maps.Keys(r.Events), func(a, b saga.Event) int {
		x, _ := r.State.Has(a)
		y, _ := r.State.Has(b)
		return int(x.Seq) - int(y.Seq)
	}) {
		if entry, ok := r.State.Has(e); ok {
			log.Records = append(log.Records, bus.Record{Entry: entry, Body: r.Events[e]})
		}
	}
	return log
}

// turn makes a rotation and its completed log the newest.
func (w *reconciling) turn(flow string) { w.newest = w.completed(w.rotate(flow)) }

// at is what the node holds of both logins and the fence.
func (w *reconciling) at() (statements []string) {
	w.t.Helper()
	for _, name := range []string{w.credential.Role, w.credential.Sibling()} {
		role := w.role(name)
		quoted := pgx.Identifier{name}.Sanitize()
		switch {
		case !role.Exists:
			statements = append(statements, "DROP ROLE IF EXISTS "+quoted)
		case role.Verifier.IsZero():
			statements = append(statements, fmt.Sprintf("ALTER ROLE %s %s PASSWORD NULL", quoted, attribute(role.CanLogin)))
		default:
			statements = append(statements, fmt.Sprintf("ALTER ROLE %s %s PASSWORD '%s'", quoted, attribute(role.CanLogin), role.Verifier.Reveal()))
		}
	}
	var generation, phase int
	err := super.QueryRow(w.t.Context(), "SELECT generation, phase FROM pawl.fence WHERE role = $1", w.credential.Role).Scan(&generation, &phase)
	if err != nil && err != pgx.ErrNoRows {
		w.t.Fatal(err)
	}
	return append(statements, fmt.Sprintf("UPDATE pawl.fence SET generation = %d, phase = %d WHERE role = '%s'", generation, phase, w.credential.Role))
}

func attribute(login bool) string {
	if login {
		return "LOGIN"
	}
	return "NOLOGIN"
}

// expectNotes compares the kinds of what was noted since the last call.
func (w *reconciling) expectNotes(kinds ...string) {
	w.t.Helper()
	var got []string
	for _, n := range w.notes {
		kind, _, _ := strings.Cut(n, ":")
		got = append(got, kind)
	}
	if !slices.Equal(got, kinds) {
		w.t.Errorf("noted %q, want %q", w.notes, kinds)
	}
	w.notes = nil
}

// TestLostWriteIsRepaired puts the node back to where an older base backup, a
// late standby or an unsynced crash would have left it.
func TestLostWriteIsRepaired(t *testing.T) {
	for _, flow := range []string{saga.Alternating, saga.InPlace} {
		for _, lost := range []int{1, 2, 3} {
			t.Run(fmt.Sprintf("%s, %d rotations lost", flow, lost), func(t *testing.T) {
				w := newReconciling(t, strings.ReplaceAll(fmt.Sprintf("lost %s %d", flow, lost), "-", " "), flow)
				older := w.at()
				for range lost {
					w.turn(flow)
				}
				now := w.at()
				w.pass(t.Context(), true)
				w.expectNotes()
				w.sql(older...)
				w.pass(t.Context(), true)
				w.expectNotes("repaired")
				if got := w.at(); !slices.Equal(got, now) {
					t.Errorf("repaired to another state than before the loss")
				}
				w.logsIn(w.envelope(w.newest.ID), "")
				w.pass(t.Context(), true)
				w.expectNotes()
			})
		}
	}
}

func TestLostUndoIsRepaired(t *testing.T) {
	w := newReconciling(t, "lost undo", saga.Alternating)
	w.turn(saga.Alternating)
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	staged := w.at()
	back := w.rotation(r.ID, saga.Alternating, r.Requested().GetGeneration(), saga.Staged, saga.PublishFailed, saga.Restored, saga.Unstaged, saga.RolledBack)
	maps.Copy(back.Events, r.Events)
	w.do(w.Unstage, back, saga.Unstaged)
	w.newest = back
	w.sql(staged...)
	w.pass(t.Context(), true)
	w.expectNotes("repaired")
	w.logsIn(w.envelope(r.ID), postgres.WrongPassword)
	w.logsIn(w.envelope(w.basis), "")
}

func TestWhatSomebodyDidIsReportedAndLeft(t *testing.T) {
	_, foreign := newPassword(t)
	for name, c := range map[string]struct{ lose, hand string }{
		"a password of his own":                      {"", "ALTER ROLE %[1]s PASSWORD '" + foreign.Reveal() + "'"},
		"the login that is used is refused":          {"", "ALTER ROLE %[1]s NOLOGIN"},
		"the retired login is let in":                {"", "ALTER ROLE %[2]s LOGIN"},
		"a password of his own in a restored backup": {"lose", "ALTER ROLE %[1]s PASSWORD '" + foreign.Reveal() + "'"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newReconciling(t, name, saga.Alternating)
			older := w.at()
			w.turn(saga.Alternating)
			if c.lose != "" {
				w.sql(older...)
			}
			current, idle := w.envelope(w.newest.ID).User, w.credential.Role
			hand := fmt.Sprintf(c.hand, pgx.Identifier{current}.Sanitize(), pgx.Identifier{idle}.Sanitize())
			if c.lose != "" { // there the role is what can carry his password
				hand = fmt.Sprintf(c.hand, pgx.Identifier{idle}.Sanitize())
			}
			w.sql(strings.Split(hand, "%!")[0])
			held := w.at()
			for range 2 {
				w.pass(t.Context(), true)
			}
			w.expectNotes("drift")
			if !slices.Equal(held, w.at()) {
				t.Error("something was changed")
			}
		})
	}
}

func TestBothAreExpectedDuringARotation(t *testing.T) {
	w := newReconciling(t, "under way", saga.Alternating)
	w.turn(saga.Alternating)
	r := w.next(saga.Alternating)
	w.newest = r
	older := w.at()
	w.pass(t.Context(), true)
	w.do(w.Stage, r, saga.Staged)
	w.pass(t.Context(), true)
	w.expectNotes()
	// Past the stage, a lost ALTER is done again: the rotation goes on.
	w.newest = w.rotation(r.ID, saga.Alternating, r.Requested().GetGeneration(), saga.Staged, saga.Published)
	maps.Copy(w.newest.Events, r.Events)
	w.sql(older...)
	w.pass(t.Context(), true)
	w.expectNotes("repaired")
	w.logsIn(w.envelope(r.ID), "")
	w.logsIn(w.envelope(w.basis), "")
}

func TestLostRetirementIsDoneAgainBeforeItIsConfirmed(t *testing.T) {
	w := newReconciling(t, "lost retirement", saga.Alternating)
	w.turn(saga.Alternating)
	older := w.at()
	r := w.next(saga.Alternating)
	w.do(w.Stage, r, saga.Staged)
	w.do(w.Retire, r, saga.Retired)
	now := w.at()
	w.newest = w.rotation(r.ID, saga.Alternating, r.Requested().GetGeneration(), saga.Staged, saga.Published, saga.Restarted, saga.Verified, saga.Retired)
	maps.Copy(w.newest.Events, r.Events)
	w.sql(older...)
	w.pass(t.Context(), true)
	w.expectNotes("repaired")
	if !slices.Equal(w.at(), now) {
		t.Error("not as it was before the loss")
	}
}

func TestRepairGivesWayToANewRotation(t *testing.T) {
	w := newReconciling(t, "gives way", saga.InPlace)
	older := w.at()
	w.turn(saga.InPlace)
	w.sql(older...)
	e, err := w.expectation(t.Context(), w.credential)
	if err != nil {
		t.Fatal(err)
	}
	w.newest = w.next(saga.InPlace)
	w.newest.State.Last.Seq = 99
	p, err := w.lead(t.Context(), w.credential, w.credential.Primary())
	if err != nil {
		t.Fatal(err)
	}
	w.log = func(context.Context, string) (bus.Log, error) {
		log := logOf(w.newest)
		log.Records[0].Seq = 99
		return log, nil
	}
	before := w.at()
	w.settle(t.Context(), p, e, verdict{lost: true, wrong: "x"})
	w.expectNotes()
	if !slices.Equal(before, w.at()) {
		t.Error("a repair went past a newer rotation")
	}
}

func TestNewHistoryIsComparedAtOnce(t *testing.T) {
	w := newReconciling(t, "history", saga.Alternating)
	older := w.at()
	w.turn(saga.Alternating)
	w.pass(t.Context(), true)
	w.sql(older...)
	w.pass(t.Context(), false)
	w.expectNotes() // nothing told it
	for key, h := range w.history {
		h.Timeline--
		w.history[key] = h
	}
	w.pass(t.Context(), false)
	w.expectNotes("history changed", "repaired")
}

func TestRepairGivesWayToSomebodysHand(t *testing.T) {
	w := newReconciling(t, "by hand", saga.InPlace)
	older := w.at()
	w.turn(saga.InPlace)
	w.sql(older...)
	e, err := w.expectation(t.Context(), w.credential)
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.lead(t.Context(), w.credential, w.credential.Primary())
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := newPassword(t)
	w.sql(`ALTER ROLE "by hand" PASSWORD '` + foreign.Reveal() + "'") // after the look
	w.settle(t.Context(), p, e, verdict{lost: true, wrong: "x"})
	w.expectNotes()
	if !w.role("by hand").Verifier.Equal(foreign) {
		t.Error("a password that somebody has just set was overwritten")
	}
}

package app

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace/noop"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// reconciling is a bench after rotation r2, whose predecessor was r1.
type reconciling struct {
	*bench
	*reconciler
	newest bus.Log
	kinds  []string
}

func newReconciling(t *testing.T) *reconciling {
	t.Helper()
	b := newBench(t)
	b.put(b.env, envAfter)
	b.put(b.dsn, dsnAfter)
	before := b.store.held["r1"]
	b.store.held["r2"].Earlier = []string{b.store.Fingerprint(before.User, before.Password)}
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	w := &reconciling{bench: b, newest: logOf("r2", saga.Requested, saga.Staged, saga.Published, saga.Restarted, saga.Verified, saga.Retired, saga.Confirmed, saga.Completed)}
	w.reconciler = &reconciler{app: b.app, said: map[string]string{}, standing: func(context.Context, bus.Log) (restored.Verdict, error) {
		return restored.Verdict{Standing: restored.Agrees}, nil
	}, log: func(context.Context, string) (bus.Log, error) { return w.newest, nil },
		newest: func(context.Context, string) (string, uint64, error) {
			return w.newest.Rotation, w.newest.LastSeq(), nil
		},
		d: service.Dependencies{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Metrics: metrics, Tracer: noop.NewTracerProvider().Tracer(""),
			Inventory: &inventory.Inventory{Credentials: map[string]*inventory.Credential{"cred": b.credential}},
			Note:      func(_ context.Context, n *pawlv1.Note) { w.kinds = append(w.kinds, n.GetKind()) }}}
	return w
}

func logOf(rotation string, events ...saga.Event) bus.Log {
	log := bus.Log{Credential: "cred", Rotation: rotation}
	for i, e := range events {
		body := &pawlv1.Event{}
		switch e {
		case saga.Requested:
			body.Detail = &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Generation: 2, Basis: "r1", BasisUser: "app"}}
		case saga.Staged:
			body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: "app_b"}}
		}
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 1)}, Body: body})
	}
	return log
}

func (w *reconciling) expect(env, dsn string, kinds ...string) {
	w.Helper()
	w.pass(w.Context())
	w.want(env, dsn)
	if !slices.Equal(w.kinds, kinds) {
		w.Errorf("noted %v, want %v", w.kinds, kinds)
	}
	w.kinds = nil
}

func TestSinkRestoredFromABackupIsWrittenAgain(t *testing.T) {
	w := newReconciling(t)
	w.expect(envAfter, dsnAfter)
	w.put(w.env, envBefore)
	w.expect(envAfter, dsnAfter, "repaired")
	w.expect(envAfter, dsnAfter)
}

func TestSinkThatSomebodyWroteIsReportedAndLeft(t *testing.T) {
	w := newReconciling(t)
	foreign := strings.ReplaceAll(envBefore, "old", "foreign")
	w.put(w.env, foreign)
	w.expect(foreign, dsnAfter, "drift")
	w.expect(foreign, dsnAfter)
	w.put(w.env, envAfter)
	w.expect(envAfter, dsnAfter, "drift over")
}

func TestSinksAreLeftToARotationThatIsAtWork(t *testing.T) {
	w := newReconciling(t)
	w.put(w.env, envBefore)
	w.newest = logOf("r2", saga.Requested, saga.Staged)
	w.expect(envBefore, dsnAfter)
}

func TestRepairGivesWayToARotationThatBeginsMeanwhile(t *testing.T) {
	w := newReconciling(t)
	w.put(w.env, envBefore)
	w.reconciler.newest = func(context.Context, string) (string, uint64, error) { return "r3", 9, nil }
	w.expect(envBefore, dsnAfter)
}

func TestSinkOfARolledBackRotationIsWrittenBack(t *testing.T) {
	w := newReconciling(t)
	w.newest = logOf("r2", saga.Requested, saga.Staged, saga.PublishFailed, saga.Restored, saga.Unstaged, saga.RolledBack)
	w.put(w.dsn, dsnBefore) // r2's login is left in the .env, as by a publisher that woke up late
	w.expect(envBefore, dsnBefore, "repaired")
}

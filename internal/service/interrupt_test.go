package service

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace/noop"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// restartDue runs a restarter of that handler until the test ends, with a rotation
// whose restart is due.
func restartDue(t *testing.T, restart Handler, note func(*pawlv1.Note)) *bustest.Server {
	t.Helper()
	server := bustest.Start(t)
	restarts(t, server, restart, note, "c")
	due(t, server, saga.Alternating, "c")
	return server
}

// restarts runs a restarter of that handler, until the test ends.
func restarts(t *testing.T, server *bustest.Server, restart Handler, note func(*pawlv1.Note), credentials ...string) {
	t.Helper()
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	restarter := &Service{Name: saga.Restarter, Steps: map[string]Handler{
		"restart":   restart,
		"rerestart": func(context.Context, *Rotation) (*pawlv1.Event, error) { return nil, nil },
	}}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	d := Dependencies{Bus: server.Connect(t, saga.Restarter), Log: slog.New(slog.DiscardHandler), Metrics: metrics, Note: func(_ context.Context, n *pawlv1.Note) { note(n) },
		Inventory: &inventory.Inventory{Credentials: map[string]*inventory.Credential{}}}
	for _, c := range credentials {
		d.Inventory.Credentials[c] = &inventory.Credential{Name: c}
	}
	go func() { over <- restarter.run(ctx, d, noop.NewTracerProvider(), func(*probe) {}) }()
	t.Cleanup(func() { stop(); <-over })
}

// due has a rotation of the credential come to its restart.
func due(t *testing.T, server *bustest.Server, flow, credential string) {
	t.Helper()
	happensTo(t, server, credential, saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: flow, Role: credential, Generation: 1}}})
	if flow == saga.Emergency {
		happensTo(t, server, credential, saga.Contained, &pawlv1.Event{})
	}
	happensTo(t, server, credential, saga.Staged, &pawlv1.Event{})
	happensTo(t, server, credential, saga.Published, &pawlv1.Event{})
}

// happens appends an event of the rotation, as who owns it.
func happens(t *testing.T, server *bustest.Server, e saga.Event, body *pawlv1.Event) {
	t.Helper()
	happensTo(t, server, "c", e, body)
}

func happensTo(t *testing.T, server *bustest.Server, credential string, e saga.Event, body *pawlv1.Event) {
	t.Helper()
	owner := server.Connect(t, saga.OwnerOf(e))
	log, err := owner.ReadNewest(t.Context(), credential)
	if err == nil {
		header := nats.Header{}
		if body.GetRequested().GetFlow() == saga.Emergency {
			bus.MarkUrgent(header)
		} else if e != saga.Requested {
			log.PassUrgency(header)
		}
		_, err = owner.Append(t.Context(), credential, "r", e, body, header, log.LastSeq())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestRollbackDoesNotWaitForTheStepThatWasCancelled: a consumer that does not come up
// is waited for, for ten minutes, and is what a rotation is cancelled for.
func TestRollbackDoesNotWaitForTheStepThatWasCancelled(t *testing.T) {
	restarts := make(chan struct{}, 10)
	server := restartDue(t, func(ctx context.Context, _ *Rotation) (*pawlv1.Event, error) {
		restarts <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}, func(*pawlv1.Note) {})
	<-restarts
	happens(t, server, saga.Cancelled, &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "restart", Reason: "cancelled by anna"}}})
	operator := server.Connect(t, bus.Operator)
	restarted, err := operator.NATS.SubscribeSync(bus.LogSubject("c", "r", saga.Rerestarted))
	if err == nil {
		err = operator.NATS.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	happens(t, server, saga.Restored, &pawlv1.Event{})
	if _, err := restarted.NextMsg(20 * time.Second); err != nil {
		t.Fatalf("the old credential's consumers are not restarted: %v", err)
	}
}

// TestStepThatFailsAgainAndAgainSaysWhy: one that may fail is tried until its deadline,
// ten minutes in which nothing is said would look like nothing at work.
func TestStepThatFailsAgainAndAgainSaysWhy(t *testing.T) {
	notes := make(chan *pawlv1.Note, 100)
	restartDue(t, func(context.Context, *Rotation) (*pawlv1.Event, error) {
		return nil, errors.New("the Docker Engine does not answer")
	}, func(n *pawlv1.Note) { notes <- n })
	for {
		select {
		case n := <-notes:
			if n.GetKind() != "retrying" {
				continue
			}
			if n.GetCredential() != "c" || n.GetRotation() != "r" || n.GetStep() != "restart" || n.GetText() != "the Docker Engine does not answer" {
				t.Fatalf("said: %v", n)
			}
			return
		case <-time.After(30 * time.Second):
			t.Fatal("nothing is said of a step that fails again and again")
		}
	}
}

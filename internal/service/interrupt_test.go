package service

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestRollbackDoesNotWaitForTheStepThatWasCancelled: a consumer that does not come up
// is waited for, for ten minutes, and is what a rotation is cancelled for.
func TestRollbackDoesNotWaitForTheStepThatWasCancelled(t *testing.T) {
	server := bustest.Start(t)
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	restarts := make(chan struct{}, 10)
	restarter := &Service{Name: saga.Restarter, Steps: map[string]Handler{
		"restart": func(ctx context.Context, _ *Rotation) (*pawlv1.Event, error) {
			restarts <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"rerestart": func(context.Context, *Rotation) (*pawlv1.Event, error) { return nil, nil },
	}}
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		over <- restarter.run(ctx, Dependencies{Bus: server.Connect(t, saga.Restarter), Log: slog.New(slog.DiscardHandler), Metrics: metrics, Note: func(context.Context, *pawlv1.Note) {},
			Inventory: &inventory.Inventory{Credentials: map[string]*inventory.Credential{"c": {Name: "c"}}}}, noop.NewTracerProvider(), func(*probe) {})
	}()
	defer func() { stop(); <-over }()
	happens := func(e saga.Event, body *pawlv1.Event) {
		t.Helper()
		owner := server.Connect(t, saga.OwnerOf(e))
		log, err := owner.ReadNewest(t.Context(), "c")
		if err == nil {
			_, err = owner.Append(t.Context(), "c", "r", e, body, nil, log.LastSeq())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	happens(saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Role: "c", Generation: 1}}})
	happens(saga.Staged, &pawlv1.Event{})
	happens(saga.Published, &pawlv1.Event{})
	<-restarts
	happens(saga.Cancelled, &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "restart", Reason: "cancelled by anna"}}})
	operator := server.Connect(t, bus.Operator)
	restarted, err := operator.NATS.SubscribeSync(bus.LogSubject("c", "r", saga.Rerestarted))
	if err == nil {
		err = operator.NATS.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	happens(saga.Restored, &pawlv1.Event{})
	if _, err := restarted.NextMsg(20 * time.Second); err != nil {
		t.Fatalf("the old credential's consumers are not restarted: %v", err)
	}
}

package service_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestQuestionToAHungReplicaIsPutToAnother(t *testing.T) {
	server := bustest.Start(t)
	hung := make(chan struct{}, 100)
	for _, answers := range []bool{false, true} {
		replica := server.Connect(t, saga.DBRotator)
		_, err := replica.NATS.QueueSubscribe(bus.CheckSubject(saga.DBRotator, "*"), saga.DBRotator, func(m *nats.Msg) {
			if !answers {
				hung <- struct{}{}
				return
			}
			if err := bus.Respond(m, &pawlv1.Findings{Checks: []*pawlv1.Check{{Finding: "fine"}}}); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := replica.NATS.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	asking := server.Connect(t, saga.Scheduler)
	for len(hung) == 0 { // the server chooses by lot
		checks, err := service.Ask(t.Context(), asking, bus.CheckSubject(saga.DBRotator, "orders"))
		if err != nil || len(checks) != 1 {
			t.Fatalf("%v, %v", checks, err)
		}
	}
}

func TestQuestionToNobodyFailsAtOnce(t *testing.T) {
	asking := bustest.Start(t).Connect(t, saga.Scheduler)
	if _, err := service.Ask(t.Context(), asking, bus.CheckSubject(saga.Verifier, "orders")); !errors.Is(err, nats.ErrNoResponders) {
		t.Fatalf("no responders, not %v", err)
	}
}

// A service whose server of the bus has died is away for a moment: that is no reason
// to refuse a rotation.
func TestPreflightWaitsForAServiceThatComesBack(t *testing.T) {
	server := bustest.Start(t)
	asking, verifier := server.Connect(t, saga.Scheduler), server.Connect(t, saga.Verifier)
	time.AfterFunc(500*time.Millisecond, func() { // after the first question
		_, err := verifier.NATS.Subscribe(bus.CheckSubject(saga.Verifier, "*"), func(m *nats.Msg) {
			if err := bus.Respond(m, &pawlv1.Findings{Checks: []*pawlv1.Check{{Finding: "fine"}}}); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
	found, unanswered := service.Preflight(t.Context(), asking, "orders", []string{saga.Verifier})
	if unanswered != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, unanswered)
	}
}

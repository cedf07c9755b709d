package service_test

import (
	"log/slog"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestConsumerThatTheServerEndedIsBoundAgain: the client library takes the end of a
// consumer for the end of the work, and says nothing.
func TestConsumerThatTheServerEndedIsBoundAgain(t *testing.T) {
	server := bustest.Start(t)
	operator, provisioner := server.Connect(t, bus.Operator), server.Connect(t, bus.Provisioner)
	heard := make(chan string, 10)
	stop, err := service.Consume(t.Context(), service.Dependencies{Bus: server.Connect(t, saga.Scheduler), Log: slog.New(slog.DiscardHandler)},
		bus.StreamRequest, bus.ConsumerRequests, func(m service.Message) {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Error(err)
			}
			heard <- m.Subject()
		})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, credential := range []string{"before", "after"} {
		if err := operator.Publish(t.Context(), bus.RequestSubject(credential), &pawlv1.Request{Reason: credential}, nil); err != nil {
			t.Fatal(err)
		}
		select {
		case subject := <-heard:
			if subject != bus.RequestSubject(credential) {
				t.Errorf("heard %s", subject)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the request for %q is not heard", credential)
		}
		if err := provisioner.JetStream.DeleteConsumer(t.Context(), bus.StreamRequest, bus.ConsumerRequests); err != nil {
			t.Fatal(err)
		}
		if err := bus.Provision(t.Context(), provisioner.JetStream, bus.Settings{AckWait: bus.DefaultAckWait}); err != nil {
			t.Fatal(err)
		}
	}
}

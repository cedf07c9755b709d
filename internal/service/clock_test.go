package service

import (
	"log/slog"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestWhatIsPendingDoesNotWaitForTheWholeStepOfTheClock: a request that is to come
// again in an hour is what a step back by an hour makes of every pending message.
func TestWhatIsPendingDoesNotWaitForTheWholeStepOfTheClock(t *testing.T) {
	server := bustest.Start(t)
	d := Dependencies{Bus: server.Connect(t, saga.Scheduler), Log: slog.New(slog.DiscardHandler)}
	heard := make(chan string, 10)
	first := true
	stop, err := Consume(t.Context(), d, bus.StreamRequest, bus.ConsumerRequests, func(m Message) {
		settle := m.Ack
		if first {
			first = false
			settle = func() error { return m.NakWithDelay(time.Hour) }
		}
		if err := settle(); err != nil {
			t.Error(err)
		}
		heard <- m.Subject()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := server.Connect(t, bus.Operator).Publish(t.Context(), bus.RequestSubject("a"), &pawlv1.Request{Reason: "test"}, nil); err != nil {
		t.Fatal(err)
	}
	<-heard
	again := time.NewTicker(100 * time.Millisecond) // until the server has the Nak
	defer again.Stop()
	for late := time.After(30 * time.Second); ; {
		redeliver(t.Context(), d, saga.Scheduler)
		select {
		case <-heard:
			return
		case <-late:
			t.Fatal("what was pending is not delivered again")
		case <-again.C:
		}
	}
}

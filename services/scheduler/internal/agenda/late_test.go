package agenda

import (
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestLateDueDateIsFiredOnce fires a timer as two schedulers do that both find it late.
func TestLateDueDateIsFiredOnce(t *testing.T) {
	server := bustest.Start(t)
	world := func() onBus { return onBus{d: service.Dependencies{Bus: server.Connect(t, saga.Scheduler)}} }
	w := world()
	at := time.Now().Add(time.Hour)
	if err := w.Arm(t.Context(), "a", at, &pawlv1.Due{Basis: "r1"}, 0); err != nil {
		t.Fatal(err)
	}
	if next, err := w.Fire(t.Context(), "a", time.Now()); err != nil || !next.Equal(at.Round(0)) {
		t.Fatalf("armed for %s: fires at %s, %v", at, next, err)
	}
	var all sync.WaitGroup
	for range 2 {
		other := world()
		all.Go(func() {
			if next, err := other.Fire(t.Context(), "a", at.Add(time.Second)); err != nil || !next.IsZero() {
				t.Errorf("next %s, %v", next, err)
			}
		})
	}
	all.Wait()
	due, seq, err := w.Armed(t.Context(), "a")
	if err != nil || seq != 0 || due.GetBasis() != "r1" {
		t.Errorf("armed: %v at %d, %v; want it fired", due, seq, err)
	}
	info, err := server.Connect(t, bus.Provisioner).JetStream.Stream(t.Context(), bus.StreamTimer)
	if err != nil {
		t.Fatal(err)
	}
	if s := info.CachedInfo().State; s.Msgs != 1 || s.LastSeq != 2 {
		t.Errorf("%d messages, the last is %d; want one firing, and no timer", s.Msgs, s.LastSeq)
	}
}

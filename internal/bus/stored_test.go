package bus_test

import (
	"errors"
	"fmt"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// A replica that was late, and asks a server that is late, too, must not take a step
// for its own that another has done: before a file there is no other guard.
func TestStepThatWasDoneIsNotDueOnAServerThatIsBehind(t *testing.T) {
	var on []*bus.Bus
	for _, server := range bustest.StartThree(t) {
		on = append(on, server.Connect(t, saga.Scheduler))
	}
	for i := range 100 {
		credential := fmt.Sprintf("c-%d", i)
		first, err := on[0].Append(t.Context(), credential, "r-1", saga.Requested, begin(1), nil, 0)
		var second uint64
		if err == nil {
			second, err = on[0].Append(t.Context(), credential, "r-1", saga.Completed, &pawlv1.Event{}, nil, first)
		}
		if errors.Is(err, bus.ErrConflict) {
			continue // another server leads: what was sent again had been stored
		}
		if err != nil {
			t.Fatal(err)
		}
		for server, b := range on {
			if rotation, seq, err := b.Newest(t.Context(), credential); err != nil || rotation != "r-1" || seq != second {
				t.Fatalf("by server %d: %s, %d, %v: not %d", server+1, rotation, seq, err, second)
			}
		}
	}
	if rotation, seq, err := on[1].Newest(t.Context(), "nobody"); err != nil || rotation != "" || seq != 0 {
		t.Errorf("of nobody: %s, %d, %v", rotation, seq, err)
	}
}

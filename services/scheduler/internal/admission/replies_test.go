package admission

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
)

// TestFloodThatNoStreamTakesFillsNoMemory: of what a stream drops as a repetition, or
// because it is full, no answer ever comes.
func TestFloodThatNoStreamTakesFillsNoMemory(t *testing.T) {
	r := &replies{waiting: map[string][]string{}, order: map[string][]waiter{}, given: map[string]*nats.Msg{}}
	r.wait(bus.Operator, "the operator's", "inbox")
	for i := range 5 * mostWait {
		r.wait(bus.Requester, fmt.Sprint(i), "inbox")
	}
	if len(r.waiting) > mostWait+1 || len(r.order[bus.Requester]) > mostWait {
		t.Errorf("%d wait, %d in order", len(r.waiting), len(r.order[bus.Requester]))
	}
	if got := r.take("the operator's", nil); len(got) != 1 {
		t.Errorf("the operator is forgotten: %v", got)
	}
	if got := r.take(fmt.Sprint(5*mostWait-1), nil); len(got) != 1 {
		t.Errorf("the newest is forgotten: %v", got)
	}
}

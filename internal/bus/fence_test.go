package bus

import (
	"testing"

	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestNextRotationBeginsBehindTheDatabasesFence: after an emergency that found the
// database ahead of the log, and of an adoption that did.
func TestNextRotationBeginsBehindTheDatabasesFence(t *testing.T) {
	begin := Record{Entry: saga.Entry{Event: saga.Requested}, Body: &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Generation: 3}}}}
	for found, want := range map[uint64]uint64{0: 3, 2: 3, 99: 99} {
		for _, e := range []saga.Event{saga.Staged, saga.Adopted} {
			staged := Record{Entry: saga.Entry{Event: e}, Body: &pawlv1.Event{Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{Fence: found}}}}
			if got := (Log{Records: []Record{begin, staged}}).Fence(); got != want {
				t.Errorf("%s found %d: %d, want %d", e, found, got, want)
			}
		}
	}
}

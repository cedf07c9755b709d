package rotator

import (
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// TestRotationAfterAnEmergencyOfARestoredLogIsFencedOff: an emergency passes a fence
// that is ahead of a restored log, and tells where it is, so that what follows does
// not begin behind it.
func TestRotationAfterAnEmergencyOfARestoredLogIsFencedOff(t *testing.T) {
	w := newWorld(t, "outrun", inventory.Alternating)
	w.rotate(saga.Alternating)
	w.sql("UPDATE pawl.fence SET generation = 99, rotation = 'r99' WHERE role = 'outrun'")

	r := w.emergency(nil)
	r.State = w.startedNow(r)
	w.do(w.Contain, r, saga.Contained)
	staged := w.do(w.Issue, r, saga.Staged).GetStaged()
	if staged.GetFence() != 99 {
		t.Fatalf("the database is at 99, the event says %d", staged.GetFence())
	}
	w.basis, w.user, w.generation = r.ID, staged.GetUser(), staged.GetFence()
	w.rotate(saga.Alternating)

	next := w.emergency(nil) // nothing is ahead of this one
	next.State = w.startedNow(next)
	w.do(w.Contain, next, saga.Contained)
	if staged := w.do(w.Issue, next, saga.Staged).GetStaged(); staged.GetFence() != 0 {
		t.Errorf("nothing is ahead, the event says %d", staged.GetFence())
	}
}

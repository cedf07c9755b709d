package rotator

import (
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// TestGuardEndsNoSessionOfTheRotationThatFollows: a rotation that begins as soon as the
// emergency has ended is quicker than the guard's next look at the log.
func TestGuardEndsNoSessionOfTheRotationThatFollows(t *testing.T) {
	w := newWorld(t, "left-behind-by-the-guard", inventory.Alternating)
	w.rotate(saga.Alternating)
	r := w.emergency(nil)
	r.State = w.startedNow(r)
	w.do(w.Contain, r, saga.Contained)
	staged := w.do(w.Issue, r, saga.Staged).GetStaged()
	log := bus.Log{Credential: w.credential.Name, Rotation: r.ID}
	for _, e := range []saga.Event{saga.Requested, saga.Contained, saga.Staged} {
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e}, Body: r.Events[e]})
	}
	g := &watch{o: w.Rotator, c: w.credential, rotation: r.ID, seen: newWitness(w.keeper, w.credential.Name, r.ID)}
	g.read(log)

	w.basis, w.user = r.ID, staged.GetUser()
	next := w.envelope(w.rotate(saga.Alternating).ID)
	application := w.connect(next.User, next.Password)
	g.pass(t.Context())
	if err := application.Ping(t.Context()); err != nil {
		t.Errorf("the application, on %s: %v", next.User, err)
	}
}

package rotator

import (
	"slices"
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// stored is a log as the bus would have it.
func stored(flow string, entries []saga.Entry) (bus.Log, saga.State) {
	log := bus.Log{Credential: "app", Rotation: "r7"}
	for _, e := range entries {
		r := bus.Record{Entry: e, Body: &pawlv1.Event{}}
		if e.Event == saga.Requested {
			r.Body.Detail = &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Flow: flow, Generation: 7}}
		}
		log.Records = append(log.Records, r)
	}
	state, err := log.Fold()
	if err != nil {
		panic(err)
	}
	return log, state
}

// fenceAfter is what the rotation has left at the fence by the end of a log.
func fenceAfter(state saga.State, log []saga.Entry) postgres.Fence {
	f := postgres.Fence{Role: "app", Generation: 6, Phase: phaseErase, Rotation: "r6"}
	pass := func(phase int) {
		f = postgres.Fence{Role: "app", Generation: 7, Phase: phase, Rotation: "r7"}
	}
	for _, e := range log {
		switch {
		case saga.Kind(state.Flow.Name) == saga.Adopt:
		case e.Event == saga.Staged && state.Flow.Urgent, e.Event == saga.Released, e.Event == saga.Retired:
			pass(phaseRetire)
		case e.Event == saga.Staged, e.Event == saga.Contained, e.Event == saga.Reinstated:
			pass(phaseBegin)
		case e.Event == saga.Unstaged:
			pass(phaseUndo)
		case e.Event == saga.Erased && !strings.HasSuffix(saga.Kind(state.Flow.Name), saga.InPlace):
			pass(phaseErase)
		}
	}
	return f
}

// nextPhase is the phase in which the rotation would pass the fence next; the last
// one if it would not.
func nextPhase(state saga.State) int {
	for _, row := range slices.Concat(state.Flow.Forward, state.Flow.Undo) {
		if next := state.Next(); next != nil && row.Name == next.Name {
			if phase, ok := phaseOf[row.Name]; ok {
				return phase
			}
		}
	}
	return phaseErase
}

// TestRestoredLogGoesOnAlthoughItsRotationHasPassedThePointOfNoReturn walks every log
// that the tables allow, and restores every shorter one to databases that have seen
// the longer: it goes on only if the next step is not fenced off, and never turns
// round, or may, once the databases have only one way.
func TestRestoredLogGoesOnAlthoughItsRotationHasPassedThePointOfNoReturn(t *testing.T) {
	o, tried := &Rotator{}, 0
	saga.Walk(func(world []saga.Entry, now saga.State, _ *saga.Step) {
		fence := fenceAfter(now, world)
		_, retired := now.Has(saga.Retired)
		_, unstaged := now.Has(saga.Unstaged)
		for n := 1; n <= len(world); n++ {
			log, state := stored(now.Flow.Name, world[:n])
			v, why := o.judgeFence(log, state, fence)
			about := slices.Collect(func(yield func(saga.Event) bool) {
				for _, e := range world {
					yield(e.Event)
				}
			})
			tried++
			next := state.Next()
			switch {
			case n == len(world) && v != restored.Agrees:
				t.Errorf("%s %v restored as it is: %s (%s)", now.Flow.Name, about, v, why)
			case v == restored.Agrees && fence.Generation == 7 && fence.Phase > nextPhase(state):
				t.Errorf("%s %v restored at %d goes on to %q, which phase %d refuses", now.Flow.Name, about, n, next.Name, fence.Phase)
			case v == restored.Agrees && retired && next != nil && !next.Retriable():
				t.Errorf("%s %v restored at %d may still fail at %q", now.Flow.Name, about, n, next.Name)
			case v == restored.Undone && (!unstaged || next.Retriable()):
				t.Errorf("%s %v restored at %d is taken for undone", now.Flow.Name, about, n)
			}
			// What came after the rotation is always ahead of it.
			if v, _ := o.judgeFence(log, state, postgres.Fence{Role: "app", Generation: 8, Phase: phaseBegin, Rotation: "r8"}); v != restored.Held {
				t.Errorf("%s %v: a later rotation, and the log is %s", now.Flow.Name, about[:n], v)
			}
			if v, _ := o.judgeFence(log, state, postgres.Fence{Role: "app", Generation: 7, Phase: phaseBegin, Rotation: "another"}); v != restored.Held && saga.Kind(now.Flow.Name) != saga.Adopt {
				t.Errorf("%s %v: another rotation of this generation, and the log is %s", now.Flow.Name, about[:n], v)
			}
		}
	})
	if tried < 500 {
		t.Errorf("only %d", tried)
	}
}

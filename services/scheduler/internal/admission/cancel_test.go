package admission

import (
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func (o *office) cancel(credential, what string) *pawlv1.Answer {
	o.t.Helper()
	return o.ask(credential, &pawlv1.Request{Action: pawlv1.Action_ACTION_CANCEL, Cancels: what, RequestedBy: "anna@laptop", Reason: "wrong week"})
}

// turnedBy is the event that rolls the newest rotation back, empty without one.
func (o *office) turnedBy(credential string) saga.Event {
	o.t.Helper()
	state, err := o.newest(credential).Fold()
	if err != nil {
		o.t.Fatal(err)
	}
	if state.Failed == nil {
		return ""
	}
	return state.Failed.Event
}

// TestCancelRollsBackFromAnyStepBeforeThePointOfNoReturnAndFromNoneAfter walks the
// rotation, and cancels it at each step.
func TestCancelRollsBackFromAnyStepBeforeThePointOfNoReturnAndFromNoneAfter(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	flow, _ := saga.FlowByName(saga.Alternating)
	for done, step := range flow.Forward {
		rotation := o.rotate("c").GetRotation()
		for range done {
			o.step("c")
		}
		answer := o.cancel("c", rotation)
		if step.Retriable() {
			o.rejected(answer, "passed its point of no return", `is at "`+step.Name+`"`, "`pawl rollback c`")
			if by := o.turnedBy("c"); by != "" {
				t.Errorf("%s at %q is rolled back by %q", rotation, step.Name, by)
			}
			o.ends("c")
			continue
		}
		o.accepted(answer)
		log := o.newest("c")
		f := log.Find(saga.Cancelled).Body.GetFailure()
		if f.GetStep() != step.Name || f.GetReason() != "cancelled by anna@laptop: wrong week" || f.GetRequest() != answer.GetRequest() {
			t.Errorf("cancelled at %q: %v", step.Name, f)
		}
		o.ends("c")
		if o.newest("c").Find(saga.RolledBack) == nil {
			t.Errorf("%s, cancelled at %q, is not rolled back", rotation, step.Name)
		}
	}
}

// TestCancelThatIsHandledAgainEndsNoOtherRotation plays a scheduler that dies before
// it acknowledges the request, at each moment that is left.
func TestCancelThatIsHandledAgainEndsNoOtherRotation(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	rotation := o.rotate("c").GetRotation()
	q := &request{id: "cancel-1", user: bus.Operator, credential: "c", body: &pawlv1.Request{Action: pawlv1.Action_ACTION_CANCEL, Cancels: rotation}}
	again := func(when string) {
		t.Helper()
		answer, _, err := o.clerk.cancel(t.Context(), q)
		if err != nil || answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED || answer.GetRotation() != rotation {
			t.Errorf("%s: %v, %v", when, answer, err)
		}
	}
	again("at first")
	again("while it is rolled back")
	o.ends("c")
	again("once it is rolled back")
	next := o.rotate("c")
	o.accepted(next)
	again("while the next one is under way")
	if by := o.turnedBy("c"); by != "" {
		t.Errorf("rotation %s is rolled back by %s", next.GetRotation(), by)
	}
	o.rejected(o.cancel("c", rotation), "has ended: it is rolled-back")
}

func TestFailedRotationThatIsCancelledIsNotTurnedTwice(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	rotation := o.rotate("c").GetRotation()
	log := o.newest("c")
	failed := &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "stage", Reason: "worker-1 is down"}}}
	if _, err := o.owners[saga.DBRotator].Append(t.Context(), "c", rotation, saga.StageFailed, failed, nil, log.LastSeq()); err != nil {
		t.Fatal(err)
	}
	answer := o.cancel("c", rotation)
	o.accepted(answer)
	if o.newest("c").Find(saga.Cancelled) != nil || !strings.Contains(answer.GetReason(), "already: stage: worker-1 is down") {
		t.Errorf("answer %v", answer)
	}
}

func TestNoEmergencyIsCancelled(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	for _, action := range []pawlv1.Action{contain, lock} {
		answer := o.askOn(bus.EmergencySubject("c"), &pawlv1.Request{Action: action})
		o.accepted(answer)
		for {
			o.rejected(o.cancel("c", answer.GetRotation()))
			if !o.step("c") {
				break
			}
		}
		if o.newest("c").Find(saga.Completed) == nil {
			t.Errorf("%s has not completed", answer.GetRotation())
		}
	}
}

// TestGroupIsCancelledAsAWholeOrNotAtAll: by any of its members, and not once one of
// them can no longer be rolled back.
func TestGroupIsCancelledAsAWholeOrNotAtAll(t *testing.T) {
	o := open(t, shop)
	o.adopts("a", "b", "d", "e")
	o.accepted(o.rotate("a"))
	o.step("a")
	o.accepted(o.cancel("b", o.newest("b").Rotation))
	for _, name := range []string{"a", "b"} {
		if by := o.turnedBy(name); by != saga.Cancelled {
			t.Errorf("%s is rolled back by %q", name, by)
		}
	}
	o.accepted(o.rotate("d"))
	for range 4 {
		o.step("e") // which is verified then
	}
	o.rejected(o.cancel("d", o.newest("d").Rotation), "of e has passed its point of no return")
	if by := o.turnedBy("d"); by != "" {
		t.Errorf("d is rolled back alone, by %s", by)
	}
}

func TestCancelMustNameWhatIsThere(t *testing.T) {
	o := open(t, shop)
	o.adopts("c", "d")
	rotation := o.rotate("c").GetRotation()
	o.rejected(o.cancel("c", ""), "cancel what?")
	o.rejected(o.cancel("c", "no-such-request"), "nothing to cancel")
	o.rejected(o.cancel("d", rotation), "nothing to cancel")
	o.rejected(o.ask("c", &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, Cancels: rotation}), "only the action cancel has it")
	o.rejected(o.ask("c", &pawlv1.Request{Action: pawlv1.Action_ACTION_CANCEL, Cancels: rotation, With: []string{"d"}}), "leave out not_before and with")
	if by := o.turnedBy("c"); by != "" {
		t.Errorf("rolled back by %s", by)
	}
}

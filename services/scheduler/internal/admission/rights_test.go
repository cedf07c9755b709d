package admission

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestStolenRequestersKeyAsksForRotationsAlone: it lies where applications run, and
// with their alerts' sources.
func TestStolenRequestersKeyAsksForRotationsAlone(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	requester := o.server.Connect(t, bus.Requester)
	ask := func(r *pawlv1.Request) *pawlv1.Answer {
		t.Helper()
		return o.askAs(requester, bus.RequestSubject("c"), r)
	}
	before := o.newest("c").LastSeq()
	for _, action := range []pawlv1.Action{pawlv1.Action_ACTION_ADOPT, pawlv1.Action_ACTION_ROLLBACK, pawlv1.Action_ACTION_RESUME, pawlv1.Action_ACTION_CANCEL} {
		o.rejected(ask(&pawlv1.Request{Action: action}), actionName(action)+" is the operator's: requester.nk may ask for rotate and plan")
	}
	for action := range isEmergency {
		o.rejected(ask(&pawlv1.Request{Action: action}), "is an emergency")
	}
	o.rejected(ask(&pawlv1.Request{NotBefore: timestamppb.New(time.Now().Add(time.Hour))}), "not_before is the operator's")
	if o.newest("c").LastSeq() != before {
		t.Error("something began")
	}
	if answer := ask(&pawlv1.Request{Action: pawlv1.Action_ACTION_PLAN}); answer.GetOutcome() == pawlv1.Outcome_OUTCOME_REJECTED {
		t.Errorf("a plan: %v", answer)
	}
	o.accepted(ask(&pawlv1.Request{RequestedBy: "operator"}))
	if as := o.newest("c").Records[0].Body.GetRequested().GetAuthenticatedAs(); as != bus.Requester {
		t.Errorf("the requester's rotation was asked for by %q", as)
	}
	o.ends("c")
	o.accepted(o.rotate("c"))
	if as := o.newest("c").Records[0].Body.GetRequested().GetAuthenticatedAs(); as != bus.Operator {
		t.Errorf("the operator's rotation was asked for by %q", as)
	}
}

// TestStolenPasswordDoesNotComeBackByARollback: neither after a rotation that says
// why, nor after an emergency.
func TestStolenPasswordDoesNotComeBackByARollback(t *testing.T) {
	o := open(t, shop)
	o.adopts("c", "a", "b")
	o.accepted(o.ask("c", &pawlv1.Request{Reason: "The key may be Compromised (ticket 7)"}))
	o.ends("c")
	rollback := &pawlv1.Request{Action: pawlv1.Action_ACTION_ROLLBACK}
	o.rejected(o.ask("c", rollback), "its predecessor may be stolen", "pawl rotate")
	o.accepted(o.rotate("c"))
	o.ends("c")
	o.accepted(o.ask("c", rollback)) // to what replaced the stolen one

	o.accepted(o.askOn(bus.EmergencySubject("b"), &pawlv1.Request{}))
	o.ends("b")
	o.rejected(o.ask("b", rollback), "was no completed rotation")
}

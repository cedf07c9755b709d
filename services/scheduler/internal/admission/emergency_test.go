package admission

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	contain = pawlv1.Action_ACTION_CONTAIN
	lock    = pawlv1.Action_ACTION_LOCK
	unlock  = pawlv1.Action_ACTION_UNLOCK
)

func (o *office) emergency(action pawlv1.Action) *pawlv1.Answer {
	o.t.Helper()
	return o.askOn(bus.EmergencySubject("shop"), &pawlv1.Request{Action: action, Reason: "found in a log", RequestedBy: "alice"})
}

func TestEmergencyEndsARotationAtAnyStepInOneAppend(t *testing.T) {
	o := open(t, map[string]string{"shop": ""})
	o.adopts("shop")
	flow, _ := saga.FlowByName(saga.Alternating)
	for done := range len(flow.Forward) + 1 {
		o.accepted(o.rotate("shop"))
		ordinary := o.newest("shop")
		for range done {
			o.step("shop")
		}
		before := o.newest("shop")
		state, err := before.Fold()
		if err != nil {
			t.Fatal(err)
		}
		a := o.emergency(0)
		o.accepted(a)
		log := o.newest("shop")
		begin := log.Records[0].Body.GetRequested()
		if log.Rotation != a.GetRotation() || begin.GetFlow() != saga.Emergency || !bus.Urgent(log.Records[0].Header) {
			t.Fatalf("after %d steps: newest is %s (%s)", done, log.Rotation, begin.GetFlow())
		}
		if want := map[bool]string{true: ordinary.Rotation, false: ""}[state.Open()]; begin.GetSupersedes() != want {
			t.Errorf("after %d steps: supersedes %q, want %q", done, begin.GetSupersedes(), want)
		}
		if begin.GetGeneration() <= ordinary.Records[0].Body.GetRequested().GetGeneration() {
			t.Errorf("generation %d does not go on", begin.GetGeneration())
		}
		o.rejected(o.emergency(contain), "under way already")
		o.rejected(o.rotate("shop"), "still running")
		o.ends("shop")
	}
}

// Who breaks the glass while an emergency is on its way back takes the password
// that it has issued: without another one nobody would come back.
func TestBrokenGlassGoesBeforeAnEmergencyThatHadContained(t *testing.T) {
	o := open(t, map[string]string{"shop": ""})
	o.adopts("shop")
	broken := func() *pawlv1.Answer {
		return o.askOn(bus.EmergencySubject("shop"), &pawlv1.Request{Action: contain, GlassBroken: true})
	}
	for done := range 7 {
		o.accepted(o.emergency(contain))
		first := o.newest("shop")
		for range done {
			o.step("shop")
		}
		if done == 0 {
			o.rejected(broken(), "under way already", "pawl lock shop", "pawl unlock shop") // it is yet to issue
			o.step("shop")
		}
		o.accepted(broken())
		if begin := o.newest("shop").Records[0].Body.GetRequested(); begin.GetSupersedes() != first.Rotation {
			t.Errorf("after %d steps: supersedes %q, want %s", done, begin.GetSupersedes(), first.Rotation)
		}
		o.ends("shop")
	}
	o.rejected(o.ask("shop", &pawlv1.Request{GlassBroken: true}), "glass_broken")
}

func TestLockedStaysLockedUntilAPersonUnlocksIt(t *testing.T) {
	o := open(t, map[string]string{"shop": ""})
	o.adopts("shop")
	o.rejected(o.emergency(unlock), "not locked")
	o.accepted(o.emergency(contain))
	o.accepted(o.emergency(lock)) // even an emergency that is under way
	o.rejected(o.emergency(unlock), "still under way")
	o.ends("shop")
	o.rejected(o.emergency(contain), "is locked", "found in a log", "pawl unlock shop")
	o.rejected(o.emergency(lock), "is locked")
	for _, action := range []pawlv1.Action{pawlv1.Action_ACTION_ROTATE, pawlv1.Action_ACTION_ADOPT, pawlv1.Action_ACTION_ROLLBACK} {
		o.rejected(o.ask("shop", &pawlv1.Request{Action: action}), "is locked")
	}
	o.accepted(o.emergency(unlock))
	begin := o.newest("shop").Records[0].Body.GetRequested()
	if begin.GetFlow() != saga.Emergency || begin.GetBareSince() == nil || begin.GetBasisUser() != "shop" {
		t.Errorf("unlock begins with %v", begin)
	}
	o.ends("shop")
	o.accepted(o.rotate("shop"))
}

func TestEmergenciesAreOnlyTakenWhereFewMayPublish(t *testing.T) {
	o := open(t, map[string]string{"shop": ""})
	for _, action := range []pawlv1.Action{contain, lock, unlock} {
		o.rejected(o.ask("shop", &pawlv1.Request{Action: action}), "pawl.emergency.shop")
	}
	o.rejected(o.emergency(pawlv1.Action_ACTION_ROTATE), "pawl.request.shop")
	o.rejected(o.askOn(bus.EmergencySubject("shop"), &pawlv1.Request{With: []string{"other"}}), "one credential")
	o.rejected(o.askOn(bus.EmergencySubject("nobody"), &pawlv1.Request{}), "unknown credential")
	o.accepted(o.emergency(contain)) // what was never adopted can be stolen, too
}

// meddled is JetStream with a log in which something happens before the newest event
// of a credential is read.
type meddled struct {
	jetstream.JetStream
	before func()
}

type meddledLog struct {
	jetstream.Stream
	before func()
}

func (m meddled) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := m.JetStream.Stream(ctx, name)
	if name != bus.StreamLog {
		return s, err
	}
	return meddledLog{s, m.before}, err
}

func (m meddledLog) GetLastMsgForSubject(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	m.before()
	return m.Stream.GetLastMsgForSubject(ctx, subject)
}

// TestEmergencyThatAnotherSchedulerHasJustBegunDoesNotRefuseItself: it began between
// the two looks.
func TestEmergencyThatAnotherSchedulerHasJustBegunDoesNotRefuseItself(t *testing.T) {
	o := open(t, map[string]string{"shop": ""})
	q := &request{id: "r", user: bus.Operator, credential: "shop", rotation: "20261130-120000-abcde", at: time.Now(), delivered: 1, emergency: true, body: &pawlv1.Request{Action: contain}}
	clerk := *o.clerk
	clerk.d.Bus = o.server.Connect(t, saga.Scheduler)
	clerk.d.Bus.JetStream = meddled{clerk.d.Bus.JetStream, sync.OnceFunc(func() {
		same := *q
		answer, _, err := o.clerk.emergency(t.Context(), &same)
		if err != nil {
			t.Error(err)
		}
		o.accepted(answer)
	})}
	answer, _, err := clerk.emergency(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	o.accepted(answer)
	if log := o.newest("shop"); answer.GetRotation() != q.rotation || len(log.Records) != 1 {
		t.Errorf("%v, %d events", answer, len(log.Records))
	}
}

// TestWhatTheServerReadsOutIsNoEmergency: on a server with the accounts of a version
// before, anybody may have it read out there what he stored elsewhere.
func TestWhatTheServerReadsOutIsNoEmergency(t *testing.T) {
	o := open(t, map[string]string{"shop": ""})
	id := strings.ToLower(rand.Text())
	answers, err := o.operator.NATS.SubscribeSync(bus.AnswerSubject(id))
	if err == nil {
		err = o.operator.NATS.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	readOut := nats.Header{jetstream.MsgIDHeader: {id}, jetstream.StreamHeader: {bus.StreamNote}, jetstream.SequenceHeader: {"1"}}
	if _, err := o.operator.JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.EmergencySubject("shop"), Data: []byte(`{"action":"lock","reason":"mine"}`), Header: readOut}); err != nil {
		t.Fatal(err)
	}
	m, err := answers.NextMsg(20 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	answer := &pawlv1.Answer{}
	if err := bus.Decode(m.Header, m.Data, answer); err != nil {
		t.Fatal(err)
	}
	o.rejected(answer, "read it out")
}

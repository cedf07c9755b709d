package admission

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// openStore is an office with two clusters: a1 and a2 share a consumer; own is the
// credential with which Pawl itself logs in.
func openStore(t *testing.T) *office {
	o := open(t, map[string]string{"a1": "", "a2": "", "b1": "", "own": ""})
	a := &inventory.Cluster{Name: "alpha", Environment: "production", Admin: inventory.Account{User: "own", Credential: "own"}}
	b := &inventory.Cluster{Name: "beta", Environment: "staging"}
	o.inventory.Clusters = map[string]*inventory.Cluster{"alpha": a, "beta": b}
	o.inventory.Environments = map[string]inventory.Environment{"production": {}, "staging": {}, "empty": {}}
	for name, c := range o.inventory.Credentials {
		if c.Cluster = a; name == "b1" {
			c.Cluster, c.Consumers = b, nil
		}
	}
	return o
}

func (o *office) emergencyOf(s *pawlv1.Selection) *pawlv1.Answer {
	o.t.Helper()
	return o.askOn(bus.EmergencySubject(bus.Several), &pawlv1.Request{Selection: s, Reason: "the store leaked", RequestedBy: "anna"})
}

func (o *office) record(rotation string) *pawlv1.Note {
	o.t.Helper()
	record, err := o.scheduler.Several(o.t.Context(), rotation)
	if err != nil {
		o.t.Fatal(err)
	}
	return record
}

func TestEmergencyOfSeveralBeginsEachOnceUnderOneID(t *testing.T) {
	o := openStore(t)
	o.adopts("a1", "a2", "b1")
	for name, c := range map[string]struct {
		selection *pawlv1.Selection
		want      []string
	}{
		"names":       {&pawlv1.Selection{Credentials: []string{"b1", "a1"}}, []string{"a1", "b1"}},
		"cluster":     {&pawlv1.Selection{Clusters: []string{"alpha"}}, []string{"a1", "a2"}},
		"environment": {&pawlv1.Selection{Environments: []string{"staging"}}, []string{"b1"}},
		"all":         {&pawlv1.Selection{All: true}, []string{"a1", "a2", "b1"}},
	} {
		answer := o.emergencyOf(c.selection)
		o.accepted(answer)
		names, err := o.scheduler.CredentialsOf(t.Context(), answer.GetRotation())
		if err != nil || !slices.Equal(names, c.want) {
			t.Errorf("%s: began of %v, %v, want %v", name, names, err, c.want)
		}
		record := o.record(answer.GetRotation())
		if !slices.Equal(record.GetCredentials(), c.want) || record.GetActor() != "anna" || !strings.Contains(record.GetText(), "the store leaked") {
			t.Errorf("%s: recorded %v", name, record)
		}
		for _, credential := range c.want {
			log := o.newest(credential)
			begin := log.Records[0].Body.GetRequested()
			if log.Rotation != answer.GetRotation() || begin.GetFlow() != saga.Emergency || !bus.Urgent(log.Records[0].Header) || begin.GetAuthenticatedAs() != bus.Operator {
				t.Errorf("%s: %s is %v", name, credential, begin)
			}
			if shares := len(c.want) > 1 && credential[0] == 'a' && slices.Contains(c.want, "a2"); shares != slices.Equal(begin.GetGroup(), []string{"a1", "a2"}) {
				t.Errorf("%s: %s restarts together with %v", name, credential, begin.GetGroup())
			}
			o.ends(credential)
		}
	}
}

func TestEmergencyOfSeveralRefusesABadSelectionBeforeAnythingBegins(t *testing.T) {
	o := openStore(t)
	o.rejected(o.emergencyOf(&pawlv1.Selection{Clusters: []string{"alhpa"}}), `unknown cluster "alhpa"`, "did you mean alpha?")
	o.rejected(o.emergencyOf(&pawlv1.Selection{Environments: []string{"stagin"}, All: true}), "did you mean staging?")
	o.rejected(o.emergencyOf(&pawlv1.Selection{Credentials: []string{"a1", "a3"}}), `unknown credential "a3"`)
	o.rejected(o.emergencyOf(&pawlv1.Selection{}), "no credential is selected")
	o.rejected(o.emergencyOf(&pawlv1.Selection{Environments: []string{"empty"}}), "no credential is selected")
	o.rejected(o.emergencyOf(&pawlv1.Selection{Credentials: []string{"a1", "own"}}), "Pawl itself logs in with own")
	o.rejected(o.emergencyOf(nil), "selection")
	o.rejected(o.askOn(bus.EmergencySubject("a1"), &pawlv1.Request{Selection: &pawlv1.Selection{All: true}}), "selection")
	o.rejected(o.askOn(bus.RequestSubject("a1"), &pawlv1.Request{Selection: &pawlv1.Selection{All: true}}), "selection")
	o.rejected(o.askOn(bus.EmergencySubject(bus.Several), &pawlv1.Request{Action: lock, Selection: &pawlv1.Selection{All: true}}), "lock is of one credential")
	for _, name := range []string{"a1", "a2", "b1", "own"} {
		if log := o.newest(name); len(log.Records) > 0 {
			t.Errorf("%s began: %v", name, log)
		}
	}
}

func TestEmergencyOfAllLeavesPawlsOwnAdminOutAndNamesIt(t *testing.T) {
	o := openStore(t)
	answer := o.emergencyOf(&pawlv1.Selection{Clusters: []string{"alpha"}})
	o.accepted(answer)
	if !strings.Contains(answer.GetReason(), "left out, since Pawl itself logs in with it: own") || !slices.Equal(o.record(answer.GetRotation()).GetLaggards(), []string{"own"}) {
		t.Errorf("%v", answer)
	}
	o.rejected(o.askOn(bus.EmergencySubject("own"), &pawlv1.Request{}), "lock itself out")
}

func TestOneThatCannotBeginKeepsNoOtherFromItsEmergency(t *testing.T) {
	o := openStore(t)
	before := o.askOn(bus.EmergencySubject("a1"), &pawlv1.Request{Action: contain})
	o.accepted(before)
	answer := o.emergencyOf(&pawlv1.Selection{All: true})
	o.accepted(answer)
	if !strings.Contains(answer.GetReason(), "2 of 3 credentials") || !strings.Contains(answer.GetReason(), "emergency "+before.GetRotation()+" of a1 is under way already") {
		t.Errorf("%v", answer)
	}
	if log := o.newest("a1"); log.Rotation != before.GetRotation() {
		t.Errorf("a1 is at %s", log.Rotation)
	}
	refusals := 0
	_, err := o.operator.Scan(t.Context(), bus.StreamNote, bus.NoteSubject(saga.Scheduler), bus.Start{}, refusalsOf("a1", &refusals))
	if err != nil || refusals != 1 {
		t.Errorf("%d refusals are noted, %v", refusals, err)
	}
}

// TestEmergencyOfSeveralThatIsDeliveredAgainBeginsOnlyTheRest: the scheduler died
// between two of them, and pawl.yaml has changed since.
func TestEmergencyOfSeveralThatIsDeliveredAgainBeginsOnlyTheRest(t *testing.T) {
	o := openStore(t)
	q := &request{id: "r", user: bus.Operator, credential: bus.Several, rotation: "20261130-120000-abcde", at: time.Now(), delivered: 1, emergency: true,
		body: &pawlv1.Request{Action: contain, Selection: &pawlv1.Selection{Clusters: []string{"alpha"}}}}
	dying, die := context.WithCancel(t.Context())
	record, refusal := o.clerk.newRecord(q)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if _, err := o.scheduler.PublishAfter(dying, bus.SeveralSubject(q.rotation), record, bus.SeveralSubject(q.rotation), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.clerk.beginAll(dying, q, record.GetCredentials()[:1]); err != nil {
		t.Fatal(err)
	}
	die()
	if _, _, err := o.clerk.beginAll(dying, q, record.GetCredentials()); !errors.Is(err, context.Canceled) {
		t.Errorf("of a dead scheduler: %v", err)
	}
	first := o.newest("a1").LastSeq()
	delete(o.inventory.Credentials, "b1")
	o.inventory.Credentials["a2"].Cluster = o.inventory.Clusters["beta"] // no longer selected
	for range 2 {
		answer := o.settled(func() (*pawlv1.Answer, time.Duration, error) { return o.clerk.several(t.Context(), q) })
		o.accepted(answer)
	}
	for _, name := range []string{"a1", "a2"} {
		if log := o.newest(name); log.Rotation != q.rotation || len(log.Records) != 1 {
			t.Errorf("%s: %v", name, log)
		}
	}
	if o.newest("a1").LastSeq() != first {
		t.Error("a1 began a second time")
	}
}

// TestCredentialWhoseLogCannotBeReadStaysInItsEmergency: the request is told how it
// stands, is not acknowledged, and begins the emergency once the log can be read.
func TestCredentialWhoseLogCannotBeReadStaysInItsEmergency(t *testing.T) {
	o := openStore(t)
	clerk := *o.clerk
	clerk.patience = 0 // told at once
	q := &request{id: "r", user: bus.Operator, credential: bus.Several, rotation: "20261130-120000-abcde", at: time.Now().Add(-time.Minute), delivered: 1, emergency: true,
		body: &pawlv1.Request{Action: contain, Selection: &pawlv1.Selection{Clusters: []string{"alpha", "beta"}}}}
	stray, err := o.owners[saga.DBRotator].JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.LogSubject("b1", "stray", saga.Staged)})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		answer, again, err := clerk.several(t.Context(), q)
		if err != nil || again == 0 {
			t.Fatalf("the request is settled, %v, %v", answer, err)
		}
		o.accepted(answer)
		if reason := answer.GetReason(); !strings.Contains(reason, "2 of 3 credentials") || !strings.Contains(reason, "tried until it is known: b1") {
			t.Errorf("told %q", reason)
		}
	}
	refusals := 0
	if _, err := o.operator.Scan(t.Context(), bus.StreamNote, bus.NoteSubject(saga.Scheduler), bus.Start{}, refusalsOf("b1", &refusals)); err != nil || refusals > 0 {
		t.Errorf("%d refusals are noted, %v", refusals, err)
	}
	begin := &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Generation: 1, Role: "b1"}}}
	if _, err := o.scheduler.Append(t.Context(), "b1", "readable", saga.Requested, begin, nil, stray.Sequence); err != nil {
		t.Fatal(err)
	}
	answer := o.settled(func() (*pawlv1.Answer, time.Duration, error) { return clerk.several(t.Context(), q) })
	o.accepted(answer)
	if log := o.newest("b1"); log.Rotation != q.rotation || !strings.Contains(answer.GetReason(), "3 of 3 credentials") {
		t.Errorf("b1 is at %s; %v", log.Rotation, answer)
	}
}

func TestRequesterMayCutNobodyOff(t *testing.T) {
	o := openStore(t)
	requester := o.server.Connect(t, bus.Requester)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := requester.Publish(ctx, bus.EmergencySubject(bus.Several), &pawlv1.Request{Selection: &pawlv1.Selection{All: true}}, nil); err == nil {
		t.Error("the requester may publish an emergency of all")
	}
	if log := o.newest("a1"); len(log.Records) > 0 {
		t.Error("it began")
	}
}

// refusalsOf counts the notes about a credential's refusals.
func refusalsOf(credential string, n *int) func(*jetstream.RawStreamMsg) bool {
	return func(m *jetstream.RawStreamMsg) bool {
		note := &pawlv1.Note{}
		if bus.Decode(m.Header, m.Data, note) == nil && note.GetKind() == "refused" && note.GetCredential() == credential {
			*n++
		}
		return true
	}
}

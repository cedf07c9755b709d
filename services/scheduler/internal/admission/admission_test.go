package admission

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var shop = map[string]string{"a": "shop", "b": "shop", "c": "", "d": "store", "e": "store"}

// began asserts who has a rotation of that id, and that each names them all.
func (o *office) began(rotation string, want ...string) {
	o.t.Helper()
	var have []string
	for name := range o.inventory.Credentials {
		log := o.newest(name)
		if log.Rotation != rotation {
			continue
		}
		have = append(have, name)
		group := want
		if len(want) == 1 {
			group = nil
		}
		if got := log.Records[0].Body.GetRequested().GetGroup(); !slices.Equal(got, group) {
			o.t.Errorf("%s turns with %v, want %v", name, got, group)
		}
	}
	if slices.Sort(have); !slices.Equal(have, want) {
		o.t.Errorf("%v turn, want %v", have, want)
	}
}

func TestAnyMemberTurnsItsGroupAndWhoIsNamedBesideIt(t *testing.T) {
	o := open(t, shop)
	o.adopts("a", "b", "c", "d", "e")
	for _, c := range []struct {
		credential string
		with, want []string
	}{
		{"c", nil, []string{"c"}},
		{"b", nil, []string{"a", "b"}},
		{"c", []string{"b"}, []string{"a", "b", "c"}},
		{"e", []string{"c", "a"}, []string{"a", "b", "c", "d", "e"}},
		{"c", []string{"c"}, []string{"c"}},
	} {
		answer := o.rotate(c.credential, c.with...)
		o.accepted(answer)
		o.began(answer.GetRotation(), c.want...)
		o.ends(c.want...)
	}
	// An adoption is of one: the group is no reason to touch another.
	answer := o.ask("a", &pawlv1.Request{Action: pawlv1.Action_ACTION_ADOPT})
	o.accepted(answer)
	o.began(answer.GetRotation(), "a")
}

func TestOneThatCannotTurnKeepsAllBack(t *testing.T) {
	o := open(t, shop)
	o.adopts("a", "c", "d", "e")
	before := o.newest("a").LastSeq()
	o.rejected(o.rotate("a"), "b is not adopted")
	o.adopts("b")
	o.rejected(o.rotate("a", "zebra"), `unknown credential "zebra"`)
	o.refuses(saga.DBRotator, "b", "worker-1", "worker-1: connection refused")
	o.rejected(o.rotate("a", "c"), "b: db-rotator: worker-1: connection refused")
	if o.newest("a").LastSeq() != before || o.newest("c").Rotation != "" && o.newest("c").Records[0].Body.GetRequested().GetAction() == pawlv1.Action_ACTION_ROTATE {
		t.Error("something began")
	}
	running := o.rotate("c")
	o.accepted(running)
	answer := o.rotate("d", "c")
	o.rejected(answer, "of c is still running")
	if answer.GetRotation() != running.GetRotation() {
		t.Errorf("in the way is %q", answer.GetRotation())
	}
}

func TestWithIsOfRotationsAlone(t *testing.T) {
	o := open(t, shop)
	o.adopts("a", "c")
	for _, action := range []pawlv1.Action{pawlv1.Action_ACTION_ADOPT, pawlv1.Action_ACTION_ROLLBACK, pawlv1.Action_ACTION_RESUME} {
		o.rejected(o.ask("a", &pawlv1.Request{Action: action, With: []string{"c"}}), "one credential at a time", "leave out `with`")
	}
}

func TestConsumersDescribedTwiceAreRefused(t *testing.T) {
	o := open(t, shop)
	o.adopts("c", "d", "e")
	o.inventory.Credentials["c"].Consumers[0].Restart.Command = &inventory.Command{Argv: []string{"true"}}
	o.rejected(o.rotate("c", "d"), "consumer api", "for c and d")
	o.accepted(o.rotate("d"))
}

func TestAtMostSoManyTurnTogether(t *testing.T) {
	many := map[string]string{}
	for i := range inventory.MaxTogether + 1 {
		many[fmt.Sprintf("m-%d", i)] = "many"
	}
	o := open(t, many)
	o.rejected(o.rotate("m-0"), "65 credentials", "at most 64")
}

func TestRacingRequestsBeginOneRotation(t *testing.T) {
	o := open(t, shop)
	o.adopts("a", "b", "c")
	answers := make(chan *pawlv1.Answer, 6)
	for i := range cap(answers) {
		go func() { answers <- o.rotate([]string{"a", "b", "c"}[i%3], "c") }()
	}
	began := ""
	for range cap(answers) {
		if a := <-answers; a.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED {
			if began != "" {
				t.Errorf("%s and %s began", began, a.GetRotation())
			}
			began = a.GetRotation()
		}
	}
	if log := o.newest("c"); log.Rotation != began {
		t.Errorf("c turns in %s, not in %s", log.Rotation, began)
	}
}

// A replica that was stopped while it looked, and given up, wakes up and finds in
// the way what another one has begun for the same request.
func TestReplicaThatWakesUpLateRejectsNothingThatHasBegun(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	q := &request{id: "q", credential: "c", rotation: "r-1", at: time.Now(), delivered: 1, body: &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE}}
	members, err := o.clerk.together(q)
	if err != nil {
		t.Fatal(err)
	}
	o.refuses(saga.Verifier, "c", "primary", "is down")
	o.meanwhile = func() {
		begin := &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Generation: 2, Role: "c"}}}
		if _, err := o.scheduler.Append(t.Context(), "c", "r-1", saga.Requested, begin, nil, members[0].newest.LastSeq()); err != nil {
			t.Error(err)
		}
	}
	answer, _, err := o.clerk.admit(t.Context(), q, members)
	if err != nil || answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED || answer.GetRotation() != "r-1" {
		t.Errorf("%v, %v", answer, err)
	}
}

// A preflight may take longer than a message is left to one replica, which is a
// second here.
func TestRequestIsLookedAtOnceHoweverLongThatTakes(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	o.mu.Lock()
	before := len(o.asked)
	o.meanwhile = func() { time.Sleep(2500 * time.Millisecond) } // a node that is slow
	o.mu.Unlock()
	o.accepted(o.rotate("c"))
	o.mu.Lock()
	defer o.mu.Unlock()
	// The db-rotator is asked again in any case; who is not slow need not be.
	looks := slices.DeleteFunc(o.asked[before:], func(asked string) bool { return !strings.HasPrefix(asked, saga.Verifier) })
	if len(looks) != 1 {
		t.Errorf("the verifier was asked %d times", len(looks))
	}
}

func TestPlanIsOfAllAndTouchesNothing(t *testing.T) {
	o := open(t, shop)
	o.adopts("a")
	o.inventory.Credentials["b"].Strategy = inventory.InPlace
	plan := o.ask("a", &pawlv1.Request{Action: pawlv1.Action_ACTION_PLAN, With: []string{"c"}})
	o.rejected(plan, "b is not adopted", "c is not adopted")
	o.adopts("b", "c")
	before := o.newest("c").LastSeq()
	plan = o.ask("a", &pawlv1.Request{Action: pawlv1.Action_ACTION_PLAN, With: []string{"c"}})
	o.accepted(&pawlv1.Answer{Outcome: plan.GetOutcome(), Rotation: "none"})
	var lines []string
	for _, c := range plan.GetPlan() {
		lines = append(lines, c.GetTarget()+" "+c.GetFinding())
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"a: all is well", "c: all is well", "a: stage step: give the idle", "b: stage step: replace", "b warning: in-place", "consumer api restarts once, for a, b, c"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "a-own") || o.newest("c").LastSeq() != before {
		t.Errorf("touched, or too much told:\n%s", text)
	}
}

func TestGroupIsOneTrace(t *testing.T) {
	o := open(t, shop)
	o.adopts("a", "b", "c")
	o.spans.Reset()
	o.accepted(o.rotate("a", "c"))
	spans := o.spans.GetSpans()
	root := spans[slices.IndexFunc(spans, func(s tracetest.SpanStub) bool { return s.Name == "group requested" })]
	for _, s := range spans {
		if s.Name == "requested" && s.Parent.SpanID() != root.SpanContext.SpanID() {
			t.Errorf("%v hangs elsewhere", s.Attributes)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		if p := o.newest(name).Records[0].Header.Get("traceparent"); !strings.Contains(p, root.SpanContext.TraceID().String()) || strings.Contains(p, root.SpanContext.SpanID().String()) {
			t.Errorf("%s continues %s", name, p)
		}
	}
}

func TestRollbackThatNobodyCouldOpenIsRefused(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	basis := o.newest("c").Rotation
	o.accepted(o.rotate("c"))
	o.ends("c")
	current := o.newest("c").Rotation
	o.mu.Lock()
	o.asked = nil
	o.mu.Unlock()
	o.refuses(saga.SecretPublisher, "c", "sealed credential", "no key opens it")
	o.refuses(saga.Restarter, "c", "consumer api", "is dead")
	rollback := &pawlv1.Request{Action: pawlv1.Action_ACTION_ROLLBACK}
	o.rejected(o.ask("c", rollback), "secret-publisher: sealed credential: no key opens it")
	o.mu.Lock()
	slices.Sort(o.asked)
	if want := []string{"db-rotator c " + current + " " + basis, "secret-publisher c " + current + " " + basis}; !slices.Equal(o.asked, want) {
		t.Errorf("asked %q, want %q", o.asked, want)
	}
	delete(o.refuse, "secret-publisher c")
	o.mu.Unlock()
	o.accepted(o.ask("c", rollback)) // although a consumer is dead: it may be the reason
}

func TestRefusalNamesItsTargetOnce(t *testing.T) {
	got := refusals([]*pawlv1.Check{{Service: "s", Target: "n", Finding: "n: down", Refused: true}, {Service: "s", Target: "n", Finding: "no", Refused: true}, {Service: "s", Target: "n", Finding: "well"}}, nil)
	if want := "s: n: down; s: n: no"; got != want {
		t.Errorf("got %q", got)
	}
}

func TestRefusalIsNotedWithWhoAskedAndWhy(t *testing.T) {
	o := open(t, shop)
	o.rejected(o.ask("c", &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, RequestedBy: "anna", Reason: "it is friday"}), "not adopted")
	o.rejected(o.askOn(bus.EmergencySubject("zebra"), &pawlv1.Request{RequestedBy: "otto", Reason: "stolen"}), "unknown credential")
	stream, err := o.operator.Stream(t.Context(), bus.StreamNote)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ credential, actor, asked, refused, why string }{
		{"c", "anna", "request ", "rotate: c is not adopted", "(asked because: it is friday)"},
		{"zebra", "otto", "emergency ", "contain: unknown credential", "(asked because: stolen)"},
	} {
		m, err := stream.GetMsg(t.Context(), uint64(i)+1)
		if err != nil {
			t.Fatal(err)
		}
		n := &pawlv1.Note{}
		if err := bus.Decode(m.Header, m.Data, n); err != nil {
			t.Fatal(err)
		}
		if n.GetKind() != "refused" || n.GetCredential() != want.credential || n.GetActor() != want.actor || !strings.HasPrefix(n.GetText(), want.asked) ||
			!strings.Contains(n.GetText(), want.refused) || !strings.HasSuffix(n.GetText(), want.why) {
			t.Errorf("noted %v, want %v", n, want)
		}
	}
}

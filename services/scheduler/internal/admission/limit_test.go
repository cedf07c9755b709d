package admission

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestFloodOfRefusedRequestsFillsNeitherStoreNorMemory: every refusal was kept for
// good, with an answer, a note and a record.
func TestFloodOfRefusedRequestsFillsNeitherStoreNorMemory(t *testing.T) {
	const n = 10_000
	o := open(t, shop)
	requester := o.server.Connect(t, bus.Requester)
	provisioner := o.server.Connect(t, bus.Provisioner)
	stored := func(streams ...string) (bytes, messages uint64) {
		t.Helper()
		for _, name := range streams {
			s, err := provisioner.JetStream.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			bytes, messages = bytes+s.CachedInfo().State.Bytes, messages+s.CachedInfo().State.Msgs
		}
		return bytes, messages
	}
	all := []string{bus.StreamAnswer, bus.StreamNote, bus.StreamDead, bus.StreamLog, bus.StreamAsked}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	bytes, _ := stored(all...)
	memory := heap()
	for i := range n { // not for a credential that there is; and half of them no requests at all
		body := []byte("{}")
		if i%2 == 0 {
			body = []byte("please rotate")
		}
		if err := requester.NATS.PublishRequest(bus.RequestSubject("nobodys"), requester.NATS.NewInbox(), body); err != nil {
			t.Fatal(err)
		}
		if i%500 == 0 {
			if err := requester.NATS.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for until := time.Now().Add(5 * time.Minute); ; time.Sleep(50 * time.Millisecond) { // nobody tells
		if _, waiting := stored(bus.StreamAsked); waiting == 0 {
			break
		}
		if time.Now().After(until) {
			t.Fatal("requests are left")
		}
	}
	// The last of all is answered as clearly as the first. (The server forgets after two
	// minutes where an answer goes, so it is asked for once those before are answered.)
	inbox := requester.NATS.NewInbox()
	answers, err := requester.NATS.SubscribeSync(inbox)
	if err == nil {
		err = requester.NATS.PublishRequest(bus.RequestSubject("the-last"), inbox, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	answer := o.answered(answers)
	o.rejected(answer, "")
	if why := answer.GetReason(); !strings.Contains(why, `unknown credential "the-last"`) && !strings.Contains(why, "too many requests of requester") {
		t.Errorf("the last: %q", why)
	}
	after, _ := stored(all...)
	if grown := int64(after) - int64(bytes); grown > 1<<20 {
		t.Errorf("%d refused requests grew the streams by %d bytes", n, grown)
	}
	if grown := int64(heap()) - int64(memory); grown > 20<<20 {
		t.Errorf("%d refused requests grew the process by %d bytes", n, grown)
	}
	summed := o.clerk.limits.summaries()
	if len(summed) != 1 || summed[0].note().GetActor() != bus.Requester || !strings.Contains(summed[0].note().GetText(), "requests of requester began nothing, beside those") {
		t.Errorf("the trail is told %v", summed)
	}
	// Nobody else is kept waiting.
	o.adopts("c")
}

// answered is the first Answer that arrives, after the stream's acknowledgement.
func (o *office) answered(answers *nats.Subscription) *pawlv1.Answer {
	o.t.Helper()
	for {
		m, err := answers.NextMsg(2 * time.Minute)
		if err != nil {
			o.t.Fatal(err)
		}
		answer := &pawlv1.Answer{}
		if m.Header.Get("Content-Type") != "" && bus.Decode(m.Header, m.Data, answer) == nil {
			return answer
		}
	}
}

// TestPlansOfAFloodAreToldAndNotKept: a plan begins nothing, and can be asked for as often
// as anybody likes.
func TestPlansOfAFloodAreToldAndNotKept(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	for o.clerk.limits.keeps(bus.Requester, "") {
	}
	answers, err := o.scheduler.JetStream.Stream(t.Context(), bus.StreamAnswer)
	if err != nil {
		t.Fatal(err)
	}
	before := answers.CachedInfo().State.LastSeq
	requester := o.server.Connect(t, bus.Requester)
	inbox := requester.NATS.NewInbox()
	told, err := requester.NATS.SubscribeSync(inbox)
	if err == nil {
		err = requester.NATS.PublishRequest(bus.RequestSubject("c"), inbox, []byte(`{"action":"ACTION_PLAN"}`))
	}
	if err != nil {
		t.Fatal(err)
	}
	if plan := o.answered(told); len(plan.GetPlan()) == 0 {
		t.Errorf("the plan: %v", plan)
	}
	if info, err := answers.Info(t.Context()); err != nil || info.State.LastSeq != before {
		t.Errorf("%d answers were stored: %v", info.State.LastSeq-before, err)
	}
}

package admission

import (
	"crypto/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// later asks for a rotation that waits, and returns its id and its answers to come.
func (o *office) later(credential string, wait time.Duration) (id string, answers *nats.Subscription) {
	o.t.Helper()
	id = strings.ToLower(rand.Text())
	answers, err := o.operator.NATS.SubscribeSync(bus.AnswerSubject(id))
	if err != nil {
		o.t.Fatal(err)
	}
	request := &pawlv1.Request{RequestedBy: "anna@laptop", Reason: "the freeze ends", NotBefore: timestamppb.New(time.Now().Add(wait))}
	if err := o.operator.Publish(o.t.Context(), bus.RequestSubject(credential), request, nats.Header{jetstream.MsgIDHeader: {id}}); err != nil {
		o.t.Fatal(err)
	}
	if a := o.next(answers); a.GetOutcome() != pawlv1.Outcome_OUTCOME_SCHEDULED {
		o.t.Fatalf("not scheduled: %v", a)
	}
	return id, answers
}

func (o *office) next(answers *nats.Subscription) *pawlv1.Answer {
	o.t.Helper()
	m, err := answers.NextMsg(20 * time.Second)
	if err != nil {
		o.t.Fatal(err)
	}
	a := &pawlv1.Answer{}
	if err := bus.Decode(m.Header, m.Data, a); err != nil {
		o.t.Fatal(err)
	}
	return a
}

// waits are the ids of the requests that people are shown.
func (o *office) waits(credential string) (ids []string) {
	o.t.Helper()
	all, err := o.operator.AllWaiting(o.t.Context())
	if err != nil {
		o.t.Fatal(err)
	}
	for _, w := range all[credential] {
		ids = append(ids, w.GetId())
	}
	return ids
}

// TestRequestThatWaitsIsShownUntilItBegins: nobody could see one.
func TestRequestThatWaitsIsShownUntilItBegins(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	id, answers := o.later("c", 2*time.Second)
	all, err := o.operator.AllWaiting(t.Context())
	if err != nil || len(all["c"]) != 1 || all["c"][0].GetId() != id || all["c"][0].GetRequest().GetReason() != "the freeze ends" || all["c"][0].GetRequest().GetAction() != pawlv1.Action_ACTION_ROTATE {
		t.Errorf("waiting: %v, %v", all, err)
	}
	o.accepted(o.next(answers))
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		list, _, err := o.scheduler.Waiting(t.Context(), "c")
		if err == nil && len(list.GetRequests()) == 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("still on the list: %v, %v", list, err)
		}
	}
}

func TestRequestThatIsCancelledNeverBegins(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	before := o.newest("c").Rotation
	id, answers := o.later("c", 3*time.Second)
	answer := o.cancel("c", id)
	if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED || answer.GetRotation() != "" || !strings.Contains(answer.GetReason(), "is withdrawn") {
		t.Errorf("cancel: %v", answer)
	}
	if ids := o.waits("c"); len(ids) != 0 {
		t.Errorf("still shown: %v", ids)
	}
	o.rejected(o.cancel("c", id), "does not wait any more", "cancelled by anna@laptop")
	o.rejected(o.next(answers), "cancelled by anna@laptop: wrong week")
	if now := o.newest("c").Rotation; now != before {
		t.Errorf("rotation %s began", now)
	}
	o.accepted(o.rotate("c"))
}

// TestRequestThatIsCancelledAsItBeginsDoesOneOfTheTwo: by the two clerks of two
// schedulers.
func TestRequestThatIsCancelledAsItBeginsDoesOneOfTheTwo(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	cancelled := 0
	for n := range 40 {
		id := strings.ToLower(rand.Text())
		waits := &request{id: id, user: bus.Operator, credential: "c", at: time.Now(), delivered: 1,
			body: &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, NotBefore: timestamppb.New(time.Now().Add(100 * time.Millisecond))}}
		if answer, _, err := o.clerk.wait(t.Context(), waits); err != nil || answer.GetOutcome() != pawlv1.Outcome_OUTCOME_SCHEDULED {
			t.Fatalf("%v, %v", answer, err)
		}
		time.Sleep(100 * time.Millisecond)
		cancels := &request{id: "cancel-" + id, user: bus.Operator, credential: "c", body: &pawlv1.Request{Action: pawlv1.Action_ACTION_CANCEL, Cancels: id}}
		var begin, end *pawlv1.Answer
		var both sync.WaitGroup
		both.Go(func() {
			begin = o.settled(func() (*pawlv1.Answer, time.Duration, error) { return o.clerk.wait(t.Context(), waits) })
		})
		both.Go(func() {
			time.Sleep(time.Duration(n) * time.Millisecond / 4) // some come before, some after
			end = o.settled(func() (*pawlv1.Answer, time.Duration, error) { return o.clerk.withdraw(t.Context(), cancels) })
		})
		both.Wait()
		isCancelled := end.GetOutcome() == pawlv1.Outcome_OUTCOME_ACCEPTED
		if begins := begin == nil; begins == isCancelled {
			t.Fatalf("begins: %v, cancelled: %v (%v, %v)", begins, isCancelled, begin, end)
		}
		if isCancelled {
			cancelled++
		}
		if err := o.clerk.unlist(t.Context(), waits); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 40 were cancelled", cancelled)
}

// settled does what a clerk decides until it has decided.
func (o *office) settled(do func() (*pawlv1.Answer, time.Duration, error)) *pawlv1.Answer {
	for {
		answer, again, err := do()
		if err != nil {
			o.t.Error(err)
			return nil
		}
		if again == 0 {
			return answer
		}
		time.Sleep(again)
	}
}

// TestCancelOfARequestThatIsHandledAgainIsAnsweredAlike: the scheduler died before it
// acknowledged it, and meanwhile the request was told.
func TestCancelOfARequestThatIsHandledAgainIsAnsweredAlike(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	id, answers := o.later("c", time.Second)
	q := &request{id: "cancel-1", user: bus.Operator, credential: "c", body: &pawlv1.Request{Action: pawlv1.Action_ACTION_CANCEL, Cancels: id}}
	for _, when := range []string{"at first", "again", "once its requester is told"} {
		answer := o.settled(func() (*pawlv1.Answer, time.Duration, error) { return o.clerk.cancel(t.Context(), q) })
		if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
			t.Errorf("%s: %v", when, answer)
		}
		if when == "again" {
			o.rejected(o.next(answers), "cancelled by operator")
		}
	}
}

// TestFloodOfRequestsThatWaitFillsNoList: the list is one message.
func TestFloodOfRequestsThatWaitFillsNoList(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	long := strings.Repeat("ö", 1024)
	at := timestamppb.New(time.Now().Add(time.Hour))
	for n := range 100 {
		answer := o.ask("c", &pawlv1.Request{Reason: long, NotBefore: at})
		if answer.GetOutcome() == pawlv1.Outcome_OUTCOME_SCHEDULED {
			continue
		}
		o.rejected(answer, "requests of c wait already: cancel one first")
		if n < 8 {
			t.Errorf("only %d may wait", n)
		}
		waits := o.waits("c")
		if len(waits) != n {
			t.Errorf("%d wait, %d are shown", n, len(waits))
		}
		for _, id := range waits {
			if a := o.cancel("c", id); a.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
				t.Errorf("%v", a)
			}
		}
		return
	}
	t.Error("100 may wait")
}

// TestRequestThatWaitsLapsesIfTheOperatorsKeyIsReplaced: whoever stole the key could
// have asked for something that begins long after.
func TestRequestThatWaitsLapsesIfTheOperatorsKeyIsReplaced(t *testing.T) {
	o := open(t, shop)
	o.adopts("c")
	before := o.newest("c").Rotation
	_, answers := o.later("c", 4*time.Second)
	stays := o.server.Connect(t, saga.Scheduler) // hears the answer, whatever becomes of the operator's connection
	told, err := stays.NATS.SubscribeSync(answers.Subject)
	if err == nil {
		err = stays.NATS.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	o.operator.NATS.Close()
	o.server.ReplaceKey(t, bus.Operator)
	o.rejected(o.next(told), "lapsed: the operator's key was replaced")
	if now := o.newest("c").Rotation; now != before {
		t.Errorf("rotation %s began", now)
	}
	o.operator = o.server.Connect(t, bus.Operator)
	_, answers = o.later("c", time.Second)
	o.accepted(o.next(answers))
}

// TestRequestLapsesThatNoSchedulerSawBeforeTheKeyWasReplaced: it lay there while none
// was running.
func TestRequestLapsesThatNoSchedulerSawBeforeTheKeyWasReplaced(t *testing.T) {
	o := open(t, shop)
	if since, err := o.clerk.keySince(t.Context()); err != nil || !since.IsZero() {
		t.Fatalf("the first key is in force since %v, %v", since, err)
	}
	o.operator.NATS.Close()
	asked := &request{id: "r", user: bus.Operator, credential: "c", at: time.Now(), delivered: 1, body: &pawlv1.Request{NotBefore: timestamppb.Now()}}
	o.server.ReplaceKey(t, bus.Operator)
	answer := o.settled(func() (*pawlv1.Answer, time.Duration, error) { return o.clerk.wait(t.Context(), asked) })
	o.rejected(answer, "lapsed")
	if list, _, err := o.scheduler.Waiting(t.Context(), "c"); err != nil || len(list.GetRequests()) != 0 {
		t.Errorf("it waits: %v, %v", list, err)
	}
}

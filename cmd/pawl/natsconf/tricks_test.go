package natsconf

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func begin() *pawlv1.Event {
	return &pawlv1.Event{StartedAt: timestamppb.Now(), Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Flow: saga.Adopt, Action: pawlv1.Action_ACTION_ADOPT, Role: "app", Generation: 1, Keep: durationpb.New(time.Hour), DrainDeadline: durationpb.New(time.Hour)}}}
}

// stored is what a stream holds, by subject.
func (i *installation) stored(stream string) map[string]uint64 {
	i.t.Helper()
	s, err := i.join(bus.Provisioner).Stream(i.t.Context(), stream)
	if err != nil {
		i.t.Fatal(err)
	}
	info, err := s.Info(i.t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		i.t.Fatal(err)
	}
	return info.State.Subjects
}

// begun is an installation with one rotation at its beginning.
func begun(t *testing.T) (*installation, uint64) {
	i := install(t)
	i.serve()
	i.mustProvision()
	seq, err := i.join(saga.Scheduler).Append(t.Context(), "c", "r1", saga.Requested, begin(), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return i, seq
}

// TestHeadersGiveNoRights: what the server does by a header, it does with its own
// rights.
func TestHeadersGiveNoRights(t *testing.T) {
	i, seq := begun(t)
	restarter := i.join(saga.Restarter)
	for name, header := range map[string]nats.Header{
		"roll up the stream":           {"Nats-Rollup": {"all"}},
		"roll up the subject":          {"Nats-Rollup": {"sub"}},
		"schedule another's event":     {"Nats-Schedule": {"@at " + time.Now().Add(time.Second).UTC().Format(time.RFC3339)}, "Nats-Schedule-Target": {bus.LogSubject("c", "r1", saga.Verified)}},
		"end by itself":                {"Nats-TTL": {"1s"}},
		"count":                        {"Nats-Incr": {"+1"}},
		"expect another stream":        {"Nats-Expected-Stream": {bus.StreamTimer}},
		"expect what was not":          {"Nats-Expected-Last-Sequence": {"99"}},
		"expect another's last":        {"Nats-Expected-Last-Msg-Id": {"x"}},
		"expect of another credential": {"Nats-Expected-Last-Subject-Sequence": {"7"}, "Nats-Expected-Last-Subject-Sequence-Subject": {"pawl.rotation.d.>"}},
	} {
		_, err := restarter.JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.LogSubject("c", "r1", saga.Restarted), Header: header, Data: []byte("{}")})
		if refused := new(jetstream.APIError); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := i.stored(bus.StreamLog); len(got) != 1 || got[bus.LogSubject("c", "r1", saga.Requested)] != 1 {
		t.Fatalf("the log holds %v", got)
	}
	// A batch of one's own event and another's.
	err := restarter.AppendAll(t.Context(), "r1", saga.Verified, []bus.Part{{Credential: "d", Body: &pawlv1.Event{}}, {Credential: "e", Body: &pawlv1.Event{}}})
	if !errors.Is(err, bus.ErrNotPermitted) {
		t.Errorf("a batch: %v", err)
	}
	// The id of another's event, on one's own.
	poison := nats.Header{jetstream.MsgIDHeader: {"c/r1/" + string(saga.Verified)}}
	if _, err := restarter.JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.LogSubject("other", "r1", saga.Restarted), Header: poison, Data: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	verifier := i.join(saga.Verifier)
	for until := time.Now().Add(10 * time.Second); ; { // as the services do: a conflict is looked at again
		_, err := verifier.Append(t.Context(), "c", "r1", saga.Verified, &pawlv1.Event{}, nil, seq)
		if err == nil {
			break
		}
		if !errors.Is(err, bus.ErrConflict) || time.Now().After(until) {
			t.Fatalf("another's event was taken for a repetition: %v", err)
		}
	}
	if log, err := verifier.ReadNewest(t.Context(), "c"); err != nil || log.Find(saga.Verified) == nil {
		t.Errorf("%v, %v", log, err)
	}
}

// TestAnswersOfTheServerAreNobodysMessages: who asks the server has it answer on
// any subject, his own or not.
func TestAnswersOfTheServerAreNobodysMessages(t *testing.T) {
	t.Run("the requester's stay with him", func(t *testing.T) {
		i, _ := begun(t)
		requester := i.join(bus.Requester)
		for n, reply := range []string{bus.EmergencySubject("c"), bus.LogSubject("c", "r1", saga.Completed), "pawl.sealed.c.r1.verifier", bus.DeadlineSubject("c"), "pawl.audit.x", bus.NoteSubject(saga.Verifier)} {
			m := &nats.Msg{Subject: bus.RequestSubject("c"), Reply: reply, Data: []byte{byte('0' + n)}}
			if err := requester.NATS.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		// One more, of which the answer comes: those before it have been answered.
		if _, err := requester.JetStream.Publish(t.Context(), bus.RequestSubject("c"), nil); err != nil {
			t.Fatal(err)
		}
		for _, stream := range bus.Streams(bus.Settings{}) {
			want := map[string]int{bus.StreamRequest: 1, bus.StreamLog: 1}[stream.Name]
			if got := i.stored(stream.Name); len(got) != want {
				t.Errorf("%s holds %v", stream.Name, got)
			}
		}
	})
	t.Run("a service's are no events", func(t *testing.T) {
		i, _ := begun(t)
		restarter := i.join(saga.Restarter)
		pull := "$JS.API.CONSUMER.MSG.NEXT." + bus.StreamTimer + "." + saga.Restarter
		if err := restarter.NATS.PublishRequest(pull, bus.LogSubject("c", "r1", saga.Verified), []byte(`{"batch":1,"no_wait":true}`)); err != nil {
			t.Fatal(err)
		}
		await(t, func() bool { return len(i.stored(bus.StreamLog)) == 2 })
		log, err := restarter.ReadNewest(t.Context(), "c")
		if err == nil || !strings.Contains(err.Error(), "verified (sequence 2) was not appended by Pawl") {
			t.Errorf("%v, %v", log, err)
		}
	})
	t.Run("what a service stored is no event when the server reads it out", func(t *testing.T) {
		i, seq := begun(t)
		restarter := i.join(saga.Restarter)
		// Everything of an event of the verifier's but the compare-and-set, of which
		// the server of the notes would not take the right number.
		forged := nats.Header{jetstream.MsgIDHeader: {"c/r1/verified"}, "Content-Type": {"application/protobuf"}}
		if _, err := restarter.JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.StartedSubject(saga.Restarter), Header: forged}); err != nil {
			t.Fatal(err)
		}
		right := nats.Header{jetstream.ExpectedLastSubjSeqHeader: {"1"}, jetstream.ExpectedLastSubjSeqSubjHeader: {"pawl.rotation.c.>"}}
		if _, err := restarter.JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: bus.StartedSubject(saga.Restarter), Header: right}); err == nil || seq != 1 {
			t.Errorf("the notes took the number of the log (%d): %v", seq, err)
		}
		get := "$JS.API.DIRECT.GET." + bus.StreamNote + "." + bus.StartedSubject(saga.Restarter)
		if err := restarter.NATS.PublishRequest(get, bus.LogSubject("c", "r1", saga.Verified), nil); err != nil {
			t.Fatal(err)
		}
		await(t, func() bool { return len(i.stored(bus.StreamLog)) == 2 })
		if log, err := restarter.ReadNewest(t.Context(), "c"); err == nil {
			t.Errorf("the forged event was read: %v", log)
		}
	})
	t.Run("nobody answers for another on a subject of the log", func(t *testing.T) {
		i, _ := begun(t)
		answered := make(chan error, 1)
		if _, err := i.join(saga.DBRotator).NATS.Subscribe(bus.CheckSubject(saga.DBRotator, "*"), func(m *nats.Msg) { answered <- bus.Respond(m, &pawlv1.Findings{}) }); err != nil {
			t.Fatal(err)
		}
		operator := i.join(bus.Operator)
		await(t, func() bool {
			if err := operator.NATS.PublishRequest(bus.CheckSubject(saga.DBRotator, "c"), bus.LogSubject("c", "r1", saga.Staged), nil); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-answered:
				if err == nil || !strings.Contains(err.Error(), "no inbox") {
					t.Errorf("%v", err)
				}
				return true
			case <-time.After(100 * time.Millisecond):
				return false
			}
		})
	})
}

// TestStockClientOfTheRequesterIsAnswered: from another account than Pawl's.
func TestStockClientOfTheRequesterIsAnswered(t *testing.T) {
	i, _ := begun(t)
	scheduler, requester := i.join(saga.Scheduler), i.join(bus.Requester)
	asked, err := scheduler.NATS.SubscribeSync("pawl.request.*")
	if err == nil {
		err = scheduler.NATS.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	inbox := requester.NATS.NewInbox()
	answers, err := requester.NATS.SubscribeSync(inbox)
	if err == nil {
		err = requester.NATS.PublishRequest(bus.RequestSubject("c"), inbox, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := asked.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := scheduler.RespondTo(m.Reply, &nats.Msg{Data: []byte("accepted")}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 2 { // stored, and answered
		m, err := answers.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err, got)
		}
		got = append(got, string(m.Data))
	}
	if all := strings.Join(got, " "); !strings.Contains(all, "PAWL_REQUEST") || !strings.Contains(all, "accepted") {
		t.Errorf("got %s", all)
	}
}

func await(t *testing.T, there func() bool) {
	t.Helper()
	until := time.After(20 * time.Second)
	again := time.NewTicker(10 * time.Millisecond) // the server tells nobody
	defer again.Stop()
	for !there() {
		select {
		case <-until:
			t.Fatal("it does not come")
		case <-again.C:
		}
	}
}

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

// TestStockClientOfTheRequesterIsAnswered: from another account than Pawl's.
func TestStockClientOfTheRequesterIsAnswered(t *testing.T) {
	i, _ := begun(t)
	scheduler, requester := i.join(saga.Scheduler), i.join(bus.Requester)
	asked, err := scheduler.NATS.SubscribeSync(bus.AskedSubject(bus.Requester, "*"))
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
	if all := strings.Join(got, " "); !strings.Contains(all, bus.StreamAsked) || !strings.Contains(all, "accepted") {
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

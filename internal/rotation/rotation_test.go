package rotation

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// of is a rotation with those events, one a minute.
func of(t *testing.T, begin *pawlv1.Requested, events ...saga.Event) Rotation {
	t.Helper()
	log := bus.Log{Credential: "app", Rotation: "r2"}
	for i, e := range append([]saga.Event{saga.Requested}, events...) {
		body := &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: begin}}
		switch e {
		case saga.Requested:
		case saga.Staged, saga.Adopted:
			body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: "app_b"}}
		case saga.Contained:
			body.Detail = &pawlv1.Event_Contained{Contained: &pawlv1.Contained{Pending: map[string]string{"n2": "no answer"}}}
		default:
			body.Detail = &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Reason: string(e)}}
		}
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 1), At: start.Add(time.Duration(i) * time.Minute)}, Body: body})
	}
	r, err := Of(log, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// By the newest log alone, for every log that there may be.
func TestCurrentIsNeverWhatARotationDidNotComplete(t *testing.T) {
	saga.Walk(func(log []saga.Entry, s saga.State, _ *saga.Step) {
		begin := &pawlv1.Requested{Flow: s.Flow.Name, Generation: 2, Basis: "r1", BasisUser: "app", BasisGeneration: 1}
		if s.Flow.Restores {
			begin.Action, begin.Restores, begin.RestoresUser = pawlv1.Action_ACTION_ROLLBACK, "r0", "app_b"
		}
		var events []saga.Event
		for _, e := range log[1:] {
			events = append(events, e.Event)
		}
		want := Current{"r1", "app", 1}
		switch ended, _ := s.Ended(); {
		case s.Flow.Locks:
			want = Current{"", "app", 2}
		case s.Flow.Restores:
			want = Current{"r0", "app_b", 2}
		case ended.Event == saga.Completed:
			want = Current{"r2", "app_b", 2}
		}
		if got := of(t, begin, events...).Current(); got != want {
			t.Errorf("%s %v: %v, want %v", s.Flow.Name, events, got, want)
		}
	})
}

func TestCredentialWithoutARotationHasNothingUnderWay(t *testing.T) {
	r, err := Of(bus.Log{Credential: "app"}, nil)
	if err != nil || !r.Empty() || r.Open() || r.Next() != nil || r.Flow.Locks || r.Flow.Urgent {
		t.Errorf("%+v, %v", r, err)
	}
	if r.Current() != (Current{}) || r.Requested() != nil || r.Failure() != nil || r.Pending() != nil || r.Limit() != 0 || !r.Due().IsZero() {
		t.Errorf("%+v", r)
	}
	if _, err := Fold(bus.Log{Rotation: "r1"}); err == nil {
		t.Error("a rotation that must exist, and does not, was folded")
	}
}

// Who cannot fold a log must still be able to say which rotation it is.
func TestLogOfAnotherVersionIsKept(t *testing.T) {
	log := bus.Log{Rotation: "r2", Records: []bus.Record{{Entry: saga.Entry{Event: saga.Requested},
		Body: &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Flow: "frobnication"}}}}}}
	if r, err := Of(log, nil); !errors.Is(err, saga.ErrUnknownEvent) || r.Rotation != "r2" || r.Requested().GetFlow() != "frobnication" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := Of(log, errors.ErrUnsupported); err != errors.ErrUnsupported || r.Rotation != "r2" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestStepIsNotDueBeforeItsWaitIsOver(t *testing.T) {
	begin := &pawlv1.Requested{Flow: saga.InPlace, Keep: durationpb.New(time.Hour), DrainDeadline: durationpb.New(2 * time.Hour)}
	r := of(t, begin, saga.Staged, saga.Published)
	if got := r.Due(); !got.Equal(start.Add(2 * time.Minute)) {
		t.Errorf("restart is due at %v", got)
	}
	r = of(t, begin, saga.Staged, saga.PublishFailed, saga.Unstaged, saga.Restored, saga.RolledBack)
	if got := r.Due(); !got.Equal(start.Add(5*time.Minute + time.Hour)) {
		t.Errorf("erase is due at %v", got)
	}
	if got := r.Failure().GetReason(); got != string(saga.PublishFailed) {
		t.Errorf("it failed because of %q", got)
	}
	begin.Flow = saga.Alternating
	if got := of(t, begin, saga.Staged, saga.Published, saga.Restarted, saga.Verified).Limit(); got != 2*time.Hour {
		t.Errorf("people are told after %v that the old login is not drained, want drain_deadline", got)
	}
}

func TestNodeIsPendingUntilItIsReleased(t *testing.T) {
	begin := &pawlv1.Requested{Flow: saga.Emergency}
	if r := of(t, begin, saga.Contained, saga.Staged); len(r.Pending()) != 1 {
		t.Errorf("pending: %v", r.Pending())
	}
	if r := of(t, begin, saga.Contained, saga.Staged, saga.Published, saga.Restarted, saga.Verified, saga.Released); len(r.Pending()) != 0 {
		t.Errorf("pending: %v", r.Pending())
	}
}

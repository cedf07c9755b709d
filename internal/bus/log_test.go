package bus_test

import (
	"errors"
	"reflect"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestNewestLogIsWholeHoweverItWasReadBefore: after each event, after several, in
// the rotation before; and what somebody else has put there is no event.
func TestNewestLogIsWholeHoweverItWasReadBefore(t *testing.T) {
	server := bustest.Start(t)
	users := map[string]*bus.Bus{}
	for _, name := range saga.Services {
		users[name] = server.Connect(t, name)
	}
	eager, lazy := server.Connect(t, bus.Operator), server.Connect(t, bus.Operator)
	newest := uint64(0)
	tell := func(rotation string, e saga.Event) {
		t.Helper()
		body := &pawlv1.Event{}
		if e == saga.Requested {
			body = begin(1)
		}
		var err error
		if newest, err = users[saga.OwnerOf(e)].Append(t.Context(), "app", rotation, e, body, nil, newest); err != nil {
			t.Fatal(err)
		}
	}
	same := func(b *bus.Bus, rotation string) {
		t.Helper()
		got, err := b.ReadNewest(t.Context(), "app")
		want, failed := b.ReadRotation(t.Context(), "app", rotation)
		if err != nil || failed != nil || !reflect.DeepEqual(got.Records, want.Records) || got.Rotation != rotation || got.LastSeq() != newest {
			t.Fatalf("read %+v, %v, want %+v, %v", got, err, want, failed)
		}
	}
	for _, rotation := range []string{"r1", "r2"} {
		for _, e := range []saga.Event{saga.Requested, saga.Staged, saga.Published, saga.Restarted, saga.Verified} {
			tell(rotation, e)
			same(eager, rotation)
			if e == saga.Published {
				same(lazy, rotation)
			}
		}
		same(lazy, rotation)
	}
	tell("r2", saga.Retired)
	same(eager, "r2")
	if err := users[saga.Verifier].Publish(t.Context(), bus.LogSubject("app", "r2", saga.Confirmed), &pawlv1.Event{}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := eager.ReadNewest(t.Context(), "app"); err == nil {
		t.Error("what nobody appended is taken for an event")
	}
	if _, err := users[saga.Scheduler].Append(t.Context(), "app", "r2", saga.Completed, &pawlv1.Event{}, nil, newest); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("appended behind it: %v", err)
	}
}

package chronicle

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/calendar"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var noon = time.Date(2026, 7, 26, 12, 0, 0, 0, time.UTC)

// log of an alternating rotation that has these events, a second apart.
func log(events ...saga.Event) bus.Log {
	l := bus.Log{Credential: "app", Rotation: "20260726-120000-aaaaa"}
	begin := &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Generation: 2, Basis: "before", BasisUser: "app", BasisGeneration: 1, Role: "app",
		Keep: durationpb.New(time.Hour), DrainDeadline: durationpb.New(24 * time.Hour)}
	for i, e := range append([]saga.Event{saga.Requested}, events...) {
		body := &pawlv1.Event{}
		switch e {
		case saga.Requested:
			body.Detail = &pawlv1.Event_Requested{Requested: begin}
		case saga.Staged:
			body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: "app_b"}}
		}
		l.Records = append(l.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 1), At: noon.Add(time.Duration(i) * time.Second)}, Body: body})
	}
	return l
}

func made(string) (time.Time, error) { return noon.Add(-31 * 24 * time.Hour), nil }

// A status that is looked at later must say what a new one would say then.
func TestStatusLookedAtLaterIsTheSameAsANewOne(t *testing.T) {
	credential := &inventory.Credential{Name: "app", RotateEvery: 30 * 24 * time.Hour}
	whole := []saga.Event{saga.Staged, saga.Published, saga.Restarted, saga.Verified, saga.Retired, saga.Confirmed, saga.Completed, saga.Erased}
	for n := range len(whole) + 1 {
		early, err := NewStatus(credential, log(whole[:n]...), made, noon)
		if err != nil {
			t.Fatal(err)
		}
		for _, later := range []time.Duration{time.Minute, 2 * time.Hour, 48 * time.Hour, 40 * 24 * time.Hour} {
			now := noon.Add(later)
			anew, err := NewStatus(credential, log(whole[:n]...), made, now)
			if err != nil {
				t.Fatal(err)
			}
			got := early.At(now)
			if got.State != anew.State || got.Says() != anew.Says() || got.AgeSeconds != anew.AgeSeconds || got.Overdue() != anew.Overdue() || got.Last.Seconds != anew.Last.Seconds {
				t.Errorf("%d events, %v later: %q, %v old; anew %q, %v old", n, later, got.Says(), got.Age(), anew.Says(), anew.Age())
			}
		}
	}
}

func TestStatusSaysFromWhenOnAStepIsStalled(t *testing.T) {
	s, err := NewStatus(&inventory.Credential{Name: "app"}, log(saga.Staged, saga.Published, saga.Restarted, saga.Verified), made, noon)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.At(noon.Add(23 * time.Hour)); got.State != Running || got.Step != "retire" {
		t.Errorf("within its deadline: %s", got.Says())
	}
	if got := s.At(noon.Add(25 * time.Hour)); got.State != Stalled || got.Step != "retire" {
		t.Errorf("past its deadline: %s", got.Says())
	}
}

func TestStatusFailsWhereItsLogCannotBeRead(t *testing.T) {
	unreadable := errors.New("unreadable")
	_, err := NewStatus(&inventory.Credential{}, log(saga.Staged), func(string) (time.Time, error) { return time.Time{}, unreadable }, noon)
	if !errors.Is(err, unreadable) {
		t.Errorf("error %v", err)
	}
}

// A drain of minutes must not squeeze the work of milliseconds into nothing.
func TestAxisShortensWhatIsIdle(t *testing.T) {
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	a := newAxis(at(0), at(120_100), []calendar.Span{{Begin: at(0), End: at(50)}, {Begin: at(120_050), End: at(120_100)}})
	if got := a.Place(at(50)); got < 0.3 {
		t.Errorf("the first half of the work ends at %.2f", got)
	}
	if cuts := a.Cuts(); len(cuts) != 1 || cuts[0].From >= cuts[0].To {
		t.Errorf("cuts %v", cuts)
	}
	if a.Place(at(-10)) != 0 || a.Place(at(999_999)) != 1 {
		t.Error("a moment outside is drawn outside")
	}
	if (Axis{}).Place(noon) != 0 {
		t.Error("an axis of no length")
	}
}

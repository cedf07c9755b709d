package saga

import (
	"errors"
	"slices"
	"testing"
)

func TestTablesAreClosedAndUnambiguous(t *testing.T) {
	if err := Validate(); err != nil {
		t.Fatal(err)
	}
}

// Code asks the columns, and never the rows, so each column of each flow must be proven.
func TestColumnThatSaysWhatItsRowsDoNotIsRejected(t *testing.T) {
	defer func(released []Flow) { Flows = released }(Flows)
	released := Flows
	for i, f := range released {
		for column, wrong := range map[string]func(f *Flow){
			"Logins":   func(f *Flow) { f.Logins = (f.Logins + 1) % 3 },
			"Urgent":   func(f *Flow) { f.Urgent = !f.Urgent },
			"Locks":    func(f *Flow) { f.Locks = !f.Locks },
			"Adopts":   func(f *Flow) { f.Adopts = !f.Adopts },
			"Restores": func(f *Flow) { f.Restores = !f.Restores },
		} {
			Flows = slices.Clone(released)
			wrong(&Flows[i])
			if Validate() == nil {
				t.Errorf("%s: %s may be anything", f.Name, column)
			}
		}
	}
}

// An ended rotation of a newer version is read by the newest flow of its kind.
func TestFlowsOfAKindDifferInNoColumn(t *testing.T) {
	defer func(released []Flow) { Flows = released }(Flows)
	two, _ := FlowByName(Alternating)
	one, _ := FlowByName(InPlace)
	newer := *one
	newer.Name = two.Name + "-2"
	if Flows = append(slices.Clone(Flows), newer); Validate() == nil {
		t.Error("a newer flow of two logins may be one of a single login")
	}
}

func TestColumnsHoldForEveryLog(t *testing.T) {
	Walk(func(log []Entry, s State, next *Step) {
		_, staged := s.Has(Staged)
		ended, over := s.Ended()
		switch f := s.Flow; {
		case (f.Adopts || f.Locks || f.Restores) && staged:
			t.Errorf("%s: stages a credential: %v", f.Name, log)
		case (f.Urgent || f.Restores) && s.Failed != nil:
			t.Errorf("%s: can turn round: %v", f.Name, log)
		case f.Restores && over && ended.Event != RolledBack:
			t.Errorf("%s: ends %s", f.Name, ended.Event)
		case f.Logins == One && next != nil && next.Waits == ForDrain:
			t.Errorf("%s: waits until its only login is unused: %v", f.Name, log)
		}
	})
}

func TestFlowOfANewerVersionHasTheColumnsOfItsKind(t *testing.T) {
	for name, want := range map[string]string{"emergency-2": Emergency, Lock: Lock, "frobnication-2": "", "frobnication": ""} {
		if got := FlowLike(name); got.Name != want || got.Urgent != (want != "") {
			t.Errorf("%s: %q, urgent %v", name, got.Name, got.Urgent)
		}
	}
}

// Every log that the tables allow is finite, repeats no event, and ends.
func TestEveryLogEndsOnce(t *testing.T) {
	logs := 0
	Walk(func(log []Entry, s State, next *Step) {
		logs++
		seen := map[Event]bool{}
		ends := 0
		for _, e := range log {
			if seen[e.Event] {
				t.Fatalf("%s: %q twice in %v", s.Flow.Name, e.Event, log)
			}
			seen[e.Event] = true
			if e.Event == Completed || e.Event == RolledBack {
				ends++
			}
		}
		if next == nil && ends != 1 {
			t.Errorf("%s: nothing is due after %v, which has %d ends", s.Flow.Name, log, ends)
		}
	})
	if logs < 50 {
		t.Errorf("only %d logs walked", logs)
	}
}

func TestFailureNeverReachesBeyondThePointOfNoReturn(t *testing.T) {
	Walk(func(log []Entry, s State, next *Step) {
		_, retired := s.Has(Retired)
		if retired && (s.Failed != nil || next != nil && next.Fails != "") {
			t.Errorf("%s: can turn round after retired: %v", s.Flow.Name, log)
		}
	})
}

func TestCompensationTouchesOnlyWhatWasReached(t *testing.T) {
	for _, c := range []struct {
		flow string
		log  []Event
		want []Event
	}{
		{Alternating, []Event{Requested, StageFailed}, []Event{Unstaged, RolledBack}},
		{Alternating, []Event{Requested, Staged, PublishFailed}, []Event{Restored, Unstaged, RolledBack}},
		{Alternating, []Event{Requested, Staged, Published, RestartFailed}, []Event{Restored, Rerestarted, Unstaged, RolledBack}},
		{Alternating, []Event{Requested, Staged, TimedOut}, []Event{Restored, Unstaged, RolledBack}},
		{Alternating, []Event{Requested, Cancelled}, []Event{Unstaged, RolledBack}},
		{Alternating, []Event{Requested, Staged, Published, Restarted, Cancelled}, []Event{Restored, Rerestarted, Unstaged, RolledBack}},
		{InPlace, []Event{Requested, Staged, Published, Cancelled}, []Event{Unstaged, Restored, Rerestarted, RolledBack}},
		{InPlace, []Event{Requested, Staged, Published, Restarted, VerifyFailed}, []Event{Unstaged, Restored, Rerestarted, RolledBack}},
	} {
		if got := follow(t, c.flow, c.log); !slices.Equal(got, append(c.want, Erased)) {
			t.Errorf("%s after %v: %v, want %v", c.flow, c.log, got, c.want)
		}
	}
}

func TestWhatIsContainedOnlyGoesForward(t *testing.T) {
	Walk(func(log []Entry, s State, next *Step) {
		if s.Flow.Urgent && (s.Failed != nil || next != nil && !next.Retriable()) {
			t.Errorf("%s: can turn round: %v", s.Flow.Name, log)
		}
	})
	if got := follow(t, Emergency, []Event{Requested}); got[0] != Contained {
		t.Errorf("an emergency begins with %v", got)
	}
}

func TestLateResultOfAStepThatTimedOutIsNotTaken(t *testing.T) {
	s, err := Fold(Alternating, entries(Requested, Staged, Published, TimedOut))
	if err != nil {
		t.Fatal(err)
	}
	if next := s.Next(); next.Emits != Restored {
		t.Errorf("due: %v", next)
	}
}

func TestEventOfANewerVersionIsLeftAlone(t *testing.T) {
	if _, err := Fold(Alternating, entries(Requested, "frobnicated")); !errors.Is(err, ErrUnknownEvent) {
		t.Error(err)
	}
	if _, err := Fold("frobnication", entries(Requested)); !errors.Is(err, ErrUnknownEvent) {
		t.Error(err)
	}
}

func TestEndedRotationOfANewerVersionIsReadAsOneOfItsKind(t *testing.T) {
	s, err := Fold("alternating-2", entries(Requested, Staged, "frobnicated", Completed))
	if err != nil {
		t.Fatal(err)
	}
	if s.Open() || s.Flow.Name != Alternating || s.Next() == nil || s.Next().Emits != Erased {
		t.Errorf("open %v, flow %s, due: %v", s.Open(), s.Flow.Name, s.Next())
	}
	for flow, log := range map[string][]Event{
		"alternating-2":  {Requested, Staged, Published}, // where it is, only its own version knows
		"frobnication-2": {Requested, Completed},
	} {
		if _, err := Fold(flow, entries(log...)); !errors.Is(err, ErrUnknownEvent) {
			t.Errorf("%s %v: %v", flow, log, err)
		}
	}
}

func TestRotationsBeginByTheLastFlowOfAKind(t *testing.T) {
	defer func(released []Flow) { Flows = released }(Flows)
	Flows = append(slices.Clone(Flows), Flow{Name: "alternating-2"}, Flow{Name: "alternating-10"})
	for kind, want := range map[string]string{Alternating: "alternating-10", InPlace: InPlace, "frobnication": ""} {
		if got := Newest(kind); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}

func TestEveryServiceHearsWhatMakesItsStepsDue(t *testing.T) {
	Walk(func(log []Entry, s State, next *Step) {
		if next != nil && !slices.Contains(Triggers(next.Owner, s.Flow.Urgent), s.Last.Event) {
			t.Errorf("%s would not wake for %s after %s", next.Owner, next.Name, s.Last.Event)
		}
	})
}

func entries(events ...Event) []Entry {
	var log []Entry
	for i, e := range events {
		log = append(log, Entry{Event: e, Seq: uint64(i + 1)})
	}
	return log
}

// follow plays the flow on from log, every step succeeding.
func follow(t *testing.T, flow string, events []Event) (rest []Event) {
	t.Helper()
	for {
		s, err := Fold(flow, entries(append(slices.Clone(events), rest...)...))
		if err != nil {
			t.Fatal(err)
		}
		next := s.Next()
		if next == nil {
			return rest
		}
		rest = append(rest, next.Emits)
	}
}

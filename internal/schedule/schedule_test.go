package schedule

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/calendar"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const day = 24 * time.Hour

func at(t testing.TB, text string) time.Time {
	t.Helper()
	when, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func policy(t testing.TB, windows, blackouts []string) (p inventory.Policy) {
	t.Helper()
	for _, text := range windows {
		w, err := calendar.ParseWindow(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Windows = append(p.Windows, w)
	}
	for _, text := range blackouts {
		b, err := calendar.ParseBlackout(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Blackouts = append(p.Blackouts, b)
	}
	return p
}

// inventoryOf has every credential in one cluster, with the usual bounds.
func inventoryOf(credentials ...*inventory.Credential) *inventory.Inventory {
	inv := &inventory.Inventory{Credentials: map[string]*inventory.Credential{}, Schedule: inventory.Schedule{PerCluster: 2, InAll: 5, Jitter: 0.1, Apart: day}}
	for _, c := range credentials {
		if c.Cluster == nil {
			c.Cluster = &inventory.Cluster{Name: "main"}
		}
		inv.Credentials[c.Name] = c
	}
	return inv
}

func known(past map[string]Turned) Facts {
	return func(name string) (Turned, bool) { t, ok := past[name]; return t, ok }
}

func next(t testing.TB, inv *inventory.Inventory, past map[string]Turned, credential string, now time.Time) Due {
	t.Helper()
	due, ok := New(inv).Next(credential, known(past), now)
	if !ok {
		t.Fatalf("%s is never due", credential)
	}
	return due
}

var someWindows = [][]string{
	nil,
	{"Sun 02:00-05:00 Europe/Berlin"},
	{"Sat 22:00-02:00 America/New_York", "Wed 22:00-02:00 America/New_York"},
	{"Sun 02:15-02:45 Europe/Berlin"}, // is left out once a year
	{"Mon 00:00-12:00 UTC", "Mon 12:00-00:00 UTC", "Tue 00:00-06:00 UTC"},
}

var someBlackouts = [][]string{
	nil,
	{"2026-12-20..2027-01-05 Europe/Berlin"},
	{"2026-03-01..2026-04-20 UTC", "2026-11-23..2026-11-30 America/New_York"},
}

// Whatever the policy: each due lies in a window, in no blackout, and before the
// deadline whenever that is possible.
func TestDueIsInAWindowAndInTimeWheneverThereIsOne(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	late, forward := 0, 0
	for i := range 5000 {
		c := &inventory.Credential{Name: fmt.Sprintf("c-%d", i), Drain: 2 * time.Minute, RotateEvery: []time.Duration{12 * day, 30 * day, 90 * day, 365 * day}[random.IntN(4)],
			Policy: policy(t, someWindows[random.IntN(len(someWindows))], someBlackouts[random.IntN(len(someBlackouts))])}
		inv := inventoryOf(c)
		inv.Schedule.Jitter = []float64{0, 0.1, 0.5}[random.IntN(3)]
		since := at(t, "2025-09-01 00:00").Add(time.Duration(random.Int64N(int64(500 * day))))
		due := next(t, inv, map[string]Turned{c.Name: {Since: since}}, c.Name, since)
		open := c.Calendar()
		if !open.Open(due.Planned) {
			t.Fatalf("%s %v: due at %s, when it is shut", c.Windows, c.Blackouts, due.Planned)
		}
		if due.Planned.Before(since.Add(c.RotateEvery / 4)) {
			t.Fatalf("every %s: due %s after the last", c.RotateEvery, due.Planned.Sub(since))
		}
		if !due.At.Equal(due.Planned) || !due.Deadline.Equal(since.Add(c.RotateEvery)) {
			t.Fatalf("%+v", due)
		}
		latest := due.Deadline.Add(-margin(c))
		if due.Planned.After(latest) {
			late++
			if _, possible := open.Last(since.Add(c.RotateEvery/4), latest); possible {
				t.Fatalf("%s %v every %s since %s: due at %s, and there is a window before %s", c.Windows, c.Blackouts, c.RotateEvery, since, due.Planned, latest)
			}
		}
		if strings.Contains(due.Why, "last window") {
			forward++
		}
	}
	if late == 0 || forward == 0 {
		t.Errorf("%d late, %d brought forward: not tried", late, forward)
	}
}

func TestDueIsTheSameForEveryReplicaAndSpread(t *testing.T) {
	since, first, last := at(t, "2026-01-01 00:00"), time.Time{}, time.Time{}
	for i := range 300 {
		c := func() *inventory.Credential {
			return &inventory.Credential{Name: fmt.Sprintf("c-%d", i), RotateEvery: 90 * day}
		}
		past := map[string]Turned{c().Name: {Since: since}}
		one, two := next(t, inventoryOf(c()), past, c().Name, since), next(t, inventoryOf(c()), past, c().Name, since.Add(40*day))
		if !reflect.DeepEqual(one, two) {
			t.Fatalf("%+v, later %+v", one, two)
		}
		if i == 0 || one.At.Before(first) {
			first = one.At
		}
		if one.At.After(last) {
			last = one.At
		}
	}
	if spread := last.Sub(first); spread < 6*day || spread > 7*day || since.Add(90*day).Sub(last) < 2*day {
		t.Errorf("from %s to %s", first, last)
	}
}

func TestMissedIsCaughtUpInTheNextWindow(t *testing.T) {
	c := &inventory.Credential{Name: "app", RotateEvery: 30 * day, Policy: policy(t, []string{"Sun 02:00-05:00 UTC"}, []string{"2026-06-01..2026-06-10 UTC"})}
	past := map[string]Turned{"app": {Since: at(t, "2026-01-01 00:00")}}
	for _, x := range []struct{ now, from, to string }{
		{"2026-05-25 00:00", "2026-05-31 02:00", "2026-05-31 03:00"}, // an hour's spread
		{"2026-05-31 04:00", "2026-05-31 04:00", "2026-05-31 04:30"}, // in it: half of what is left
		{"2026-05-31 05:00", "2026-06-14 02:00", "2026-06-14 03:00"}, // after the blackout
	} {
		due := next(t, inventoryOf(c), past, "app", at(t, x.now))
		if due.At.Before(at(t, x.from)) || due.At.After(at(t, x.to)) || !strings.Contains(due.Why, "missed") || !due.Overdue(at(t, x.now)) {
			t.Errorf("at %s: %+v", x.now, due)
		}
	}
}

func TestGroupIsDueWithItsFirst(t *testing.T) {
	one := &inventory.Credential{Name: "a", Group: "shop", RotateEvery: 90 * day, Policy: policy(t, []string{"Sun 02:00-05:00 UTC"}, nil)}
	two := &inventory.Credential{Name: "b", Group: "shop", RotateEvery: 30 * day, Policy: policy(t, []string{"Sun 04:00-08:00 UTC"}, nil)}
	past := map[string]Turned{"a": {Since: at(t, "2026-01-01 00:00")}, "b": {Since: at(t, "2026-01-01 00:00")}}
	for _, name := range []string{"a", "b"} {
		due := next(t, inventoryOf(one, two), past, name, at(t, "2026-01-02 00:00"))
		if due.Credential != "a" || !reflect.DeepEqual(due.Together, []string{"a", "b"}) || due.Planned.After(at(t, "2026-01-31 00:00")) || due.Planned.UTC().Hour() != 4 || due.Planned.Weekday() != time.Sunday {
			t.Errorf("%+v", due)
		}
	}
	delete(past, "b")
	if due := next(t, inventoryOf(one, two), past, "a", at(t, "2026-01-02 00:00")); due.Blocked != "b is not adopted" {
		t.Errorf("%+v", due)
	}
}

func TestThoseKeptApartAreInTimeAndApart(t *testing.T) {
	var all []*inventory.Credential
	past := map[string]Turned{}
	names := []string{"a", "b", "c"}
	for _, name := range names {
		c := &inventory.Credential{Name: name, RotateEvery: 60 * day, Policy: policy(t, []string{"Sun 02:00-05:00 UTC"}, nil)}
		for _, other := range names {
			if other != name {
				c.Apart = append(c.Apart, other)
			}
		}
		all, past[name] = append(all, c), Turned{Since: at(t, "2026-01-04 03:00"), Adopted: true}
	}
	inv := inventoryOf(all...)
	inv.Schedule.Jitter = 0 // all would turn in the same window
	dues := Forecast(inv, past, at(t, "2026-01-05 00:00"), at(t, "2028-01-01 00:00"))
	if len(dues) < 3*12 {
		t.Fatalf("%d turns in two years", len(dues))
	}
	for i, due := range dues {
		if due.At.After(due.Deadline) || due.Blocked != "" {
			t.Errorf("late: %+v", due)
		}
		if i > 0 && due.At.Sub(dues[i-1].At) < day {
			t.Errorf("%s at %s, %s at %s", dues[i-1].Credential, dues[i-1].At, due.Credential, due.At)
		}
	}
}

func TestStagingTurnsBeforeProduction(t *testing.T) {
	staging := &inventory.Credential{Name: "staging", RotateEvery: 90 * day}
	app := &inventory.Credential{Name: "app", RotateEvery: 90 * day, Policy: policy(t, []string{"Sun 02:00-05:00 UTC"}, nil), Promotes: "staging", Within: 7 * day}
	inv := inventoryOf(staging, app)
	past := map[string]Turned{"staging": {Since: at(t, "2026-01-01 00:00"), Adopted: true}, "app": {Since: at(t, "2026-02-20 00:00"), Adopted: true}}
	proven := time.Time{}
	turns := map[string]int{}
	for _, due := range Forecast(inv, past, at(t, "2026-02-21 00:00"), at(t, "2028-02-21 00:00")) {
		if due.At.After(due.Deadline) || due.Blocked != "" {
			t.Errorf("%+v", due)
		}
		if due.Credential == "staging" {
			proven = due.At
		} else if due.At.Sub(proven) > app.Within || due.At.Before(proven) {
			t.Errorf("staging at %s, production at %s", proven, due.At)
		}
		turns[due.Credential]++
	}
	if turns["app"] < 8 || turns["app"] > 10 || turns["staging"] > turns["app"]+2 {
		t.Errorf("%v", turns)
	}
	// Staging does not get through: production waits, and says for what.
	if due := next(t, inv, past, "app", at(t, "2026-06-01 00:00")); due.Blocked != "staging, which must be turned within 7d before app, was not turned yet" {
		t.Errorf("%+v", due)
	}
	past["staging"] = Turned{Since: at(t, "2026-05-01 00:00")}
	if due := next(t, inv, past, "app", at(t, "2026-06-01 00:00")); due.Blocked != "staging must be turned within 7d before app, and was last on 2026-05-01" {
		t.Errorf("%+v", due)
	}
	// What has proven itself too long ago is turned once more.
	past["staging"] = Turned{Since: next(t, inv, past, "app", at(t, "2026-02-21 00:00")).Planned.Add(-day)}
	due := next(t, inv, past, "staging", at(t, "2026-06-01 00:00"))
	if want := past["staging"].Since.Add(app.Within); due.Planned.Before(want) || due.Planned.After(want.Add(app.Within)) {
		t.Errorf("%+v", due)
	}
}

func TestWhatComesToNothingRestsLongerEachTime(t *testing.T) {
	c := &inventory.Credential{Name: "app", RotateEvery: 90 * day}
	inv, now := inventoryOf(c), at(t, "2026-06-01 00:00")
	for _, x := range []struct {
		failed int
		undone bool
		want   time.Duration
	}{{1, false, time.Hour}, {2, false, 2 * time.Hour}, {4, false, 8 * time.Hour}, {40, false, 7 * day}, {2, true, day}} {
		past := map[string]Turned{"app": {Since: at(t, "2026-01-01 00:00"), Tried: now, Failed: x.failed, Undone: x.undone}}
		due := next(t, inv, past, "app", now)
		if rest := due.At.Sub(now); rest < x.want || rest > x.want+time.Hour {
			t.Errorf("after %d: rests %s, want %s", x.failed, rest, x.want)
		}
	}
}

func TestForecastIsInOrderAndNamesTheBlocked(t *testing.T) {
	inv := inventoryOf(&inventory.Credential{Name: "weekly", RotateEvery: 7 * day}, &inventory.Credential{Name: "new", RotateEvery: 90 * day},
		&inventory.Credential{Name: "never"}, &inventory.Credential{Name: "locked", RotateEvery: 29 * day}, &inventory.Credential{Name: "overdue", RotateEvery: 90 * day})
	now := at(t, "2026-06-01 00:00")
	dues := Forecast(inv, map[string]Turned{"weekly": {Since: now}, "never": {Since: now}, "locked": {Since: now, Locked: true}, "overdue": {Since: now.Add(-100 * day)}}, now, now.Add(30*day))
	var got []string
	for i, due := range dues {
		got = append(got, strings.TrimSpace(due.Credential+" "+due.Blocked))
		if i > 0 && due.Blocked == "" && due.At.Before(dues[i-1].At) {
			t.Errorf("%s is out of order", due.At)
		}
	}
	if want := "new new is not adopted, overdue, weekly, weekly, weekly, weekly, locked locked is locked"; strings.Join(got, ", ") != want {
		t.Errorf("got %s", strings.Join(got, ", "))
	}
	if dues[1].At.Before(now) || dues[1].At.After(now.Add(time.Hour)) || !dues[1].Overdue(now) {
		t.Errorf("%+v", dues[1])
	}
}

func TestUnlockIsUnderWayAndNotUnadopted(t *testing.T) {
	log := bus.Log{Credential: "a", Rotation: "r-3", Records: []bus.Record{{Entry: saga.Entry{Event: saga.Requested, Seq: 9, At: at(t, "2026-01-02 00:00")},
		Body: &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_UNLOCK, Flow: saga.Emergency, Generation: 4}}}}}}
	turned, ok, err := PastOf(log, nil)
	if err != nil || !ok || !turned.Running || !turned.Since.Equal(at(t, "2026-01-02 00:00")) {
		t.Errorf("%+v, %v, %v", turned, ok, err)
	}
}

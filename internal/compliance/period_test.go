package compliance

import (
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestDaysAreWholeAndInTheirZone(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, from, to   string
		zone             *time.Location
		wantFrom, wantTo string
	}{
		{"days in UTC", "2026-07-01", "2026-09-30", time.UTC, "2026-07-01T00:00:00Z", "2026-10-01T00:00:00Z"},
		{"days in summer and in winter time", "2026-10-01", "2026-10-31", berlin, "2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"},
		{"the day on which the clock goes back has 25 hours", "2026-10-25", "2026-10-25", berlin, "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},
		{"the day on which it goes forward has 23", "2026-03-29", "2026-03-29", berlin, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"},
		{"a time is exact, whatever its offset", "2026-07-01T02:00:00+02:00", "2026-07-01T01:00:00Z", berlin, "2026-07-01T00:00:00Z", "2026-07-01T01:00:00Z"},
		{"90 days until now", "", "", time.UTC, "2026-08-27T12:00:00Z", "2026-11-25T12:00:00Z"},
		{"90 days until a day", "", "2026-09-30", time.UTC, "2026-07-03T00:00:00Z", "2026-10-01T00:00:00Z"},
		{"nothing is known of the future", "2026-11-01", "2026-12-31", time.UTC, "2026-11-01T00:00:00Z", "2026-11-25T12:00:00Z"},
		{"today", "2026-11-25", "2026-11-25", time.UTC, "2026-11-25T00:00:00Z", "2026-11-25T12:00:00Z"},
	} {
		p, err := NewPeriod(c.from, c.to, now.In(c.zone))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if from, to := p.From.UTC().Format(time.RFC3339), p.To.UTC().Format(time.RFC3339); from != c.wantFrom || to != c.wantTo {
			t.Errorf("%s: %s to %s, want %s to %s", c.name, from, to, c.wantFrom, c.wantTo)
		}
	}
	for _, c := range []struct{ from, to, want string }{
		{"yesterday", "", `--from "yesterday" is no date: write a day, such as 2026-03-31`},
		{"", "2026-02-30", `--to "2026-02-30" is no date`},
		{"2026-07-02", "2026-07-01", "the period is empty: it would begin at 2026-07-02T00:00:00Z and end at 2026-07-02T00:00:00Z"},
		{"2027-01-01", "", "the period is empty"},
	} {
		if _, err := NewPeriod(c.from, c.to, now); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("from %q to %q: got %v, want %q", c.from, c.to, err, c.want)
		}
	}
}

// told makes a report of one credential, rotated every 90 days, from its events.
func told(p Period, events ...raw) *Report {
	c := &inventory.Credential{Name: "app", Cluster: &inventory.Cluster{Name: "main"}, Strategy: inventory.InPlace, RotateEvery: 90 * day}
	b := NewBuilder(&inventory.Inventory{Credentials: map[string]*inventory.Credential{"app": c}}, p)
	for i, e := range events {
		flow := saga.InPlace
		if e.rotation == "r-0" {
			flow = saga.Adopt
		}
		b.Add(Record{int64(i), &pawlv1.AuditRecord{Stream: bus.StreamLog, Sequence: uint64(i + 1), At: timestamppb.New(e.at), Event: e.name, Flow: flow, Credential: "app", Rotation: e.rotation}})
	}
	return b.Report(Frameworks[0], Trail{}, nil)
}

func TestBeginIsInThePeriodAndEndIsNot(t *testing.T) {
	p := Period{begin.Add(day), begin.Add(2 * day)}
	rotation := func(requested, completed time.Time) []raw {
		return []raw{{rotation: "r-1", name: "requested", at: requested}, {rotation: "r-1", name: "completed", at: completed}}
	}
	for _, c := range []struct {
		name                                 string
		requested, completed                 time.Time
		before, within, ended, running, rows int
	}{
		{"ended just before", p.From.Add(-2), p.From.Add(-1), 0, 0, 0, 0, 0},
		{"ended as it began", p.From.Add(-1), p.From, 1, 0, 1, 0, 1},
		{"requested as it began", p.From, p.From.Add(1), 0, 1, 1, 0, 1},
		{"ended just before its end", p.From, p.To.Add(-1), 0, 1, 1, 0, 1},
		{"ended as it ended", p.From, p.To, 0, 1, 0, 1, 1},
		{"requested as it ended", p.To, p.To.Add(1), 0, 0, 0, 0, 0},
		{"straddles all of it", p.From.Add(-1), p.To.Add(1), 1, 0, 0, 1, 1},
	} {
		r := told(p, rotation(c.requested, c.completed)...)
		ended := 0
		for _, e := range r.Totals.Ended {
			ended += e.Count
		}
		if got := [5]int{r.Totals.RunningBefore, r.Totals.Requested, ended, r.Totals.RunningAtEnd, len(r.Rotations)}; got != [5]int{c.before, c.within, c.ended, c.running, c.rows} {
			t.Errorf("%s: %v (running before, requested, ended, running at the end, rows)", c.name, got)
		}
	}
}

func TestOverdueBeginsWhenThePolicySays(t *testing.T) {
	adopted := []raw{{rotation: "r-0", name: "requested", at: begin}, {rotation: "r-0", name: "completed", at: begin}}
	due := begin.Add(90 * day)
	for _, c := range []struct {
		name  string
		end   time.Time
		state string
		spans int
	}{
		{"the period ends when it is due", due, StateInTime, 0},
		{"a moment later", due.Add(1), StateOverdue, 1},
	} {
		if got := told(Period{begin, c.end}, adopted...).Coverage[0]; got.State != c.state || len(got.Exceeded) != c.spans {
			t.Errorf("%s: %s, %v", c.name, got.State, got.Exceeded)
		}
	}
	late := append(adopted, raw{rotation: "r-1", name: "requested", at: due}, raw{rotation: "r-1", name: "completed", at: due.Add(3 * day)})
	r := told(Period{due.Add(day), due.Add(30 * day)}, late...)
	if c := r.Coverage[0]; c.State != StateInTime || len(c.Exceeded) != 1 || !c.Exceeded[0].Begin.Equal(due.Add(day)) || !c.Exceeded[0].End.Equal(due.Add(3*day)) || !c.Exceeded[0].Due.Equal(due) || r.Totals.Exceeded != 1 {
		t.Errorf("late, and well again: %+v", c)
	}
}

func TestRotationOfAnotherVersionCountsAsOneOfItsKind(t *testing.T) {
	c := &inventory.Credential{Name: "app", Cluster: &inventory.Cluster{Name: "main"}, RotateEvery: 90 * day}
	b := NewBuilder(&inventory.Inventory{Credentials: map[string]*inventory.Credential{"app": c}}, Period{begin, begin.Add(day)})
	for i, e := range []string{"requested", "frobnicated", "completed"} {
		b.Add(Record{int64(i), &pawlv1.AuditRecord{Stream: bus.StreamLog, Sequence: uint64(i + 1), At: timestamppb.New(begin), Event: e, Flow: "alternating-2", Credential: "app", Rotation: "r-1"}})
	}
	if r := b.Report(Frameworks[0], Trail{}, nil); r.Coverage[0].State != StateInTime {
		t.Errorf("%+v", r.Coverage[0])
	}
}

func TestFlowOfAnotherVersionIsNamedAndConcludesNothing(t *testing.T) {
	c := &inventory.Credential{Name: "app", Cluster: &inventory.Cluster{Name: "main"}, RotateEvery: 90 * day}
	b := NewBuilder(&inventory.Inventory{Credentials: map[string]*inventory.Credential{"app": c}}, Period{begin, begin.Add(day)})
	for i, e := range []string{"requested", "completed"} {
		b.Add(Record{int64(i), &pawlv1.AuditRecord{Stream: bus.StreamLog, Sequence: uint64(i + 1), At: timestamppb.New(begin), Event: e, Flow: "sideways", Credential: "app", Rotation: "r-1"}})
	}
	r := b.Report(Frameworks[0], Trail{}, nil)
	if r.Coverage[0].State != StateNotAdopted || len(r.Exceptions) != 2 || r.Exceptions[1].What != "of another version" || !strings.Contains(r.Exceptions[1].Why, `"sideways"`) {
		t.Errorf("%+v", r.Exceptions)
	}
}

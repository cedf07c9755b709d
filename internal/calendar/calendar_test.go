package calendar

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func window(t testing.TB, text string) Window {
	t.Helper()
	w, err := ParseWindow(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func blackout(t testing.TB, text string) Blackout {
	t.Helper()
	b, err := ParseBlackout(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func utc(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// onTheWall is the definition: what a clock on the wall of the zone shows.
func (w Window) onTheWall(t time.Time) bool {
	at := t.In(w.zone)
	since := time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute + time.Duration(at.Second())*time.Second
	yesterday := (at.Weekday() + 6) % 7
	return at.Weekday() == w.weekday && since >= w.from && since < w.to ||
		yesterday == w.weekday && since+24*time.Hour < w.to
}

// Each zone with a time at which its clocks change, or lose a whole day.
var changes = map[string]string{
	"Europe/Berlin":       "2026-03-29 01:00", // 02:00 to 03:00
	"America/New_York":    "2026-11-01 06:00", // 02:00 to 01:00
	"Australia/Lord_Howe": "2026-04-04 15:00", // by half an hour
	"Africa/Cairo":        "2026-04-23 22:00", // at midnight
	"America/Sao_Paulo":   "2018-11-04 03:00", // at midnight
	"Pacific/Apia":        "2011-12-30 10:00", // there was no 30th of December
	"Asia/Kathmandu":      "2026-01-01 00:00", // never
	"UTC":                 "2026-01-01 00:00",
}

func TestOpenIsWhatTheClockOnTheWallSays(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for zone, change := range changes {
		middle := utc(t, change)
		for range 40 {
			from, to := random.IntN(24*12)*5, random.IntN(24*12)*5
			if from == to {
				to = (to + 5) % (24 * 60)
			}
			text := fmt.Sprintf("%s %02d:%02d-%02d:%02d %s", weekdays[random.IntN(7)], from/60, from%60, to/60, to%60, zone)
			w := window(t, text)
			begin, end := middle.Add(-9*24*time.Hour), middle.Add(9*24*time.Hour)
			open := New([]Window{w}, nil).Openings(begin, end)
			for at := begin; at.Before(end); at = at.Add(5 * time.Minute) {
				for len(open) > 0 && !open[0].End.After(at) {
					open = open[1:]
				}
				if is := len(open) > 0 && open[0].Contains(at); is != w.onTheWall(at) {
					t.Fatalf("%s: at %s open is %v", text, at.In(w.zone), is)
				}
			}
		}
	}
}

func TestClocksThatChangeWithinAWindow(t *testing.T) {
	for _, c := range []struct{ text, from, want string }{
		{"Sun 02:30-05:00 Europe/Berlin", "2026-03-28 00:00", "29T03:00+02:00-29T05:00+02:00"},       // begins in the hour that is left out
		{"Sun 01:00-02:30 Europe/Berlin", "2026-03-28 00:00", "29T01:00+01:00-29T03:00+02:00"},       // ends in it
		{"Sun 02:00-03:00 Europe/Berlin", "2026-03-28 00:00", "05T02:00+02:00-05T03:00+02:00"},       // is it: a week later
		{"Sun 01:00-04:00 Europe/Berlin", "2026-10-24 00:00", "25T01:00+02:00-25T04:00+01:00"},       // has the hour twice: four hours
		{"Sun 02:15-02:30 Europe/Berlin", "2026-10-24 00:00", "25T02:15+02:00-25T02:30+02:00"},       // comes twice
		{"Sun 02:15-02:30 Europe/Berlin", "2026-10-25 00:30", "25T02:15+01:00-25T02:30+01:00"},       // the second time
		{"Sat 23:00-03:30 Europe/Berlin", "2026-03-28 00:00", "28T23:00+01:00-29T03:30+02:00"},       // over midnight, an hour shorter
		{"Fri 00:00-02:00 Africa/Cairo", "2026-04-23 00:00", "24T01:00+03:00-24T02:00+03:00"},        // midnight is left out
		{"Fri 00:00-02:00 Pacific/Apia", "2011-12-29 00:00", "06T00:00+14:00-06T02:00+14:00"},        // the day is left out
		{"Sat 23:30-00:30 America/Sao_Paulo", "2018-11-03 12:00", "03T23:30-03:00-04T01:00-02:00"},   // shortened by what midnight takes
		{"Sun 01:45-02:15 Australia/Lord_Howe", "2026-04-03 00:00", "05T01:45+11:00-05T01:30+10:30"}, // cut, and
		{"Sun 01:45-02:15 Australia/Lord_Howe", "2026-04-04 15:00", "05T01:45+10:30-05T02:15+10:30"}, // once more
		{"Sun 02:00-05:00 America/New_York", "2026-03-07 00:00", "08T03:00-04:00-08T05:00-04:00"},    // an hour shorter
		{"Sun 00:30-01:30 America/New_York", "2026-10-31 12:00", "01T00:30-04:00-01T01:30-04:00"},    // first part
		{"Sun 00:30-01:30 America/New_York", "2026-11-01 05:45", "01T01:00-05:00-01T01:30-05:00"},    // second
		{"Mon 09:00-17:00 Asia/Kathmandu", "2026-01-01 00:00", "05T09:00+05:45-05T17:00+05:45"},      // whole
		{"Sun 02:00-05:00 Europe/Berlin", "2026-01-04 02:00", "04T03:00+01:00-04T05:00+01:00"},       // from within
		{"Sun 02:00-05:00 Europe/Berlin", "2026-01-04 04:00", "11T02:00+01:00-11T05:00+01:00"},       // the end is outside
	} {
		w := window(t, c.text)
		span, ok := New([]Window{w}, nil).Next(utc(t, c.from))
		const form = "02T15:04Z07:00"
		if got := span.Begin.In(w.zone).Format(form) + "-" + span.End.In(w.zone).Format(form); !ok || got != c.want {
			t.Errorf("%s from %s: %s, want %s", c.text, c.from, got, c.want)
		}
	}
}

func TestBlackoutIsWholeDays(t *testing.T) {
	for text, want := range map[string]string{
		"2026-12-20..2027-01-05 Europe/Berlin": "2026-12-19 23:00 2027-01-05 23:00",
		"2026-03-29 Europe/Berlin":             "2026-03-28 23:00 2026-03-29 22:00", // 23 hours
		"2026-04-24 Africa/Cairo":              "2026-04-23 22:00 2026-04-24 21:00", // begins at one
		"2018-11-04 America/Sao_Paulo":         "2018-11-04 03:00 2018-11-05 02:00",
		"2026-01-01..2026-12-31 UTC":           "2026-01-01 00:00 2027-01-01 00:00",
	} {
		b := blackout(t, text)
		if got := b.Begin.UTC().Format("2006-01-02 15:04 ") + b.End.UTC().Format("2006-01-02 15:04"); got != want || b.String() != text {
			t.Errorf("%s is %s, want %s", b, got, want)
		}
	}
}

func TestBlackoutShutsWindows(t *testing.T) {
	c := New([]Window{window(t, "Sun 02:00-05:00 UTC"), window(t, "Wed 02:00-05:00 UTC")}, []Blackout{blackout(t, "2026-12-20..2027-01-05 UTC")})
	next, ok := c.Next(utc(t, "2026-12-17 00:00"))
	if !ok || !next.Begin.Equal(utc(t, "2027-01-06 02:00")) {
		t.Errorf("next %v", next)
	}
	last, ok := c.Last(utc(t, "2026-11-01 00:00"), utc(t, "2026-12-29 00:00"))
	if !ok || !last.Begin.Equal(utc(t, "2026-12-16 02:00")) {
		t.Errorf("last %v", last)
	}
	if last, ok := c.Last(utc(t, "2026-12-16 03:00"), utc(t, "2026-12-16 04:00")); !ok || last.Length() != time.Hour {
		t.Errorf("%v", last)
	}
	if last, ok := c.Last(utc(t, "2026-12-16 05:00"), utc(t, "2027-01-06 02:00")); ok {
		t.Errorf("%v", last)
	}
	always := New(nil, c.closed)
	if next, ok := always.Next(utc(t, "2026-12-25 00:00")); !ok || !next.Begin.Equal(utc(t, "2027-01-06 00:00")) || next.Length() < 52*week {
		t.Errorf("always: next %v", next)
	}
	if last, ok := always.Last(utc(t, "2026-10-01 00:00"), utc(t, "2026-12-25 00:00")); !ok || !last.End.Equal(utc(t, "2026-12-20 00:00")) {
		t.Errorf("always: last %v", last)
	}
}

func TestCalendarsTogetherAreOpenWhenBothAre(t *testing.T) {
	berlin, london := New([]Window{window(t, "Sun 02:00-05:00 Europe/Berlin")}, nil), New([]Window{window(t, "Sun 03:00-06:00 Europe/London")}, nil)
	span, ok := berlin.And(london).Next(utc(t, "2026-01-01 00:00"))
	if !ok || !span.Begin.Equal(utc(t, "2026-01-04 03:00")) || span.Length() != time.Hour {
		t.Errorf("%v", span)
	}
	if gap, ok := berlin.And(london).Gap(utc(t, "2026-01-01 00:00")); !ok || gap < week-2*time.Hour || gap > week+2*time.Hour {
		t.Errorf("gap %v %v", gap, ok)
	}
	if _, ok := berlin.And(New([]Window{window(t, "Mon 02:00-05:00 Europe/Berlin")}, nil)).Gap(utc(t, "2026-01-01 00:00")); ok {
		t.Error("Sunday meets Monday")
	}
	if _, ok := berlin.And(New([]Window{window(t, "Mon 02:00-05:00 Europe/Berlin")}, nil)).Next(utc(t, "2026-01-01 00:00")); ok {
		t.Error("Sunday meets Monday")
	}
}

func TestEachFaultOfABlackoutNamesTheFix(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "must look like",
		"2026-12-20..2027-01-05":               "must look like",
		"2026-12-20..2026-12-32 UTC":           "the days are such as 2026-12-20",
		"2026-12-20-2027-01-05 UTC":            "the days are such as 2026-12-20",
		"2027-01-05..2026-12-20 UTC":           "it ends before it begins",
		"2026-01-01..2027-12-31 UTC":           "a year is the longest",
		"2026-12-20..2027-01-05 Europe/Berlim": "the zone is one of IANA's names",
		"2026-12-20..2027-01-05 Local":         "the zone is one of IANA's names",
	} {
		if _, err := ParseBlackout(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

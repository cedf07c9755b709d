package calendar

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window is a weekly maintenance window.
type Window struct {
	weekday  time.Weekday
	from, to time.Duration // on the wall, since the weekday's midnight; to is on the next day where it is past 24h
	zone     *time.Location
	text     string
}

// String is the window as it was written.
func (w Window) String() string { return w.text }

var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// ParseWindow reads a window such as "Sun 02:00-05:00 Europe/Berlin". One that
// ends before it begins ends on the next day.
func ParseWindow(text string) (Window, error) {
	fix := fmt.Errorf(`the window %.60q must look like "Sun 02:00-05:00 Europe/Berlin": weekday, from-to, time zone`, text)
	parts := strings.Fields(text)
	if len(parts) != 3 {
		return Window{}, fix
	}
	from, to, ok := strings.Cut(parts[1], "-")
	begin, errFrom := clock(from)
	end, errTo := clock(to)
	weekday := slices.Index(weekdays, parts[0])
	switch {
	case weekday < 0:
		return Window{}, fmt.Errorf("%w; the weekday is one of Mon, Tue, Wed, Thu, Fri, Sat, Sun", fix)
	case !ok || errFrom != nil || errTo != nil || begin == end:
		return Window{}, fmt.Errorf("%w; the times are two, from 00:00 to 23:59", fix)
	}
	zone, err := location(parts[2])
	if err != nil {
		return Window{}, fmt.Errorf("%w; %w", fix, err)
	}
	if end < begin {
		end += 24 * time.Hour
	}
	return Window{time.Weekday(weekday), begin, end, zone, strings.Join(parts, " ")}, nil
}

func clock(text string) (time.Duration, error) {
	t, err := time.Parse("15:04", text)
	if err == nil && len(text) != 5 {
		err = fmt.Errorf("%q is not a time of day", text)
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err
}

func location(name string) (*time.Location, error) {
	zone, err := time.LoadLocation(name)
	if err != nil || name == "Local" || name == "" {
		return nil, fmt.Errorf("the zone is one of IANA's names, such as Europe/Berlin or UTC")
	}
	return zone, nil
}

// spans returns the window's occurrences between two times, cut off at both.
// Wherever the zone changes its clocks an occurrence is in parts: what the wall
// clock leaves out is not there, what it shows twice is there twice.
func (w Window) spans(from, to time.Time) (out []Span) {
	for at := from; at.Before(to); {
		_, offset := at.In(w.zone).Zone()
		shift := time.Duration(offset) * time.Second
		_, end := at.In(w.zone).ZoneBounds()
		if end.IsZero() || end.After(to) {
			end = to
		}
		same := Span{at, end} // the zone's clocks are not changed in here
		// Reckoned as if in UTC, where every day has 24 hours; a day early, for
		// windows that last over midnight.
		day := at.Add(shift).UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)
		day = day.AddDate(0, 0, (int(w.weekday)-int(day.Weekday())+7)%7)
		for ; day.Add(w.from - shift).Before(end); day = day.AddDate(0, 0, 7) {
			s := cut(Span{day.Add(w.from - shift), day.Add(w.to - shift)}, same)
			if s.Begin.Before(s.End) {
				out = append(out, s)
			}
		}
		at = end
	}
	return out
}

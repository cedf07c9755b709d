package compliance

import (
	"fmt"
	"time"
)

// Period is the time that a report is about: From is in it, To is not.
type Period struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// usual is how many days a report goes back, unless told.
const usual = 90

// NewPeriod reads the ends of a period: a day such as 2026-03-31, in the zone
// of now, or a time such as 2026-03-31T12:00:00+02:00. A day is meant whole:
// as from, it begins the period, as to, it is the last one within. Empty: to is
// now, from 90 days before to. A period ends now at the latest.
func NewPeriod(from, to string, now time.Time) (Period, error) {
	p := Period{To: now}
	if to != "" {
		at, day, err := parseTime("--to", to, now.Location())
		if err != nil {
			return p, err
		}
		if day {
			at = at.AddDate(0, 0, 1)
		}
		if at.Before(now) {
			p.To = at
		}
	}
	p.From = p.To.AddDate(0, 0, -usual)
	if from != "" {
		at, _, err := parseTime("--from", from, now.Location())
		if err != nil {
			return p, err
		}
		p.From = at
	}
	if !p.From.Before(p.To) {
		return p, fmt.Errorf("the period is empty: it would begin at %s and end at %s: give a --from before --to, both in the past", p.text(p.From), p.text(p.To))
	}
	return p, nil
}

func parseTime(flag, text string, zone *time.Location) (at time.Time, day bool, err error) {
	if at, err = time.ParseInLocation(time.DateOnly, text, zone); err == nil {
		return at, true, nil
	}
	if at, err = time.Parse(time.RFC3339, text); err == nil {
		return at.In(zone), false, nil
	}
	return at, false, fmt.Errorf("%s %q is no date: write a day, such as 2026-03-31, or a time, such as 2026-03-31T12:00:00Z", flag, text)
}

func (p Period) holds(t time.Time) bool { return !t.Before(p.From) && t.Before(p.To) }

// text writes a time in the period's zone, to the second.
func (p Period) text(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.In(p.To.Location()).Format(time.RFC3339)
}

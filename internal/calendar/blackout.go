package calendar

import (
	"fmt"
	"strings"
	"time"
)

// Blackout is a time in which nothing is done of itself.
type Blackout struct {
	Span
	text string
}

// String is the blackout as it was written.
func (b Blackout) String() string { return b.text }

// longestBlackout bounds how far a calendar has to look for its next opening.
const longestBlackout = 366 * 24 * time.Hour

// ParseBlackout reads whole days, the first and the last among them, such as
// "2026-12-20..2027-01-05 Europe/Berlin", or one, "2026-12-24 Europe/Berlin".
func ParseBlackout(text string) (Blackout, error) {
	fix := fmt.Errorf(`the blackout %.60q must look like "2026-12-20..2027-01-05 Europe/Berlin": first day..last day, time zone`, text)
	parts := strings.Fields(text)
	if len(parts) != 2 {
		return Blackout{}, fix
	}
	first, last, isRange := strings.Cut(parts[0], "..")
	if !isRange {
		last = first
	}
	from, errFrom := time.Parse(time.DateOnly, first)
	to, errTo := time.Parse(time.DateOnly, last)
	if errFrom != nil || errTo != nil {
		return Blackout{}, fmt.Errorf("%w; the days are such as 2026-12-20", fix)
	}
	zone, err := location(parts[1])
	switch {
	case err != nil:
		return Blackout{}, fmt.Errorf("%w; %w", fix, err)
	case to.Before(from):
		return Blackout{}, fmt.Errorf("%w; it ends before it begins", fix)
	case to.Sub(from) > longestBlackout:
		return Blackout{}, fmt.Errorf("%w; a year is the longest", fix)
	}
	return Blackout{Span{midnight(from, zone), midnight(to.AddDate(0, 0, 1), zone)}, strings.Join(parts, " ")}, nil
}

// midnight is the first instant of a day in a zone. Where the clocks are put
// forward at midnight, that is one o'clock.
func midnight(day time.Time, zone *time.Location) time.Time {
	t := time.Date(day.Year(), day.Month(), day.Day(), 0, 0, 0, 0, zone)
	if t.Day() != day.Day() {
		_, t = t.ZoneBounds()
	}
	return t
}

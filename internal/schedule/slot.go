package schedule

import (
	"time"

	"pawl.dev/internal/calendar"
	"pawl.dev/internal/inventory"
)

// slot chooses the time of one turn.
type slot struct {
	open   calendar.Calendar
	since  time.Time     // of the turn before
	first  time.Time     // before which it would be too soon after that
	latest time.Time     // so that it has ended by the deadline
	early  time.Duration // by up to how much jitter brings it forward
	seed   string
}

// choose returns the time, and why it is that one.
func (s slot) choose() (at time.Time, why string) {
	// A quarter of the jitter is kept for what comes between.
	target := s.latest.Add(-s.early/4 - s.part("target", s.early*3/4))
	if s.early > 0 {
		why = "spread over the last " + inventory.FormatDuration(s.early) + " of its interval"
	}
	next, ok := s.open.Next(target)
	if ok && !next.Begin.After(s.latest) {
		if next.Begin.Equal(target) {
			return target, why
		}
		at = next.Begin.Add(s.part("in", min(next.Length()/2, s.latest.Sub(next.Begin), s.atMost())))
		return at, "in the window that follows its place in the spread"
	}
	if before, found := s.open.Last(s.first, target); found {
		length := min(before.Length(), s.atMost()) // of a long opening the end
		return before.End.Add(-length + s.part("in", length/2)), "in the last window before the deadline"
	}
	if !ok {
		return s.latest.Add(366 * 24 * time.Hour), "no window in the next two years"
	}
	return next.Begin.Add(s.part("in", min(next.Length()/2, s.atMost()))), "in the first window there is, after the deadline"
}

// atMost is over how much of a long opening turns are spread.
func (s slot) atMost() time.Duration { return max(24*time.Hour, s.early) }

func (s slot) part(what string, of time.Duration) time.Duration {
	return part(seed(s.seed, s.since, what), of)
}

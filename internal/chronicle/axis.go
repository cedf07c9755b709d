package chronicle

import (
	"time"

	"pawl.dev/internal/calendar"
)

// Axis maps time to places from 0 to 1. A drain of minutes would squeeze the
// work of milliseconds into nothing, so long stretches in which nothing was done
// are shortened; everything else is to scale.
type Axis struct {
	from  []stretch
	total time.Duration // as drawn
}

// stretch of time, drawn as long as drawn says.
type stretch struct {
	begin, end time.Time
	drawn      time.Duration
}

func (s stretch) cut() bool { return s.drawn < s.end.Sub(s.begin) }

// idleShare is how long an idle stretch may be drawn, beside all the work.
const idleShare = 0.2

func newAxis(begin, end time.Time, busy []calendar.Span) Axis {
	var a Axis
	busy = calendar.Union(busy)
	var work time.Duration
	for _, b := range busy {
		work += b.Length()
	}
	most := time.Duration(idleShare * float64(work))
	add := func(begin, end time.Time, idle bool) {
		if !end.After(begin) {
			return
		}
		s := stretch{begin, end, end.Sub(begin)}
		if idle && work > 0 && s.drawn > 2*most {
			s.drawn = max(most, 1)
		}
		a.from, a.total = append(a.from, s), a.total+s.drawn
	}
	at := begin
	for _, b := range busy {
		add(at, b.Begin, true)
		add(b.Begin, b.End, false)
		at = b.End
	}
	add(at, end, true)
	return a
}

// Place of a moment, from 0, the axis's beginning, to 1, its end.
func (a Axis) Place(t time.Time) float64 {
	if a.total == 0 {
		return 0
	}
	var before time.Duration
	for _, s := range a.from {
		if t.Before(s.end) {
			inside := max(0, t.Sub(s.begin).Seconds()) / s.end.Sub(s.begin).Seconds()
			return (before.Seconds() + inside*s.drawn.Seconds()) / a.total.Seconds()
		}
		before += s.drawn
	}
	return 1
}

// Cut is a stretch that is drawn shorter than it was, from place to place.
type Cut struct{ From, To float64 }

// Cuts returns them in order.
func (a Axis) Cuts() (cuts []Cut) {
	for _, s := range a.from {
		if s.cut() {
			cuts = append(cuts, Cut{a.Place(s.begin), a.Place(s.end.Add(-1))})
		}
	}
	return cuts
}

// Package calendar says when work may be done: in weekly windows, in a time zone
// each, and never in a blackout. An instant is inside a window if, and only if,
// a clock on the wall of that zone says so. It is pure: no clock, no I/O.
package calendar

import (
	"slices"
	"time"
)

// Span is the time from Begin up to, and without, End.
type Span struct{ Begin, End time.Time }

// Contains reports whether t lies in the span.
func (s Span) Contains(t time.Time) bool { return !t.Before(s.Begin) && t.Before(s.End) }

// Length of the span.
func (s Span) Length() time.Duration { return s.End.Sub(s.Begin) }

// Calendar is when something is open. The zero Calendar always is.
type Calendar struct {
	windows [][]Window // open in one of each list
	closed  []Blackout
}

// New returns the calendar that is open in any of the windows, always where
// there are none, but in no blackout.
func New(windows []Window, blackouts []Blackout) Calendar {
	c := Calendar{closed: blackouts}
	if len(windows) > 0 {
		c.windows = [][]Window{windows}
	}
	return c
}

// And returns the calendar that is open when both are.
func (c Calendar) And(other Calendar) Calendar {
	return Calendar{slices.Concat(c.windows, other.windows), slices.Concat(c.closed, other.closed)}
}

// Without returns the calendar closed at these times, too.
func (c Calendar) Without(spans ...Span) Calendar {
	closed := slices.Clone(c.closed)
	for _, s := range spans {
		closed = append(closed, Blackout{Span: s})
	}
	return Calendar{c.windows, closed}
}

// Bounded reports whether the calendar has windows.
func (c Calendar) Bounded() bool { return len(c.windows) > 0 }

const (
	week = 7 * 24 * time.Hour
	// look is how much is worked out at a time.
	look = 4 * week
	// horizon is how far Next and Last look: longer than blackouts are accepted.
	horizon = 106 * week
)

// Openings returns the open spans from one time to another, in order, cut off
// at both.
func (c Calendar) Openings(from, to time.Time) []Span {
	if !from.Before(to) {
		return nil
	}
	open := []Span{{from, to}}
	for _, list := range c.windows {
		var spans []Span
		for _, w := range list {
			spans = append(spans, w.spans(from, to)...)
		}
		open = both(open, Union(spans))
	}
	for _, b := range c.closed {
		open = without(open, b.Span)
	}
	return open
}

// Next returns the open span that t lies in, from t on, or the first that
// begins later. ok is false where there is none within two years.
func (c Calendar) Next(t time.Time) (span Span, ok bool) {
	for from := t; from.Before(t.Add(horizon)); from = from.Add(look) {
		if open := c.Openings(from, from.Add(look)); len(open) > 0 {
			first := open[0]
			for first.End.Equal(from.Add(look)) && from.Before(t.Add(horizon)) { // it goes on
				from = from.Add(look)
				more := c.Openings(from, from.Add(look))
				if len(more) == 0 || !more[0].Begin.Equal(first.End) {
					break
				}
				first.End = more[0].End
			}
			return first, true
		}
	}
	return Span{}, false
}

// Last returns the last open span between two times, cut off at both, and at
// four weeks. ok is false where there is none, or none within two years before t.
func (c Calendar) Last(after, t time.Time) (span Span, ok bool) {
	if early := t.Add(-horizon); after.Before(early) {
		after = early
	}
	for to := t; to.After(after); to = to.Add(-look) {
		from := to.Add(-look)
		if from.Before(after) {
			from = after
		}
		if open := c.Openings(from, to); len(open) > 0 {
			return open[len(open)-1], true
		}
	}
	return Span{}, false
}

// Open reports whether the calendar is open at t.
func (c Calendar) Open(t time.Time) bool { return len(c.Openings(t, t.Add(1))) > 0 }

// Gap is the longest time from one window's opening to the next one's, over a
// year that has every change of the clocks; 0 where the calendar is always open.
// Blackouts do not count. ok is false where the windows never meet.
func (c Calendar) Gap(from time.Time) (longest time.Duration, ok bool) {
	if !c.Bounded() {
		return 0, true
	}
	open := Calendar{windows: c.windows}.Openings(from, from.Add(56*week))
	if len(open) < 2 {
		return 0, false
	}
	for i := range open[1:] {
		longest = max(longest, open[i+1].Begin.Sub(open[i].Begin))
	}
	return longest, true
}

// Union sorts spans, in place, and returns them with those that touch joined.
func Union(spans []Span) []Span {
	slices.SortFunc(spans, func(a, b Span) int { return a.Begin.Compare(b.Begin) })
	var out []Span
	for _, s := range spans {
		if n := len(out); n > 0 && !s.Begin.After(out[n-1].End) {
			if s.End.After(out[n-1].End) {
				out[n-1].End = s.End
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// both returns what lies in a and in b; each is sorted and disjoint.
func both(a, b []Span) (out []Span) {
	for len(a) > 0 && len(b) > 0 {
		s := cut(a[0], b[0])
		if s.Begin.Before(s.End) {
			out = append(out, s)
		}
		if a[0].End.Before(b[0].End) {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

func without(open []Span, closed Span) (out []Span) {
	for _, s := range open {
		if before := cut(s, Span{s.Begin, closed.Begin}); before.Begin.Before(before.End) {
			out = append(out, before)
		}
		if after := cut(s, Span{closed.End, s.End}); after.Begin.Before(after.End) {
			out = append(out, after)
		}
	}
	return out
}

// cut returns what two spans share; it ends before it begins where that is nothing.
func cut(a, b Span) Span {
	if b.Begin.After(a.Begin) {
		a.Begin = b.Begin
	}
	if b.End.Before(a.End) {
		a.End = b.End
	}
	return a
}

package render

import (
	"slices"
	"strings"
	"time"
)

// axis maps time to columns. A drain of minutes would squeeze the work of
// milliseconds into nothing, so long stretches in which nothing was done are
// shortened; everything else is to scale.
type axis struct {
	width int
	from  []stretch
	total time.Duration // as drawn
}

// stretch of time, drawn as long as drawn says.
type stretch struct {
	begin, end time.Time
	drawn      time.Duration
}

func (s stretch) cut() bool { return s.drawn < s.end.Sub(s.begin) }

type interval struct{ begin, end time.Time }

// idleShare is how long an idle stretch may be drawn, beside all the work.
const idleShare = 0.2

func newAxis(begin, end time.Time, busy []interval, width int) axis {
	a := axis{width: width}
	busy = merge(busy)
	var work time.Duration
	for _, b := range busy {
		work += b.end.Sub(b.begin)
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
		add(at, b.begin, true)
		add(b.begin, b.end, false)
		at = b.end
	}
	add(at, end, true)
	return a
}

func merge(all []interval) []interval {
	slices.SortFunc(all, func(x, y interval) int { return x.begin.Compare(y.begin) })
	var out []interval
	for _, i := range all {
		if n := len(out); n > 0 && !i.begin.After(out[n-1].end) {
			if i.end.After(out[n-1].end) {
				out[n-1].end = i.end
			}
			continue
		}
		out = append(out, i)
	}
	return out
}

// column of a moment, from 0 to width.
func (a axis) column(t time.Time) float64 {
	if a.total == 0 {
		return 0
	}
	var before time.Duration
	for _, s := range a.from {
		if t.Before(s.end) {
			inside := max(0, t.Sub(s.begin).Seconds()) / s.end.Sub(s.begin).Seconds()
			return float64(a.width) * (before.Seconds() + inside*s.drawn.Seconds()) / a.total.Seconds()
		}
		before += s.drawn
	}
	return float64(a.width)
}

const eighths = "▏▎▍▌▋▊▉█"

// bar of work, to an eighth of a column at its end.
func (a axis) bar(begin, end time.Time) string {
	first := min(int(a.column(begin)), a.width-1)
	length := max(1, int((a.column(end)-float64(first))*8+0.5))
	length = min(length, 8*(a.width-first))
	text := strings.Repeat(" ", first) + strings.Repeat("█", length/8)
	if rest := length % 8; rest > 0 {
		text += string([]rune(eighths)[rest-1])
	}
	return text
}

// wait is a bar of waiting.
func (a axis) wait(begin, end time.Time) string {
	first := min(int(a.column(begin)), a.width-1)
	last := max(first+1, int(a.column(end)+0.5))
	return strings.Repeat(" ", first) + strings.Repeat("░", last-first)
}

// ruler is the axis itself, with ╌ where it is shortened.
func (a axis) ruler(length string) string {
	line := []rune(strings.Repeat("─", a.width))
	for _, s := range a.from {
		if s.cut() {
			last := min(a.width, int(a.column(s.end.Add(-1))+0.5))
			for i := int(a.column(s.begin)); i < last; i++ {
				line[i] = '╌'
			}
		}
	}
	copy(line, []rune("0 "))
	length = " " + length
	copy(line[a.width-len([]rune(length)):], []rune(length))
	return string(line)
}

func (a axis) shortened() bool { return slices.ContainsFunc(a.from, stretch.cut) }

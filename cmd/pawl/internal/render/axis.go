package render

import (
	"strings"
	"time"

	"pawl.dev/internal/chronicle"
)

// axis is drawn in columns.
type axis struct {
	chronicle.Axis
	width int
}

// column of a moment, from 0 to width.
func (a axis) column(t time.Time) float64 { return float64(a.width) * a.Place(t) }

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
	for _, cut := range a.Cuts() {
		last := min(a.width, int(cut.To*float64(a.width)+0.5))
		for i := int(cut.From * float64(a.width)); i < last; i++ {
			line[i] = '╌'
		}
	}
	copy(line, []rune("0 "))
	length = " " + length
	copy(line[a.width-len([]rune(length)):], []rune(length))
	return string(line)
}

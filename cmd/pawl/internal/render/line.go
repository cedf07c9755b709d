package render

import (
	"fmt"
	"strings"
	"time"

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/words"
)

// Line is an event or a note for people.
func Line(l chronicle.Line, s Style) string {
	c, what, took := plain, l.Event, ""
	switch {
	case l.Failed:
		c = red
	case l.Note != "":
		c, what = yellow, "("+l.Note+")"
	}
	if l.Event != "" && l.Seconds > 0 {
		took = words.Duration(time.Duration(l.Seconds * float64(time.Second)))
	}
	if l.Attempt > 1 {
		what += fmt.Sprintf(" ×%d", l.Attempt)
	}
	head := fmt.Sprintf("%s  %-14s  ", s.clock(l.At), l.Credential)
	return strings.TrimRight(s.paint(dim, head)+s.paint(c, fmt.Sprintf("%-18s  %-16s  %7s  %s", what, l.Service, took, l.Text)), " ")
}

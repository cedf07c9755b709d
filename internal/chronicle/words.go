package chronicle

import (
	"fmt"
	"strings"
	"time"
)

// Short is a duration in two units at most: 45ms, 2.31s, 2m14s, 3h12m, 12d4h.
func Short(d time.Duration) string {
	const day = 24 * time.Hour
	two := func(large, small time.Duration, unit, sub string) string {
		text := fmt.Sprintf("%d%s", d/large, unit)
		if rest := d % large / small; rest > 0 {
			text += fmt.Sprintf("%d%s", rest, sub)
		}
		return text
	}
	switch {
	case d < 0:
		return "-" + Short(-d)
	case d == 0:
		return "0s"
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return two(time.Minute, time.Second, "m", "s")
	case d < day:
		return two(time.Hour, time.Minute, "h", "m")
	}
	return two(day, time.Hour, "d", "h")
}

// OneLine keeps tables tables.
func OneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

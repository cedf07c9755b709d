// Package words writes lengths of time and texts for people and their programs.
package words

import (
	"fmt"
	"strings"
	"time"
)

// Duration writes a length in two units at most: 45ms, 2.31s, 2m14s, 3h12m, 12d4h.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + Duration(-d)
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
	}
	return strings.Join(TwoUnits(d), "")
}

// TwoUnits splits a length of a second or more into its two largest units, 2m and
// 14s. A second one that is zero is left out.
func TwoUnits(d time.Duration) (parts []string) {
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		n := d / unit.size
		d -= n * unit.size
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d%s", n, unit.name))
		}
		if n == 0 && len(parts) > 0 || len(parts) == 2 {
			break
		}
	}
	return parts
}

// OneLine keeps tables tables.
func OneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// Cell keeps a spreadsheet from computing what begins like a formula, also after
// spaces, and in the wide forms that some take for the same.
func Cell(text string) string {
	if t := strings.TrimSpace(text); t != "" && strings.ContainsRune("=+-@＝＋－＠", []rune(t)[0]) {
		return "'" + text
	}
	return text
}

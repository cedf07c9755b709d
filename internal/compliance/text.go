package compliance

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

const day = 24 * time.Hour

// span writes a duration for people: its two largest units from a minute on, to
// the millisecond below.
func span(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Millisecond).String()
	}
	var parts []string
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{day, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		n := d / unit.size
		d -= n * unit.size
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d%s", n, unit.name))
		} else if len(parts) > 0 {
			break
		}
	}
	return strings.Join(parts[:min(2, len(parts))], " ")
}

func optional(d *time.Duration) string {
	if d == nil {
		return ""
	}
	return span(*d)
}

// clean makes text from elsewhere one line that shows all that is in it: names
// and reasons are their authors', who may mean to mislead.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r):
			return ' '
		case unicode.Is(unicode.Cf, r): // turns text round, or hides in it
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}

func references(all []Evidence) string {
	var texts []string
	for _, e := range all {
		texts = append(texts, e.String())
	}
	return strings.Join(texts, ", ")
}

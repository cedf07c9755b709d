package compliance

import (
	"strings"
	"time"
	"unicode"

	"pawl.dev/internal/words"
)

const day = 24 * time.Hour

// span writes a duration for people: its two largest units from a minute on, to
// the millisecond below.
func span(d time.Duration) string {
	if d < time.Minute {
		return d.Round(time.Millisecond).String()
	}
	return strings.Join(words.TwoUnits(d), " ")
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

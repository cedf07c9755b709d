// Package render turns logs, notes and findings into what a person or a script
// reads. It is pure: what it prints depends on its arguments alone.
package render

import (
	"encoding/json"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"pawl.dev/cmd/pawl/internal/terminal"
)

// Style of what is printed.
type Style struct {
	Color bool
	Width int            // columns; 0: 100
	Zone  *time.Location // of times of day; nil: UTC
}

type colour string

const (
	plain  colour = ""
	dim    colour = "2"
	bold   colour = "1"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	blue   colour = "34"
)

func (s Style) paint(c colour, text string) string {
	if !s.Color || c == plain || text == "" {
		return text
	}
	return terminal.Own("["+string(c)+"m") + text + terminal.Own("[0m")
}

func (s Style) width() int {
	if s.Width == 0 {
		return 100
	}
	return s.Width
}

func (s Style) in(t time.Time) time.Time {
	if s.Zone == nil {
		return t.UTC()
	}
	return t.In(s.Zone)
}

func (s Style) date(t time.Time) string  { return s.in(t).Format("2006-01-02 15:04:05 MST") }
func (s Style) clock(t time.Time) string { return s.in(t).Format("15:04:05.000") }

// JSON writes v for scripts.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// wrap breaks text into lines of at most width runes; a longer word stands alone.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// fit pads text to width, or cuts its beginning: the end of a path tells more.
func fit(text string, width int) string {
	if runes := []rune(text); len(runes) > width {
		text = "…" + string(runes[len(runes)-width+1:])
	}
	return text + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}

func right(text string, width int) string {
	return strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text))) + text
}

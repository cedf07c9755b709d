package incident

import (
	_ "embed"
	"fmt"
	html "html/template"
	"io"
	"maps"
	"slices"
	"strings"
	text "text/template"
	"time"
	"unicode"

	"pawl.dev/internal/postgres"
	"pawl.dev/internal/service"
	"pawl.dev/internal/words"
)

var (
	//go:embed report.md.tmpl
	markdownTemplate string
	//go:embed report.html.tmpl
	htmlTemplate string
)

var shared = map[string]any{
	"at":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000 UTC") },
	"clock": func(t time.Time) string { return t.UTC().Format("15:04:05.000") },
	"after": func(seconds float64) string { return words.Duration(time.Duration(seconds * float64(time.Second))) },
	"title": func(kind string) string { return strings.ToUpper(kind[:1]) + kind[1:] },
	"count": service.Count[uint32],
	"pairs": pairs,
	"list":  func(all []string) string { return strings.Join(all, ", ") },
	"cells": func(t postgres.Table) postgres.Table { t, _ = t.Removals(); return t },
}

var (
	asMarkdown = text.Must(text.New("report").Funcs(shared).Funcs(text.FuncMap{"v": markdown, "removals": removals}).Parse(markdownTemplate))
	asHTML     = html.Must(html.New("report").Funcs(shared).Funcs(html.FuncMap{"v": plain}).Parse(htmlTemplate))
)

// Markdown writes the report for a repository or a ticket.
func (r *Report) Markdown(w io.Writer) error { return asMarkdown.Execute(w, r) }

// HTML writes the report as one file that needs nothing beside it.
func (r *Report) HTML(w io.Writer) error { return asHTML.Execute(w, r) }

func pairs(labels map[string]string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, name+"="+labels[name])
	}
	return strings.Join(all, ", ")
}

// plain shows what would move, hide or break what stands around it: line breaks,
// control characters, and marks that turn the direction of writing.
func plain(s string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			out.WriteString("⏎")
		case r == '\t':
			out.WriteByte(' ')
		case unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co):
			fmt.Fprintf(&out, "\\u{%x}", r)
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

// markdown also takes the meaning of whatever Markdown, or the HTML in it, gives
// one: names and queries are a thief's.
func markdown(s string) string {
	var out strings.Builder
	for _, r := range plain(s) {
		switch {
		case r == '<':
			out.WriteString("&lt;")
		case r == '>':
			out.WriteString("&gt;")
		case r == '&':
			out.WriteString("&amp;")
		case strings.ContainsRune("\\`*_[]|~!#", r):
			out.WriteByte('\\')
			out.WriteRune(r)
		default:
			out.WriteRune(r)
		}
	}
	return noLinks.Replace(out.String())
}

// removals are the statements of a table in a block of code, where nothing is escaped,
// so that each can be copied. No name ends the block: it holds no line break, and
// fewer backticks in a row than the fence.
func removals(t postgres.Table) string {
	_, statements := t.Removals()
	if len(statements) == 0 {
		return ""
	}
	fence := "```"
	var lines []string
	for _, s := range statements {
		lines = append(lines, plain(s)+";")
		for strings.Contains(s, fence) {
			fence += "`"
		}
	}
	return fence + "sql\n" + strings.Join(lines, "\n") + "\n" + fence
}

// noLinks keeps an address from becoming a link by itself.
var noLinks = strings.NewReplacer("://", ":&#47;&#47;", "www.", "www&#46;")

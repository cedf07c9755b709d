package compliance

import (
	_ "embed"
	"html/template"
	"io"
)

//go:embed report.html.tmpl
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{"short": short}).Parse(page))

// HTML writes the report as one page that needs nothing else: no script, no
// other file; light or dark as its reader prefers, and printable.
func (r *Report) HTML(to io.Writer) error { return pageTemplate.Execute(to, r.document()) }

// short cells, such as times, are not broken into lines on a screen.
func short(cell string) bool { return len(cell) <= len("2006-01-02T15:04:05+00:00") }

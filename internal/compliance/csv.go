package compliance

import (
	"encoding/csv"
	"io"

	"pawl.dev/internal/words"
)

// CSV writes every table of the report into one: the first column names the
// section, whose first row names the columns, so that a filter on it leaves one
// table. Every row has the same number of fields (RFC 4180). What a spreadsheet
// would take for a formula begins with an apostrophe.
func (r *Report) CSV(to io.Writer) error {
	d := r.document()
	lead := section{ID: "report", Columns: []string{"line"}}
	if d.Alarm != "" {
		lead.add(true, d.Alarm)
	}
	for _, line := range append(append([]string{d.Title}, d.Lead...), d.Last) {
		lead.add(false, line)
	}
	figures := section{ID: "numbers", Columns: []string{"what", "number"}}
	for _, f := range d.Figures {
		figures.add(f.Bad, f.Name, f.Value)
	}
	sections := append([]section{lead, figures}, d.Sections...)
	width := 0
	for _, s := range sections {
		width = max(width, 1+len(s.Columns))
	}
	w := csv.NewWriter(to)
	line := func(id string, cells []string) {
		fields := make([]string, width)
		fields[0] = id
		for i, c := range cells {
			fields[i+1] = words.Cell(c)
		}
		_ = w.Write(fields) // Error tells
	}
	for _, s := range sections {
		line(s.ID, s.Columns)
		for _, r := range s.Rows {
			line(s.ID, r.Cells)
		}
	}
	w.Flush()
	return w.Error()
}

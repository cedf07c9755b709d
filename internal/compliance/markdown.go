package compliance

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Markdown writes the report as GitHub reads it.
func (r *Report) Markdown(to io.Writer) error {
	d := r.document()
	w := bufio.NewWriter(to)
	fmt.Fprintf(w, "# %s\n\n", markdown(d.Title))
	if d.Alarm != "" {
		fmt.Fprintf(w, "> **%s**\n\n", markdown(d.Alarm))
	}
	for _, line := range d.Lead {
		fmt.Fprintf(w, "- %s\n", markdown(line))
	}
	fmt.Fprint(w, "\n## In numbers\n\n| | |\n|---|---:|\n")
	for _, f := range d.Figures {
		value := f.Value
		if f.Bad {
			value = "**" + value + "**"
		}
		fmt.Fprintf(w, "| %s | %s |\n", markdown(f.Name), value)
	}
	for _, s := range d.Sections {
		fmt.Fprintf(w, "\n## %s\n\n", markdown(s.Title))
		for _, note := range s.Notes {
			fmt.Fprintf(w, "%s\n\n", markdown(note))
		}
		if len(s.Rows) == 0 {
			fmt.Fprintf(w, "%s\n", markdown(s.Empty))
			continue
		}
		markdownRow(w, s.Columns)
		fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(s.Columns)))
		for _, r := range s.Rows {
			markdownRow(w, r.Cells)
		}
	}
	fmt.Fprintf(w, "\n---\n\n%s\n", markdown(d.Last))
	return w.Flush()
}

func markdownRow(w io.Writer, cells []string) {
	fmt.Fprint(w, "|")
	for _, c := range cells {
		fmt.Fprintf(w, " %s |", markdown(c))
	}
	fmt.Fprintln(w)
}

// markdown takes from text whatever would be more than text: emphasis, links
// (those that readers make of bare addresses, too), HTML, cells.
var markdown = strings.NewReplacer(
	`\`, `\\`, "`", "\\`", `*`, `\*`, `_`, `\_`, `[`, `\[`, `]`, `\]`, `<`, `&lt;`, `>`, `&gt;`, `&`, `&amp;`,
	`#`, `\#`, `|`, `\|`, `~`, `\~`, `!`, `\!`, `$`, `\$`, `://`, `&#58;//`, `www.`, `www&#46;`, `@`, `&#64;`,
).Replace

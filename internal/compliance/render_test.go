package compliance

import (
	"bytes"
	"encoding/csv"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// rendered is the report in every format.
func rendered(t *testing.T, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	for _, err := range []error{r.Markdown(&b), r.HTML(&b), r.CSV(&b)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// quarter is a report over a history with some of everything, for golden files
// and for looking at.
func quarter(t *testing.T, framework string) *Report {
	t.Helper()
	f, err := FrameworkByName(framework)
	if err != nil {
		t.Fatal(err)
	}
	inv, log := world(3)
	p := Period{begin.Add(90 * day), begin.Add(180 * day)}
	b := NewBuilder(inv, p)
	for _, r := range records(log) {
		b.Add(r)
	}
	at := begin.Add(181 * day)
	trail := Trail{Origin: "pawl/example", Size: 200, Root: "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", Key: "pawl/example+5a3c09f1", Records: 205, Newest: at}
	r := b.Report(f, trail, &Now{At: at,
		Settings: []Finding{{"app-0", "coordinator", "log_connections on, log_disconnections off, pgaudit.log not loaded, password_encryption scram-sha-256, ssl on"}},
		Members:  []Finding{{"app-0", "coordinator", `"app": members "app_b"; superusers "postgres"; may create roles "pawl_admin"`}},
		Silent:   []Finding{{"app-1", "", "the verifier is not running"}}})
	r.Configuration.Digest = "0123456789abcdef"
	r.Users = []User{{"operator", []string{"pawl.request.>", "pawl.emergency.>"}, []string{}}, {"verifier", []string{"pawl.note.verifier"}, []string{"read pawl.sealed.*.*.verifier"}}} // the table changes
	return r
}

func TestReportsAreAsTheyWereReviewed(t *testing.T) {
	for file, write := range map[string]func(*Report, *bytes.Buffer) error{
		"soc2.md":       func(r *Report, b *bytes.Buffer) error { return r.Markdown(b) },
		"iso27001.html": func(r *Report, b *bytes.Buffer) error { return r.HTML(b) },
		"pci-dss.csv":   func(r *Report, b *bytes.Buffer) error { return r.CSV(b) },
		"hipaa.md":      func(r *Report, b *bytes.Buffer) error { return r.Markdown(b) },
	} {
		var got bytes.Buffer
		if err := write(quarter(t, strings.TrimSuffix(file, filepath.Ext(file))), &got); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", file)
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s differs from what is written now: look at the difference after `go test ./compliance -update`", path)
		}
	}
}

// hostile is a report in which everything that somebody else may name is an attack.
func hostile(t *testing.T, text string) *Report {
	t.Helper()
	cluster := &inventory.Cluster{Name: "main", Environment: text}
	inv := &inventory.Inventory{Credentials: map[string]*inventory.Credential{"app": {Name: "app", Cluster: cluster, Role: text, Strategy: inventory.InPlace}}}
	b := NewBuilder(inv, Period{begin, begin.Add(day)})
	for i, e := range []saga.Event{saga.Requested, saga.StageFailed, saga.Unstaged, saga.RolledBack} {
		b.Add(Record{int64(i), &pawlv1.AuditRecord{Stream: bus.StreamLog, Sequence: uint64(i + 1), At: timestamppb.New(begin.Add(time.Duration(i) * time.Second)),
			Event: string(e), Flow: saga.InPlace, Credential: "app", Rotation: "r-1", Actor: text, Reason: text, Summary: text, TraceId: text, AuthenticatedAs: text}})
	}
	b.Add(Record{4, &pawlv1.AuditRecord{Stream: bus.StreamNote, Sequence: 1, At: timestamppb.New(begin), Event: "drift", Credential: "app", Actor: text, Summary: text}})
	return b.Report(Frameworks[0], Trail{Fault: text}, &Now{At: begin, Members: []Finding{{"app", text, text}}})
}

func TestHostileNamesStayText(t *testing.T) {
	for _, c := range []struct{ name, text, md, html, csv string }{ // what must nowhere be found
		{"a script", `<script>alert(1)</script>`, "<script", "<script", ""},
		{"an attribute", `" onmouseover="alert(1)`, "", `" onmouseover`, ""},
		{"a cell", "a|b\n|c", "a|b", "", "\n|c"},
		{"an escaped cell", `a\|b`, `a\\|b`, "", ""},
		{"a link", "[here](javascript:alert(1))", "[here]", "<a href=\"javascript", ""},
		{"a bare address", "see https://evil.example/x and www.evil.example", "https://evil", "", ""},
		{"an image", "![x](https://evil.example/x.png)", "![x]", "<img", ""},
		{"a heading", "\n# forged", "\n# forged", "", "\n# forged"},
		{"a formula", "=HYPERLINK(\"http://evil\")", "", "", "=HYPERLINK"},
		{"a formula after a space", " \t+1+1", "", "", "  +1+1"},
		{"a wide formula", "＝1+1", "", "", "＝1+1"},
		{"a command", "@SUM(1)", "", "", "@SUM(1)"},
		{"text turned round", "app\u202egnp.exe", "\u202e", "\u202e", "\u202e"},
		{"a line separator", "a\u2028b", "\u2028", "\u2028", "\u2028"},
		{"control characters", "a\x1b[31mb\x00", "\x1b", "\x1b", "\x1b"},
		{"no UTF-8", "a\xffb", "\xff", "\xff", "\xff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := hostile(t, c.text)
			var md, html, table bytes.Buffer
			for _, err := range []error{r.Markdown(&md), r.HTML(&html), r.CSV(&table)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			if c.md != "" && strings.Contains(md.String(), c.md) {
				t.Errorf("%q in the Markdown", c.md)
			}
			if c.html != "" && strings.Contains(html.String(), c.html) {
				t.Errorf("%q in the HTML", c.html)
			}
			rows, err := csv.NewReader(&table).ReadAll()
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range rows {
				for _, cell := range row {
					if c.csv != "" && strings.HasPrefix(cell, c.csv) || strings.ContainsAny(cell, "\n\x1b") {
						t.Errorf("the cell %q", cell)
					}
				}
			}
			for _, line := range strings.Split(md.String(), "\n") { // every row has its header's number of cells
				if strings.HasPrefix(line, "| app |") && strings.Count(strings.ReplaceAll(line, `\|`, ""), "|") < 4 {
					t.Errorf("the row %q", line)
				}
			}
		})
	}
}

func TestTrailThatDoesNotVerifyIsSaidAtTheTop(t *testing.T) {
	r := hostile(t, "record 7 was changed")
	var md, html, table bytes.Buffer
	for _, err := range []error{r.Markdown(&md), r.HTML(&html), r.CSV(&table)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"Markdown": md.String(), "HTML": html.String(), "CSV": table.String()} {
		at := strings.Index(text, "The audit trail does not verify: record 7 was changed")
		if at < 0 || at > strings.Index(text, "Period: from") || strings.Contains(text, "verified when this report was made") {
			t.Errorf("%s: not before all else:\n%.400s", name, text[max(0, strings.Index(text, "<h1>")):])
		}
	}
}

func TestNoReportClaimsCompliance(t *testing.T) {
	for _, f := range Frameworks {
		var md bytes.Buffer
		if err := quarter(t, f.Name).Markdown(&md); err != nil {
			t.Fatal(err)
		}
		text := strings.ToLower(strings.ReplaceAll(md.String(), disclaimer, ""))
		for _, word := range []string{"compliant", "complies", "in compliance", "conforms", "satisfies", "fulfils", "meets"} {
			if strings.Contains(text, word) {
				t.Errorf("%s: says %q", f.Name, word)
			}
		}
		if !strings.Contains(md.String(), disclaimer) {
			t.Errorf("%s: no disclaimer", f.Name)
		}
	}
}

func TestEveryMappingNamesSectionsThatAreThere(t *testing.T) {
	titles := map[string]bool{}
	for _, s := range quarter(t, "soc2").document().Sections {
		titles[strings.TrimSuffix(s.Title, ", as of now")] = true
	}
	for _, f := range Frameworks {
		if f.Intervals == "" || f.Title == "" {
			t.Errorf("%s: lacks its title, or what it says of intervals", f.Name)
		}
		for _, theme := range f.Themes {
			if theme.Reference == "" || theme.About == "" || theme.Shown == "" || theme.Missing == "" {
				t.Errorf("%s %s: a field is empty", f.Name, theme.Reference)
			}
			for part := range strings.SplitSeq(theme.Shown, ";") {
				name, _, _ := strings.Cut(strings.TrimSpace(part), ":")
				name, _, _ = strings.Cut(name, ",")
				if name = strings.TrimSuffix(name, " (as of now)"); name != "" && !titles[name] {
					t.Errorf("%s %s: there is no section %q", f.Name, theme.Reference, name)
				}
			}
		}
	}
}

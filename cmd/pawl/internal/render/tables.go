package render

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/words"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// History writes rotations, one a line.
func History(w io.Writer, all []chronicle.Rotation, s Style) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROTATION\tFLOW\tREQUESTED\tENDED\tOUTCOME\tTOOK\tBY\tREASON\tFAILURE")
	for _, r := range all {
		ended, failure := "-", "-"
		if r.Ended != nil {
			ended = s.date(*r.Ended)
		}
		if r.Failure != nil {
			failure = r.Failure.Step + ": " + words.OneLine(r.Failure.Reason)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Flow, s.date(r.Requested), ended, r.Outcome, words.Duration(r.Took()),
			cmp.Or(words.OneLine(r.RequestedBy), r.AuthenticatedAs, "-"), cmp.Or(words.OneLine(r.Reason), "-"), failure)
	}
	return t.Flush()
}

// Finding is one line of a plan, or of a doctor's report.
type Finding struct {
	Service string `json:"service"`
	Target  string `json:"target"`
	Finding string `json:"finding"`
	Refused bool   `json:"refused"` // of a doctor's: disagrees
}

// Plan is what a rotation would be.
type Plan struct {
	Credential string    `json:"credential"`
	Refused    bool      `json:"refused"`
	Reason     string    `json:"reason,omitempty"`
	Checks     []Finding `json:"checks"`
	Steps      []Finding `json:"steps"`
}

// NewPlan reads the answer to a request for a plan.
func NewPlan(a *pawlv1.Answer) Plan {
	p := Plan{Credential: a.GetCredential(), Refused: a.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED, Reason: a.GetReason()}
	for _, c := range a.GetPlan() {
		if does, isStep := strings.CutPrefix(c.GetFinding(), "step: "); isStep {
			p.Steps = append(p.Steps, Finding{c.GetService(), c.GetTarget(), does, false})
		} else {
			p.Checks = append(p.Checks, Finding{c.GetService(), c.GetTarget(), c.GetFinding(), c.GetRefused()})
		}
	}
	return p
}

// PlanTable writes what was found, and the steps in order.
func PlanTable(w io.Writer, p Plan, s Style) error {
	if len(p.Checks) > 0 {
		fmt.Fprintln(w, s.paint(bold, "preflight"))
		if err := findings(w, p.Checks, columnsOf(p.Checks...), s); err != nil {
			return err
		}
	}
	if len(p.Steps) == 0 {
		return nil
	}
	fmt.Fprintln(w, s.paint(bold, "steps"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, step := range p.Steps {
		fmt.Fprintf(t, "  %d  %s\t%s\t%s\n", i+1, step.Target, step.Service, step.Finding)
	}
	return t.Flush()
}

// columns holds the widths of findings that stand below each other.
type columns struct{ service, target int }

func columnsOf(all ...Finding) (c columns) {
	for _, f := range all {
		c.service, c.target = max(c.service, utf8.RuneCountInString(f.Service)), max(c.target, min(32, utf8.RuneCountInString(f.Target)))
	}
	return c
}

// findings writes one line each, the mark in front; long ones are wrapped.
func findings(w io.Writer, all []Finding, c columns, s Style) error {
	indent := 2 + 2 + c.service + 2 + c.target + 2
	for _, f := range all {
		mark, paint := "✓", green
		switch {
		case f.Refused:
			mark, paint = "✗", red
		case strings.HasPrefix(f.Finding, "warning:"):
			mark, paint = "!", yellow
		}
		head := "  " + s.paint(paint, mark) + " " + fit(f.Service, c.service) + "  " + fit(f.Target, c.target) + "  "
		for _, text := range wrap(f.Finding, max(30, s.width()-indent)) {
			if f.Refused {
				text = s.paint(red, text)
			}
			if _, err := fmt.Fprintln(w, head+text); err != nil {
				return err
			}
			head = strings.Repeat(" ", indent)
		}
	}
	return nil
}

// Doctor is what was found of one credential.
type Doctor struct {
	Credential string    `json:"credential"`
	Agrees     bool      `json:"agrees"`
	Published  []Finding `json:"published"` // what each sink holds
	Stored     []Finding `json:"stored"`    // what each node holds
	Used       []Finding `json:"used"`      // what each consumer uses
	Expected   string    `json:"expected"`  // what the log says
}

// DoctorTable writes what was found, part by part.
func DoctorTable(w io.Writer, d Doctor, s Style) error {
	mark, c := "✓ all agree", green
	if !d.Agrees {
		mark, c = "✗ disagree", red
	}
	widths := columnsOf(slices.Concat(d.Published, d.Stored, d.Used)...)
	fmt.Fprintf(w, "%s  %s\nby the log: %s\n", s.paint(bold, d.Credential), s.paint(c, mark), d.Expected)
	for _, part := range []struct {
		title string
		lines []Finding
	}{{"published", d.Published}, {"stored", d.Stored}, {"used", d.Used}} {
		fmt.Fprintln(w, s.paint(dim, part.title))
		if len(part.lines) == 0 {
			fmt.Fprintln(w, "  - nothing to see")
		}
		if err := findings(w, part.lines, widths, s); err != nil {
			return err
		}
	}
	return nil
}

package render

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"pawl.dev/cmd/pawl/internal/client"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// History writes rotations, one a line.
func History(w io.Writer, all []Rotation, s Style) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROTATION\tFLOW\tREQUESTED\tENDED\tOUTCOME\tTOOK\tBY\tREASON\tFAILURE")
	for _, r := range all {
		ended, failure := "-", "-"
		if r.Ended != nil {
			ended = s.date(*r.Ended)
		}
		if r.Failure != nil {
			failure = r.Failure.Step + ": " + oneLine(r.Failure.Reason)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Flow, s.date(r.Requested), ended, r.Outcome, Short(r.took()),
			cmp.Or(oneLine(r.RequestedBy), "-"), cmp.Or(oneLine(r.Reason), "-"), failure)
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
		if err := findings(w, p.Checks, s); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	if len(p.Steps) == 0 {
		return nil
	}
	fmt.Fprintln(w, s.paint(bold, "steps"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, step := range p.Steps {
		fmt.Fprintf(t, "%2d  %s\t%s\t%s\n", i+1, step.Target, step.Service, step.Finding)
	}
	return t.Flush()
}

// findings writes one line each, the mark in front; long ones are wrapped.
func findings(w io.Writer, all []Finding, s Style) error {
	service, target := 0, 0
	for _, f := range all {
		service, target = max(service, len([]rune(f.Service))), max(target, min(32, len([]rune(f.Target))))
	}
	indent := 2 + service + 2 + target + 2
	for _, f := range all {
		mark, c := "✓", green
		if f.Refused {
			mark, c = "✗", red
		}
		for i, text := range wrap(f.Finding, max(30, s.width()-indent)) {
			head := strings.Repeat(" ", indent)
			if i == 0 {
				head = s.paint(c, mark) + " " + fit(f.Service, service) + "  " + fit(f.Target, target) + "  "
			}
			if f.Refused {
				text = s.paint(red, text)
			}
			if _, err := fmt.Fprintln(w, head+text); err != nil {
				return err
			}
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
	fmt.Fprintf(w, "%s  %s\n  by the log: %s\n", s.paint(bold, d.Credential), s.paint(c, mark), d.Expected)
	for _, part := range []struct {
		title string
		lines []Finding
	}{{"published", d.Published}, {"stored", d.Stored}, {"used", d.Used}} {
		fmt.Fprintln(w, s.paint(dim, part.title))
		if len(part.lines) == 0 {
			fmt.Fprintln(w, "  nothing")
		}
		if err := findings(w, part.lines, s); err != nil {
			return err
		}
	}
	return nil
}

// Line is one event or note as it happened.
type Line struct {
	At         time.Time `json:"at"`
	Credential string    `json:"credential,omitempty"`
	Rotation   string    `json:"rotation,omitempty"`
	Service    string    `json:"service"`
	Event      string    `json:"event,omitempty"`
	Note       string    `json:"note,omitempty"` // its kind
	Text       string    `json:"text,omitempty"`
	Seconds    float64   `json:"seconds,omitempty"` // the step took
	Attempt    uint32    `json:"attempt,omitempty"`
}

// NewLine reads an entry.
func NewLine(e client.Entry) Line {
	l := Line{At: e.At, Credential: e.Credential, Rotation: e.Rotation, Service: e.Service}
	if e.Note != nil {
		n := NewNote(e)
		l.Note, l.Text = n.Kind, strings.TrimPrefix(n.label(), n.Kind+": ")
		return l
	}
	body := e.Event.Body
	l.Event, l.Attempt, l.Text = string(e.Event.Event), body.GetAttempt(), oneLine(body.GetSummary())
	if at := body.GetStartedAt(); at != nil {
		l.Seconds = max(0, e.At.Sub(at.AsTime()).Seconds())
	}
	if f := body.GetFailure(); f != nil {
		l.Text = oneLine(f.GetStep() + ": " + f.GetReason())
	}
	if r := body.GetRequested(); r != nil {
		l.Text = strings.TrimSpace(fmt.Sprintf("%s %s %s", r.GetFlow(), r.GetRequestedBy(), oneLine(r.GetReason())))
	}
	return l
}

// Text is the line for people; since is what its time is told from, if set.
func (l Line) Text2(s Style) string { return "" }

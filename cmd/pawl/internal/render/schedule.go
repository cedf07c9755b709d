package render

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/schedule"
	"pawl.dev/internal/words"
)

// Due is one rotation that policy wants, or that somebody has asked for.
type Due struct {
	Credential string     `json:"credential"`
	Together   []string   `json:"together,omitempty"` // the group that turns
	At         *time.Time `json:"at,omitempty"`       // when it will be tried; absent: not while it is blocked
	Deadline   *time.Time `json:"deadline,omitempty"` // by which policy wants it
	Overdue    bool       `json:"overdue"`            // the deadline has passed
	Late       bool       `json:"late"`               // it will be turned after the deadline
	Why        string     `json:"why,omitempty"`
	Blocked    string     `json:"blocked,omitempty"`
	Request    string     `json:"request,omitempty"` // that waits until then; empty: policy wants it
}

// NewSchedule reads a forecast.
func NewSchedule(dues []schedule.Due, now time.Time) []Due {
	all := make([]Due, 0, len(dues))
	for _, d := range dues {
		r := Due{Credential: d.Credential, Together: d.Together, Why: d.Why, Blocked: d.Blocked}
		if !d.Deadline.IsZero() {
			r.Deadline, r.Overdue, r.Late = &d.Deadline, d.Overdue(now), d.At.After(d.Deadline)
		}
		if d.Blocked == "" {
			r.At = &d.At
		}
		all = append(all, r)
	}
	return all
}

// AddWaiting adds the requests of a credential that wait for their time.
func AddWaiting(all []Due, credential string, waiting []chronicle.Waiting) []Due {
	for _, w := range waiting {
		due := Due{Credential: credential, At: &w.NotBefore, Why: w.Says(), Request: w.Request}
		i := slices.IndexFunc(all, func(d Due) bool { return d.At == nil || d.At.After(w.NotBefore) })
		if i < 0 {
			i = len(all)
		}
		all = slices.Insert(all, i, due)
	}
	return all
}

// ScheduleTable writes one line for each turn, in order.
func ScheduleTable(w io.Writer, all []Due, s Style) error {
	if len(all) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHEN\tCREDENTIAL\tDEADLINE\tWHY")
	for _, d := range all {
		when, deadline, why := "blocked", "-", words.OneLine(d.Why)
		if d.At != nil {
			when = s.date(*d.At)
		}
		if d.Blocked != "" {
			why = words.OneLine(d.Blocked)
		}
		if d.Deadline != nil {
			deadline = s.date(*d.Deadline)
			switch {
			case d.Overdue:
				deadline += " OVERDUE"
			case d.Late:
				deadline += " (will be missed)"
			}
		}
		name := d.Credential
		if len(d.Together) > 0 {
			name = strings.Join(d.Together, " + ")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", when, name, deadline, why)
	}
	return t.Flush()
}

package render

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"pawl.dev/internal/service"
	"pawl.dev/internal/words"
)

// Service is one service and what keeps it from working.
type Service struct {
	Service    string      `json:"service"`
	Running    bool        `json:"running"` // it answers
	Version    string      `json:"version,omitempty"`
	Instance   string      `json:"instance,omitempty"` // host and process; of several, the one that answered
	Conditions []Condition `json:"conditions"`
	Waiting    []Waiting   `json:"waiting"` // of a service that does not answer
}

// Condition is one thing that is wrong.
type Condition struct {
	Of      string `json:"of"` // the service, or "pawl": the process that it runs in
	Name    string `json:"name"`
	Object  string `json:"object,omitempty"`
	Failing bool   `json:"failing"` // otherwise it is a warning
	Text    string `json:"text"`
}

// Waiting are messages that wait for a service.
type Waiting struct {
	Stream   string     `json:"stream"`
	Consumer string     `json:"consumer"`
	Messages uint64     `json:"messages"`
	Oldest   *time.Time `json:"oldest,omitempty"` // if it is known
}

// Failing names what cannot work: the service, or the process that it runs in.
func (s Service) Failing() (of []string) {
	for _, c := range s.Conditions {
		if c.Failing {
			of = append(of, c.Of)
		}
	}
	slices.Sort(of)
	return slices.Compact(of)
}

// Lines say what is wrong, one thing a line.
func (s Service) Lines(now time.Time) (all []string) {
	for _, c := range s.Conditions {
		what := c.Name + " " + c.Object + ": "
		if c.Object == "" {
			what = c.Name + ": "
		}
		if c.Name == "service" {
			what = ""
		}
		mark := "✗"
		if !c.Failing {
			mark, what = "!", "warning: "+what
		}
		all = append(all, fmt.Sprintf("%s %s: %s%s", mark, c.Of, what, c.Text))
	}
	for _, w := range s.Waiting {
		age := ""
		if w.Oldest != nil {
			age = fmt.Sprintf(", the oldest for %s", words.Duration(now.Sub(*w.Oldest).Truncate(time.Second)))
		}
		all = append(all, fmt.Sprintf("✗ %s: %s for it in %s (consumer %s)%s", s.Service, verb(w.Messages), w.Stream, w.Consumer, age))
	}
	return all
}

func verb(messages uint64) string {
	if messages == 1 {
		return "1 message waits"
	}
	return service.Count(int64(messages), "message") + " wait"
}

// ServiceTable writes one line per service, and below what is wrong.
func ServiceTable(w io.Writer, all []Service, now time.Time, st Style) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tSTATE\tVERSION\tINSTANCE")
	for _, s := range all {
		state := "works"
		switch {
		case !s.Running:
			state = "does not answer"
		case slices.Contains(s.Failing(), s.Service):
			state = "failing"
		case len(s.Conditions) > 0:
			state = "warning"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Service, state, cmp.Or(s.Version, "-"), cmp.Or(s.Instance, "-"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		for _, text := range s.Lines(now) {
			for i, line := range wrap(text, st.width()-2) {
				if i > 0 {
					line = "  " + line
				}
				if _, err := fmt.Fprintln(w, st.paint(yellow, line)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

package render

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/words"
)

// StatusTable writes one line per credential, and below what is waited for.
func StatusTable(w io.Writer, all []chronicle.Status, st Style) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CREDENTIAL\tSTATE\tLOGIN\tGEN\tAGE\tNEXT DUE\tLAST ROTATION")
	for _, s := range all {
		age, next, last, generation := "-", "-", "-", "-"
		if s.Login != "" {
			age, generation = words.Duration(s.Age().Truncate(time.Second)), fmt.Sprint(s.Generation)
		}
		if s.NextDue != nil {
			next = "in " + words.Duration(s.NextDue.Sub(s.Now).Truncate(time.Second))
			if s.NextDue.Before(s.Now) {
				next = "overdue by " + words.Duration(s.Now.Sub(*s.NextDue).Truncate(time.Second))
			}
		}
		if s.Last != nil {
			last = fmt.Sprintf("%s %s (%s)", s.Last.ID, s.Last.Outcome, words.Duration(s.Last.Took()))
		}
		login := s.Login
		if login == "" {
			login = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Credential, s.Says(), login, generation, age, next, last)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		for _, remark := range remarks(s, st) {
			for i, line := range wrap(s.Credential+": "+remark, st.width()-2) {
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

// remarks are what is said of a credential below the table.
func remarks(s chronicle.Status, st Style) (all []string) {
	if s.Lock != nil {
		text := "locked since " + st.date(s.Lock.Since)
		if s.Lock.By != "" {
			text += " by " + s.Lock.By
		}
		if s.Lock.Reason != "" {
			text += ": " + words.OneLine(s.Lock.Reason)
		}
		all = append(all, text)
	}
	if s.Held != "" {
		all = append(all, "held after a restore: "+words.OneLine(s.Held))
	}
	for _, w := range s.Waiting {
		all = append(all, "waits until "+st.date(w.NotBefore)+": "+w.Says())
	}
	if s.Note != nil {
		all = append(all, s.Note.Label())
	}
	for _, d := range s.Drift {
		all = append(all, d.Label())
	}
	return all
}

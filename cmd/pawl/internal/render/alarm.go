package render

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"pawl.dev/internal/words"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Alarm is what was decided about one episode of an alert.
type Alarm struct {
	At          time.Time `json:"at"`
	Credential  string    `json:"credential,omitempty"` // empty: no rule names one
	Guard       string    `json:"guard,omitempty"`      // that held it back; empty: it fired
	Rotation    string    `json:"rotation,omitempty"`   // the emergency that it began
	Alert       string    `json:"alert"`
	Source      string    `json:"source"`
	Fingerprint string    `json:"fingerprint"`
	StartsAt    time.Time `json:"starts_at"`
	Reason      string    `json:"reason,omitempty"`
	Told        int       `json:"told"`      // how often the source told it, of what the bus has kept
	LastTold    time.Time `json:"last_told"` // zero where nothing was kept
}

// NewAlarm reads a decision.
func NewAlarm(a *pawlv1.Alarm) Alarm {
	return Alarm{At: a.GetAt().AsTime(), Credential: a.GetCredential(), Guard: a.GetGuard(), Rotation: a.GetRotation(), Alert: a.GetAlert(),
		Source: a.GetSource(), Fingerprint: a.GetFingerprint(), StartsAt: a.GetStartsAt().AsTime(), Reason: a.GetReason()}
}

// alert is how a table names the alert.
func (a Alarm) alert(s Style) string {
	if a.Told < 2 {
		return words.OneLine(a.Alert)
	}
	return fmt.Sprintf("%s, told %d times until %s", words.OneLine(a.Alert), a.Told, s.date(a.LastTold))
}

// AlarmTable writes decisions, one a line.
func AlarmTable(w io.Writer, all []Alarm, s Style) error {
	if len(all) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DECIDED\tCREDENTIAL\tGUARD\tROTATION\tALERT\tBEGAN\tREASON")
	for _, a := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.date(a.At), cmp.Or(a.Credential, "-"), cmp.Or(a.Guard, "none: fired"), cmp.Or(a.Rotation, "-"),
			a.alert(s), s.date(a.StartsAt), cmp.Or(words.OneLine(a.Reason), "-"))
	}
	return t.Flush()
}

package render

import (
	"fmt"
	"strings"
	"time"

	"pawl.dev/cmd/pawl/internal/client"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Line is one event or note as it happened.
type Line struct {
	At         time.Time `json:"at"`
	Credential string    `json:"credential,omitempty"`
	Rotation   string    `json:"rotation,omitempty"`
	Service    string    `json:"service"`
	Event      string    `json:"event,omitempty"`
	Note       string    `json:"note,omitempty"` // its kind
	Text       string    `json:"text,omitempty"`
	Failed     bool      `json:"failed,omitempty"`
	Seconds    float64   `json:"seconds,omitempty"` // that the step's last attempt took
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
		l.Failed, l.Text = true, oneLine(f.GetStep()+": "+f.GetReason())
	}
	if r := body.GetRequested(); r != nil {
		l.Text = asked(r)
	}
	return l
}

func asked(r *pawlv1.Requested) string {
	text := r.GetFlow()
	if r.GetRequestedBy() != "" {
		text += " by " + oneLine(r.GetRequestedBy())
	}
	if r.GetReason() != "" {
		text += ": " + oneLine(r.GetReason())
	}
	return text
}

// Format is the line for people.
func (l Line) Format(s Style) string {
	c, what, took := plain, l.Event, ""
	switch {
	case l.Failed:
		c = red
	case l.Note != "":
		c, what = yellow, "("+l.Note+")"
	}
	if l.Event != "" && l.Seconds > 0 {
		took = Short(time.Duration(l.Seconds * float64(time.Second)))
	}
	if l.Attempt > 1 {
		what += fmt.Sprintf(" ×%d", l.Attempt)
	}
	head := fmt.Sprintf("%s  %-14s  ", s.clock(l.At), l.Credential)
	return strings.TrimRight(s.paint(dim, head)+s.paint(c, fmt.Sprintf("%-18s  %-16s  %7s  %s", what, l.Service, took, l.Text)), " ")
}

package chronicle

import (
	"cmp"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/words"
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
func NewLine(e bus.Entry) Line {
	l := Line{At: e.At, Credential: e.Credential, Rotation: e.Rotation, Service: e.Service}
	if e.Note != nil {
		n := NewNote(e)
		l.Note, l.Text = n.Kind, n.Says()
		return l
	}
	body := e.Event.Body
	l.Event, l.Attempt, l.Text = string(e.Event.Event), body.GetAttempt(), words.OneLine(body.GetSummary())
	if at := body.GetStartedAt(); at != nil {
		l.Seconds = max(0, e.At.Sub(at.AsTime()).Seconds())
	}
	if f := body.GetFailure(); f != nil {
		l.Failed, l.Text = true, words.OneLine(f.GetStep()+": "+f.GetReason())
	}
	if r := body.GetRequested(); r != nil {
		l.Text = asked(r)
	}
	return l
}

func asked(r *pawlv1.Requested) string {
	text := r.GetFlow()
	if by := cmp.Or(r.GetRequestedBy(), r.GetAuthenticatedAs()); by != "" {
		text += " by " + words.OneLine(by)
	}
	if r.GetReason() != "" {
		text += ": " + words.OneLine(r.GetReason())
	}
	return text
}

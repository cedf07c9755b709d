package chronicle

import (
	"slices"
	"strings"
	"time"

	"pawl.dev/internal/words"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Waiting is a request that waits for its not_before.
type Waiting struct {
	Request     string    `json:"request"`
	Action      string    `json:"action"`
	NotBefore   time.Time `json:"not_before"`
	RequestedBy string    `json:"requested_by,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	With        []string  `json:"with,omitempty"` // what rotates together with the credential
}

// NewWaiting takes over the requests that wait, in the order of their times.
func NewWaiting(requests []*pawlv1.WaitingRequest) (all []Waiting) {
	for _, w := range requests {
		r := w.GetRequest()
		all = append(all, Waiting{Request: w.GetId(), Action: strings.ToLower(strings.TrimPrefix(r.GetAction().String(), "ACTION_")),
			NotBefore: r.GetNotBefore().AsTime(), RequestedBy: r.GetRequestedBy(), Reason: r.GetReason(), With: r.GetWith()})
	}
	slices.SortStableFunc(all, func(x, y Waiting) int { return x.NotBefore.Compare(y.NotBefore) })
	return all
}

// Says is the request as people read it.
func (w Waiting) Says() string {
	text := "request " + w.Request + " to " + w.Action
	if len(w.With) > 0 {
		text += " with " + strings.Join(w.With, ", ")
	}
	if w.RequestedBy != "" {
		text += ", by " + words.OneLine(w.RequestedBy)
	}
	if w.Reason != "" {
		text += ": " + words.OneLine(w.Reason)
	}
	return text
}

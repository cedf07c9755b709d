package posture

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/schedule"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Bounds of what is kept of one credential.
const (
	keptBegins = 64   // rotations whose beginning is known, for its history
	keptMade   = 4    // completed rotations: the current one, and those that may come back
	keptNotes  = 32   // of its newest rotation
	keptEarly  = 8    // notes of another one
	keptDrift  = 16   // places
	keptText   = 1024 // bytes of a note
)

// credential is what is known of one.
type credential struct {
	config *inventory.Credential
	log    bus.Log // the newest rotation's, slim
	begins []uint64
	made   []made
	notes  []chronicle.Note
	noted  string // the rotation of the notes
	early  []early
	drift  []chronicle.Note

	dirty  bool // status is older than log
	status chronicle.Status
	last   uint64 // sequence of the newest event
	failed string // why the log cannot be understood
}

// made is a rotation that has completed.
type made struct {
	rotation string
	schedule.Made
}

// early is a note of another rotation than the newest: of an older one, or of one
// whose beginning was not read yet, since log and notes are read side by side.
type early struct {
	rotation string
	note     chronicle.Note
}

func (c *credential) event(e bus.Entry) {
	if e.Event.Event == saga.Requested {
		c.log = bus.Log{Credential: e.Credential, Rotation: e.Rotation}
		c.begins = push(c.begins, e.Seq, keptBegins)
		for _, before := range c.early {
			if before.rotation == e.Rotation {
				c.keep(before.rotation, before.note)
			}
		}
		c.early = nil
	}
	if e.Rotation != c.log.Rotation || len(c.log.Records) == 0 && e.Event.Event != saga.Requested {
		return // of one whose beginning was not understood
	}
	c.log.Records = append(c.log.Records, slim(*e.Event))
	c.last, c.dirty = e.Seq, true
	if e.Event.Event != saga.Completed {
		return
	}
	if one, err := schedule.MadeBy(c.log); err == nil { // else at says why
		c.made = push(c.made, made{e.Rotation, one}, keptMade)
	}
}

// slim is what a status is made from.
func slim(r bus.Record) bus.Record {
	r.Body = &pawlv1.Event{Detail: r.Body.GetDetail()}
	if user := r.Body.GetStaged().GetUser(); user != "" {
		r.Body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: user}}
	}
	if proof := r.Body.GetProof(); proof != nil {
		r.Body.Detail = &pawlv1.Event_Proof{Proof: &pawlv1.Proof{Outage: proof.GetOutage()}}
	}
	parent := r.Header.Get("traceparent")
	r.Header = nil
	if parent != "" && r.Event == saga.Requested {
		r.Header = nats.Header{"traceparent": {parent}}
	}
	return r
}

func push[T any](all []T, item T, most int) []T {
	if len(all) == most {
		all = slices.Delete(all, 0, 1)
	}
	return append(all, item)
}

func (c *credential) note(e bus.Entry) {
	n := chronicle.NewNote(e)
	n.Text = cut(n.Text)
	for i := range n.Laggards {
		n.Laggards[i] = cut(n.Laggards[i])
	}
	switch n.Kind {
	case "drift", "drift over", "repaired":
		c.drift = slices.DeleteFunc(c.drift, func(d chronicle.Note) bool { return d.Service == n.Service && d.Place() == n.Place() })
		if n.Kind == "drift" {
			c.drift = push(c.drift, n, keptDrift)
		}
	}
	switch n.Kind {
	case "waiting", "retrying", "stalled", "resumed", "repaired":
		if e.Rotation != c.log.Rotation {
			c.early = push(c.early, early{e.Rotation, n}, keptEarly)
			return
		}
		c.keep(e.Rotation, n)
	}
}

// keep keeps a note of the newest rotation.
func (c *credential) keep(rotation string, n chronicle.Note) {
	if rotation != c.noted {
		c.notes, c.noted = nil, rotation
	}
	c.notes = push(c.notes, n, keptNotes)
}

func cut(text string) string {
	if len(text) > keptText {
		return strings.ToValidUTF8(text[:keptText], "") + "…"
	}
	return text
}

// forget drops the drift that a service has reported.
func (c *credential) forget(service string) {
	c.drift = slices.DeleteFunc(c.drift, func(d chronicle.Note) bool { return d.Service == service })
}

// at brings the status up to date.
func (c *credential) at(now time.Time) chronicle.Status {
	if !c.dirty {
		return c.status.At(now)
	}
	status, err := chronicle.NewStatus(c.config, c.log, c.madeAt, now)
	c.status, c.dirty, c.failed = status, false, ""
	if err != nil {
		c.failed = err.Error()
	}
	return c.status.At(now)
}

func (c *credential) madeAt(rotation string) (time.Time, error) {
	one, err := c.madeBy(rotation)
	return one.At, err
}

func (c *credential) madeBy(rotation string) (schedule.Made, error) {
	for _, m := range slices.Backward(c.made) {
		if m.rotation == rotation {
			return m.Made, nil
		}
	}
	return schedule.Made{}, fmt.Errorf("when rotation %s made the current credential is not known here: `pawl status %s` looks it up", rotation, c.config.Name)
}

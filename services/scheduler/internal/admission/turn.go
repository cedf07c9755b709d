package admission

import (
	"context"
	"time"

	"pawl.dev/internal/schedule"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Turn is a rotation that policy wants.
type Turn struct {
	Credential string            // and its group
	Rotation   string            // the id it gets; the same each time it is tried
	Follows    map[string]string // by member: its newest rotation. Where there is another by now, it is refused
	Asked      time.Time
	Delivered  uint64
	Request    string
	Reason     string
}

// Turn admits, as if somebody had asked for it. It returns why not, or when to
// ask again. Asked twice, it begins one rotation.
func (c *Clerk) Turn(ctx context.Context, t Turn) (refusal string, again time.Duration, err error) {
	q := &request{id: t.Request, credential: t.Credential, rotation: t.Rotation, at: t.Asked, delivered: t.Delivered, follows: t.Follows,
		body: &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, RequestedBy: "schedule", Reason: t.Reason}}
	members, err := c.together(q)
	if err != nil {
		return err.Error(), 0, nil
	}
	answer, again, err := c.admit(ctx, q, members)
	if err != nil && again > 0 {
		c.d.Log.Info("turn deferred", "credential", t.Credential, "again", again, "error", err)
		return "", again, nil
	}
	if answer.GetOutcome() == pawlv1.Outcome_OUTCOME_REJECTED {
		return answer.GetReason(), 0, nil
	}
	return "", again, err
}

// unproven warns, of a rotation that a person asked for, where a schedule would
// have waited for the credential's staging twin.
func (c *Clerk) unproven(ctx context.Context, q *request, m *member) (warnings []string) {
	if m.Promotes == "" || q.body.GetAction() != pawlv1.Action_ACTION_ROTATE || q.follows != nil {
		return nil
	}
	var failed error
	why := c.book.Unproven(m.Name, func(name string) (t schedule.Turned, ok bool) {
		t, _, ok, failed = schedule.Past(ctx, c.d.Bus, name)
		return t, ok
	}, c.d.Clock.Now())
	switch {
	case failed != nil:
		return []string{"promotion: " + failed.Error()}
	case why != "":
		return []string{"promotion: " + why}
	}
	return nil
}

package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/fault"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// cancelPoint is where the crash tests kill the scheduler as it cancels a rotation.
const cancelPoint = "cancel.append"

// cancel rolls back the newest rotation, or withdraws a request that waits. The
// request names which: handled twice, it must not end the next one.
func (c *Clerk) cancel(ctx context.Context, q *request) (*pawlv1.Answer, time.Duration, error) {
	if q.body.GetCancels() == "" {
		return rejected("cancel what? Name a rotation or a request in `cancels`; `pawl cancel CREDENTIAL` does"), 0, nil
	}
	newest, err := c.d.Bus.ReadNewest(ctx, q.credential)
	log := newest
	if err == nil && log.Rotation != q.body.GetCancels() {
		log, err = c.d.Bus.ReadRotation(ctx, q.credential, q.body.GetCancels())
	}
	r, err := rotation.Of(log, err)
	if err != nil {
		return nil, 0, err
	}
	if r.Empty() {
		return c.withdraw(ctx, q)
	}
	why, err := c.held(ctx, log)
	if err != nil {
		return nil, 0, err
	}
	answer := accepted(r.Rotation)
	switch ended, _ := r.Ended(); {
	case r.Body(saga.Cancelled).GetFailure().GetRequest() == q.id: // and only the acknowledgement was lost
		return answer, 0, nil
	case ended.Event != "":
		return rejected(fmt.Sprintf("rotation %s of %s has ended: it is %s", r.Rotation, q.credential, ended.Event)), 0, nil
	case newest.Rotation != r.Rotation:
		return rejected(fmt.Sprintf("rotation %s of %s has ended: %s superseded it", r.Rotation, q.credential, newest.Rotation)), 0, nil
	case why != "":
		return rejected(why), 0, nil
	case r.Failed != nil:
		answer.Reason = fmt.Sprintf("rotation %s is being rolled back already: %s: %s", r.Rotation, r.Failure().GetStep(), r.Failure().GetReason())
		return answer, 0, nil
	}
	parts, refusal, err := c.reversal(ctx, q, r)
	if err != nil || refusal != nil {
		return refusal, 0, err
	}
	fault.Point(q.credential, cancelPoint+".before")
	err = c.d.Bus.AppendAll(ctx, r.Rotation, saga.Cancelled, parts)
	if errors.Is(err, bus.ErrConflict) {
		return nil, 10 * time.Millisecond, nil // a step has just ended: look again
	}
	if err != nil {
		return nil, 0, err
	}
	fault.Point(q.credential, cancelPoint+".after")
	answer.Reason = fmt.Sprintf("rotation %s is cancelled: it was at %q, and is being rolled back", r.Rotation, r.Next().Name)
	return answer, 0, nil
}

// reversal is what cancels a rotation in the logs of all that rotate together, or
// the refusal: all of them are cancelled, or none.
func (c *Clerk) reversal(ctx context.Context, q *request, r rotation.Rotation) (parts []bus.Part, refusal *pawlv1.Answer, err error) {
	for _, name := range r.Group() {
		log, err := c.d.Bus.ReadNewest(ctx, name)
		if err == nil && log.Rotation != r.Rotation {
			continue // superseded
		}
		of, err := rotation.Of(log, err)
		if err != nil {
			return nil, nil, err
		}
		step := of.Next()
		switch ended, _ := of.Ended(); {
		case of.Failed != nil:
			continue // it is being rolled back, or was
		case ended.Event == saga.Completed || step.Retriable():
			refusal = rejected(tooLate(of))
			refusal.Rotation = r.Rotation
			return nil, refusal, nil
		}
		event := &pawlv1.Event{Summary: q.cancelled(), Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: step.Name, Reason: q.cancelled(), Request: q.id}}}
		parts = append(parts, bus.Part{Credential: name, Body: event, Header: telemetry.Inject(service.AnchorContext(ctx, of.Log, of.State)), LastSeq: of.LastSeq()})
	}
	return parts, nil, nil
}

// tooLate says why a rotation can no longer be cancelled, and what to do instead.
func tooLate(r rotation.Rotation) string {
	if r.Flow.Urgent {
		return fmt.Sprintf("%s of %s is an emergency: no emergency is ever cancelled", r.Rotation, r.Credential)
	}
	at := "has completed"
	if r.Open() {
		at = fmt.Sprintf("is at %q", r.Next().Name)
	}
	return fmt.Sprintf("rotation %s of %s has passed its point of no return: it %s. %s", r.Rotation, r.Credential, at, instead(r.Credential, r.Flow))
}

// instead says what undoes a rotation that cannot be cancelled.
func instead(credential string, flow *saga.Flow) string {
	switch {
	case flow.Adopts:
		return "An adoption changes nothing, so there is nothing to undo"
	case flow.Restores:
		return fmt.Sprintf("Once it has ended, `pawl rotate %s` issues a new credential", credential)
	}
	return fmt.Sprintf("Once it has completed, `pawl rollback %s` restores the previous credential while it is kept", credential)
}

// cancelled says who has cancelled, and why.
func (q *request) cancelled() string {
	text := "cancelled by " + cmp.Or(q.body.GetRequestedBy(), q.user)
	if why := q.body.GetReason(); why != "" {
		text += ": " + why
	}
	return text
}

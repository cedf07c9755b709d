package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/fault"
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
	if err != nil {
		return nil, 0, err
	}
	if len(log.Records) == 0 {
		return c.withdraw(ctx, q)
	}
	state, err := log.Fold()
	if err != nil {
		return nil, 0, err
	}
	why, err := c.held(ctx, log)
	if err != nil {
		return nil, 0, err
	}
	answer := accepted(log.Rotation)
	switch ended, _ := state.Ended(); {
	case q.hasCancelled(log): // and only the acknowledgement was lost
		return answer, 0, nil
	case ended.Event != "":
		return rejected(fmt.Sprintf("rotation %s of %s has ended: it is %s", log.Rotation, q.credential, ended.Event)), 0, nil
	case newest.Rotation != log.Rotation:
		return rejected(fmt.Sprintf("rotation %s of %s has ended: %s superseded it", log.Rotation, q.credential, newest.Rotation)), 0, nil
	case why != "":
		return rejected(why), 0, nil
	case state.Failed != nil:
		f := log.Find(state.Failed.Event).Body.GetFailure()
		answer.Reason = fmt.Sprintf("rotation %s is being rolled back already: %s: %s", log.Rotation, f.GetStep(), f.GetReason())
		return answer, 0, nil
	}
	parts, refusal, err := c.reversal(ctx, q, log)
	if err != nil || refusal != nil {
		return refusal, 0, err
	}
	fault.Point(q.credential, cancelPoint+".before")
	err = c.d.Bus.AppendAll(ctx, log.Rotation, saga.Cancelled, parts)
	if errors.Is(err, bus.ErrConflict) {
		return nil, 10 * time.Millisecond, nil // a step has just ended: look again
	}
	if err != nil {
		return nil, 0, err
	}
	fault.Point(q.credential, cancelPoint+".after")
	answer.Reason = fmt.Sprintf("rotation %s is cancelled: it was at %q, and is being rolled back", log.Rotation, state.Next().Name)
	return answer, 0, nil
}

// reversal is what cancels a rotation in the logs of all that rotate together, or
// the refusal: all of them are cancelled, or none.
func (c *Clerk) reversal(ctx context.Context, q *request, log bus.Log) (parts []bus.Part, refusal *pawlv1.Answer, err error) {
	group := log.Records[0].Body.GetRequested().GetGroup()
	if len(group) == 0 {
		group = []string{log.Credential}
	}
	for _, name := range group {
		of, err := c.d.Bus.ReadNewest(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		if of.Rotation != log.Rotation {
			continue // superseded
		}
		state, err := of.Fold()
		if err != nil {
			return nil, nil, err
		}
		step := state.Next()
		switch ended, _ := state.Ended(); {
		case state.Failed != nil:
			continue // it is being rolled back, or was
		case ended.Event == saga.Completed || step.Retriable():
			refusal = rejected(tooLate(of, state))
			refusal.Rotation = log.Rotation
			return nil, refusal, nil
		}
		event := &pawlv1.Event{Summary: q.cancelled(), Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: step.Name, Reason: q.cancelled(), Request: q.id}}}
		parts = append(parts, bus.Part{Credential: name, Body: event, Header: telemetry.Inject(service.AnchorContext(ctx, of, state)), LastSeq: of.LastSeq()})
	}
	return parts, nil, nil
}

// tooLate says why a rotation can no longer be cancelled, and what to do instead.
func tooLate(log bus.Log, state saga.State) string {
	if state.Flow.Urgent {
		return fmt.Sprintf("%s of %s is an emergency: no emergency is ever cancelled", log.Rotation, log.Credential)
	}
	at := "has completed"
	if step := state.Next(); state.Open() {
		at = fmt.Sprintf("is at %q", step.Name)
	}
	return fmt.Sprintf("rotation %s of %s has passed its point of no return: it %s. %s", log.Rotation, log.Credential, at, instead(log.Credential, state.Flow))
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

// hasCancelled reports whether this very request has cancelled the rotation.
func (q *request) hasCancelled(log bus.Log) bool {
	by := log.Find(saga.Cancelled)
	return by != nil && by.Body.GetFailure().GetRequest() == q.id
}

// cancelled says who has cancelled, and why.
func (q *request) cancelled() string {
	text := "cancelled by " + cmp.Or(q.body.GetRequestedBy(), q.user)
	if why := q.body.GetReason(); why != "" {
		text += ": " + why
	}
	return text
}

package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// lookAgain is how often a request that waits is looked at: when it was cancelled,
// its requester is told within that time.
const lookAgain = 10 * time.Second

// wait holds a request until its not_before; it returns nothing once that has come.
// The request itself stays in its stream. The list on bus.WaitingSubject shows it to
// people, and decides between two clerks of which one begins it and the other
// cancels it: each changes the list by compare-and-set, before it does anything.
func (c *Clerk) wait(ctx context.Context, q *request) (*pawlv1.Answer, time.Duration, error) {
	list, seq, err := c.d.Bus.Waiting(ctx, q.credential)
	if err != nil {
		return nil, 0, err
	}
	mine := find(list, q.id)
	if q.listed = mine != nil; mine.GetDue() {
		return nil, 0, nil
	}
	why, err := c.lapsed(ctx, q)
	if err != nil {
		return nil, lookAgain, err
	}
	if why = cmp.Or(mine.GetCancelled(), why); why != "" {
		if mine != nil && mine.Told == nil {
			mine.Cancelled, mine.Told = why, timestamppb.Now()
			err = c.list(ctx, q.credential, list, seq)
		}
		return decided(rejected(why), 0, err)
	}
	left := q.body.GetNotBefore().AsTime().Sub(c.d.Clock.Now())
	again := max(0, min(left, lookAgain))
	if mine != nil && again > 0 {
		return nil, again, nil
	}
	var answer *pawlv1.Answer
	if mine == nil {
		mine = &pawlv1.WaitingRequest{Id: q.id, Request: q.body, Asked: timestamppb.New(q.at)}
		if list.Requests = append(list.Requests, mine); proto.Size(list) > bus.MaxEvent/2 { // the rest is for what cancels them
			return rejected(fmt.Sprintf("%d requests of %s wait already: cancel one first", len(list.GetRequests())-1, q.credential)), 0, nil
		}
		if again > 0 {
			answer = &pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_SCHEDULED, Reason: "held until " + q.body.GetNotBefore().AsTime().Format(time.RFC3339)}
		}
	}
	mine.Due, q.listed = again == 0, true
	return decided(answer, again, c.list(ctx, q.credential, list, seq))
}

// decided returns what was decided, if the list could be changed. Where somebody else
// has changed it meanwhile, it has to be decided anew.
func decided(answer *pawlv1.Answer, again time.Duration, err error) (*pawlv1.Answer, time.Duration, error) {
	if errors.Is(err, bus.ErrConflict) {
		return nil, 10 * time.Millisecond, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return answer, again, nil
}

// withdraw cancels a request that waits.
func (c *Clerk) withdraw(ctx context.Context, q *request) (*pawlv1.Answer, time.Duration, error) {
	id := q.body.GetCancels()
	list, seq, err := c.d.Bus.Waiting(ctx, q.credential)
	if err != nil {
		return nil, 0, err
	}
	w := find(list, id)
	switch {
	case w == nil:
		return rejected(fmt.Sprintf("nothing to cancel: no rotation %s of %s is under way, and no request %[1]s waits; `pawl status %[2]s` shows what there is", id, q.credential)), 0, nil
	case w.GetCancelledBy() == q.id: // and only the acknowledgement was lost
	case w.GetCancelled() != "":
		return rejected(fmt.Sprintf("request %s does not wait any more: %s", id, w.GetCancelled())), 0, nil
	case w.GetDue():
		return rejected(fmt.Sprintf("request %s does not wait any more: its time has come. Cancel its rotation, which `pawl status %s` shows once it has begun", id, q.credential)), 0, nil
	default:
		w.Cancelled, w.CancelledBy = q.cancelled(), q.id
		w.Request.Reason, w.Request.With = "", nil // makes room for it
		err = c.list(ctx, q.credential, list, seq)
	}
	answer := accepted("")
	answer.Reason = fmt.Sprintf("request %s of %s, which waited until %s, is withdrawn", id, q.credential, w.GetRequest().GetNotBefore().AsTime().Format(time.RFC3339))
	return decided(answer, 0, err)
}

// unlist takes a request off the list once it is answered. One that was cancelled
// stays for a while, since what cancelled it may be handled again.
func (c *Clerk) unlist(ctx context.Context, q *request) error {
	for {
		list, seq, err := c.d.Bus.Waiting(ctx, q.credential)
		if err != nil {
			return err
		}
		if mine := find(list, q.id); mine == nil || mine.GetCancelled() != "" {
			return nil
		}
		list.Requests = slices.DeleteFunc(list.Requests, func(w *pawlv1.WaitingRequest) bool { return w.GetId() == q.id })
		if err = c.list(ctx, q.credential, list, seq); !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// list stores the list, if it is as it was read.
func (c *Clerk) list(ctx context.Context, credential string, list *pawlv1.Waiting, seq uint64) error {
	list.Requests = slices.DeleteFunc(list.Requests, func(w *pawlv1.WaitingRequest) bool {
		return w.GetTold() != nil && time.Since(w.GetTold().AsTime()) > remembered
	})
	if size := proto.Size(list); size > bus.MaxEvent {
		return fmt.Errorf("requests of %s that wait: %d bytes are more than %d", credential, size, bus.MaxEvent)
	}
	subject := bus.WaitingSubject(credential)
	_, err := c.d.Bus.PublishAfter(ctx, subject, list, subject, seq)
	return err
}

func find(list *pawlv1.Waiting, id string) *pawlv1.WaitingRequest {
	i := slices.IndexFunc(list.GetRequests(), func(w *pawlv1.WaitingRequest) bool { return w.GetId() == id })
	if i < 0 {
		return nil
	}
	return list.GetRequests()[i]
}

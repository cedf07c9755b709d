package admission

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// emergency begins at once: no preflight, since a login must be refused whether
// or not a sink can be written, and no wait for the rotation that is running:
// its log ends where this one's begins.
func (c *Clerk) emergency(ctx context.Context, q *request) (*pawlv1.Answer, time.Duration, error) {
	mine, err := c.d.Bus.ReadRotation(ctx, q.credential, q.rotation)
	if err != nil {
		return nil, 0, err
	}
	if len(mine.Records) > 0 { // begun before, whatever pawl.yaml says now; only the acknowledgement was lost
		return accepted(q.rotation), 0, nil
	}
	known, ok := c.d.Inventory.Credentials[q.credential]
	if !ok {
		return rejected(fmt.Sprintf("unknown credential %q: pawl.yaml, as read when the scheduler started, has %s", q.credential, c.knownNames())), 0, nil
	}
	if known.IsOwn() {
		return rejected(lockedOut(known.Name)), 0, nil
	}
	m := &member{Credential: known}
	if m.log, err = c.d.Bus.ReadNewest(ctx, known.Name); err != nil {
		return nil, 0, err
	}
	if m.log.Rotation == q.rotation { // another scheduler has just begun it
		return accepted(q.rotation), 0, nil
	}
	why, err := c.held(ctx, m.log)
	held := why != "" || err != nil // an emergency does not wait for what it can do without
	refusal := ""
	if m.begin, refusal, err = supersede(q, known, m.log, held); err != nil {
		return nil, 0, err
	}
	if refusal != "" {
		answer := rejected(refusal)
		answer.Rotation = m.log.Rotation
		return answer, 0, nil
	}
	err = c.begin(ctx, q, []*member{m})
	if errors.Is(err, bus.ErrConflict) {
		return nil, time.Millisecond, nil // a step has just ended: look again
	}
	if err != nil {
		return nil, 0, err
	}
	return accepted(q.rotation), 0, nil
}

// lockedOut says why a credential with which Pawl itself logs in is not contained.
func lockedOut(credential string) string {
	return fmt.Sprintf("Pawl itself logs in with %s, and would lock itself out: rotate it (pawl rotate %[1]s), and have a superuser end the sessions of the old login", credential)
}

// Alarm is an emergency that was decided upon before, by an alert.
type Alarm struct {
	Credential  string
	Request     string // names the decision
	Rotation    string // the id that the emergency gets
	Reason      string
	RequestedBy string
	Header      nats.Header // of the alert, whose trace goes on
}

// Contain begins the emergency at once, or says what is in the way. However
// often it is called with one rotation, that begins once. It returns an error
// where it cannot be known whether it has begun: call it again.
func (c *Clerk) Contain(ctx context.Context, a Alarm) (*pawlv1.Answer, error) {
	q := &request{
		id: a.Request, credential: a.Credential, rotation: a.Rotation, delivered: 1, emergency: true, header: a.Header,
		body: &pawlv1.Request{Action: pawlv1.Action_ACTION_CONTAIN, Reason: a.Reason, RequestedBy: a.RequestedBy},
	}
	answer, err := c.beginOne(ctx, q)
	if err == nil {
		c.count(q, answer)
	}
	return answer, err
}

// beginOne begins an emergency, or says what is in the way. It returns an error if it
// is not known whether the emergency has begun.
func (c *Clerk) beginOne(ctx context.Context, q *request) (*pawlv1.Answer, error) {
	for {
		answer, again, err := c.emergency(ctx, q)
		if answer != nil || err != nil {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(again):
		}
	}
}

// supersede builds the emergency's requested event from the newest rotation,
// open or not, or says what is in the way. A log that is held after a restore is
// not believed: neither that an emergency is under way, nor that a login has had
// no password for long.
func supersede(q *request, known *inventory.Credential, log bus.Log, held bool) (begin *pawlv1.Requested, refusal string, err error) {
	begin = newRequested(q, known)
	begin.Flow, begin.BasisUser = saga.Newest(saga.Emergency), known.Role
	locks, unlocks := begin.Action == pawlv1.Action_ACTION_LOCK, begin.Action == pawlv1.Action_ACTION_UNLOCK
	if locks {
		begin.Flow = saga.Newest(saga.Lock)
	}
	if len(log.Records) == 0 { // never adopted: it can be stolen all the same
		if unlocks {
			return nil, known.Name + " is not locked", nil
		}
		return begin, "", nil
	}
	state, err := log.Fold()
	if err != nil {
		return nil, "", err
	}
	switch isLock := state.Flow.Locks; {
	case isLock && !unlocks && !held:
		return nil, locked(known.Name, log), nil
	case unlocks && !isLock:
		return nil, known.Name + " is not locked", nil
	case unlocks && state.Open() && !held:
		return nil, fmt.Sprintf("lock %s of %s is still under way: it is at %q", log.Rotation, known.Name, state.Next().Name), nil
	case state.Flow.Urgent && state.Open() && !locks && !held && !undone(q, state):
		return nil, fmt.Sprintf("emergency %s of %s is under way already: it is at %q since %s; if it does not get on, or its new password is stolen, too: `pawl lock %[2]s`, and then `pawl unlock %[2]s`", log.Rotation, known.Name, state.Next().Name, state.Last.At.Format(time.RFC3339)), nil
	}
	if now := follow(begin, log, state); now.User == "" {
		begin.BasisUser = known.Role
	}
	if state.Open() {
		begin.Supersedes = log.Rotation
	}
	if since, bare := bareSince(state); bare && !held {
		begin.BareSince = timestamppb.New(since)
	}
	return begin, "", nil
}

// undone reports whether somebody has broken the glass once the emergency that is
// under way had contained: what it has issued since may be taken away.
func undone(q *request, state saga.State) bool {
	_, contained := state.Has(saga.Contained)
	return contained && q.body.GetGlassBroken()
}

// bareSince is since when the login that is not in use has had no password, if by
// the log it has none. The database is asked, too.
func bareSince(state saga.State) (since time.Time, bare bool) {
	for _, e := range []saga.Event{saga.Erased, saga.Contained} {
		if at, ok := state.Has(e); ok && !state.Open() {
			return at.At, true
		}
	}
	if ended, ok := state.Ended(); ok && state.Flow.Adopts && ended.Event == saga.Completed {
		return ended.At, true
	}
	return time.Time{}, false
}

func locked(credential string, log bus.Log) string {
	begin := log.Records[0].Body.GetRequested()
	why := ""
	if begin.GetReason() != "" {
		why = fmt.Sprintf(" (%q)", begin.GetReason())
	}
	return fmt.Sprintf("%s is locked since %s by %s%s: `pawl unlock %s` brings it back on a new password", credential, log.Records[0].At.Format(time.RFC3339), begin.GetRequestedBy(), why, credential)
}

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
	"pawl.dev/internal/rotation"
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
	m.newest, err = rotation.Of(c.d.Bus.ReadNewest(ctx, known.Name))
	if m.newest.Rotation == q.rotation { // another scheduler has just begun it
		return accepted(q.rotation), 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	why, err := c.held(ctx, m.newest.Log)
	held := why != "" || err != nil // an emergency does not wait for what it can do without
	refusal := ""
	if m.begin, refusal = supersede(q, known, m.newest, held); refusal != "" {
		answer := rejected(refusal)
		answer.Rotation = m.newest.Rotation
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
func supersede(q *request, known *inventory.Credential, newest rotation.Rotation, held bool) (begin *pawlv1.Requested, refusal string) {
	begin = newRequested(q, known)
	begin.Flow, begin.BasisUser = saga.Newest(saga.Emergency), known.Role
	locks, unlocks := begin.Action == pawlv1.Action_ACTION_LOCK, begin.Action == pawlv1.Action_ACTION_UNLOCK
	if locks {
		begin.Flow = saga.Newest(saga.Lock)
	}
	switch isLock := newest.Flow.Locks; {
	case unlocks && !isLock:
		return nil, known.Name + " is not locked"
	case newest.Empty(): // never adopted: it can be stolen all the same
		return begin, ""
	case isLock && !unlocks && !held:
		return nil, locked(newest)
	case unlocks && newest.Open() && !held:
		return nil, fmt.Sprintf("lock %s of %s is still under way: it is at %q", newest.Rotation, known.Name, newest.Next().Name)
	case newest.Flow.Urgent && newest.Open() && !locks && !held && !undone(q, newest):
		return nil, fmt.Sprintf("emergency %s of %s is under way already: it is at %q since %s; if it does not get on, or its new password is stolen, too: `pawl lock %[2]s`, and then `pawl unlock %[2]s`", newest.Rotation, known.Name, newest.Next().Name, newest.Last.At.Format(time.RFC3339))
	}
	if now := follow(begin, newest); now.User == "" {
		begin.BasisUser = known.Role
	}
	if since, bare := bareSince(newest); bare && !held {
		begin.BareSince = timestamppb.New(since)
	}
	return begin, ""
}

// undone reports whether somebody has broken the glass once the emergency that is
// under way had contained: what it has issued since may be taken away.
func undone(q *request, newest rotation.Rotation) bool {
	_, contained := newest.Has(saga.Contained)
	return contained && q.body.GetGlassBroken()
}

// bareSince is since when the login that is not in use has had no password, if by
// the log it has none. The database is asked, too.
func bareSince(newest rotation.Rotation) (since time.Time, bare bool) {
	for _, e := range []saga.Event{saga.Erased, saga.Contained} {
		if at, ok := newest.Has(e); ok && !newest.Open() {
			return at.At, true
		}
	}
	if ended, ok := newest.Ended(); ok && newest.Flow.Adopts && ended.Event == saga.Completed {
		return ended.At, true
	}
	return time.Time{}, false
}

func locked(by rotation.Rotation) string {
	begin := by.Requested()
	why := ""
	if begin.GetReason() != "" {
		why = fmt.Sprintf(" (%q)", begin.GetReason())
	}
	return fmt.Sprintf("%s is locked since %s by %s%s: `pawl unlock %s` brings it back on a new password", by.Credential, by.Began().Format(time.RFC3339), begin.GetRequestedBy(), why, by.Credential)
}

// Package rotation holds what is known of a credential's newest rotation in one value.
//
// The bus stores each rotation as a log: the event requested, which says what was
// begun and from what, and one event for each step that has ended since. Package saga
// folds such a log by the flow that requested names: into what has happened, and the
// step that is due. A Rotation is both, the log and its fold. It is the only thing
// that has to be carried to answer a question about a credential:
//
//	newest, err := rotation.Of(bus.ReadNewest(ctx, credential))
//	switch {
//	case err != nil:           // it cannot be read, or only another version knows it
//	case newest.Empty():       // the credential never had one: it is not adopted
//	case newest.Open():        // newest.Next is due since newest.Due
//	case newest.Flow.Locks:    // nobody can log in
//	default:                   // newest.Current is published
//	}
//
// There is no other state, neither in memory nor in a database. Whoever wants to change
// something reads, decides by the value, and appends after newest.LastSeq: the bus
// refuses the event if the log has grown meanwhile, and then all of it is done again.
//
// The newest rotation is enough. Its requested event carries what the ones before have
// left: the credential that was current when it began (Requested's basis) and, for a
// rollback, the one that it restores. So Current never looks at an older log.
//
// A log that holds a flow or an event of another version of Pawl cannot be folded while
// the rotation is open. Fold then returns the log alone, with an error that wraps
// saga.ErrUnknownEvent, and what is due is left to a service of that version.
//
// A Rotation is a value. It does no I/O, and nothing changes it: to see what has
// happened since, read again.
package rotation

import (
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/fault"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Rotation is the log of one rotation of one credential, and what it amounts to.
type Rotation struct {
	bus.Log
	saga.State
}

// Of folds what a read of the bus returned. An empty log is that of a credential which
// never had a rotation: its flow has no steps and no column, and nothing is due.
func Of(log bus.Log, err error) (Rotation, error) {
	if err != nil || log.Empty() {
		return Rotation{log, saga.State{Flow: &saga.Flow{}}}, err
	}
	return Fold(log)
}

// Fold folds the log of a rotation that is known to exist: an empty one is an error.
func Fold(log bus.Log) (Rotation, error) {
	state, err := log.Fold()
	return Rotation{log, state}, err
}

// Open reports whether the rotation is under way, and so in the way of another one.
func (r Rotation) Open() bool { return !r.Empty() && r.State.Open() }

// Pending are the nodes and standbys that an emergency could not reach, with the
// reason, until it has released them: later steps leave them alone meanwhile.
func (r Rotation) Pending() map[string]string {
	if r.Find(saga.Released) != nil {
		return nil
	}
	return r.Contained().GetPending()
}

// Failure is why the rotation is being rolled back, or was; nil if it is not. It names
// the step that failed, timed out or was cancelled.
func (r Rotation) Failure() *pawlv1.Failure {
	if r.Failed == nil {
		return nil
	}
	return r.Body(r.Failed.Event).GetFailure()
}

// Due is when the step that is due began to be, or will: a step that waits for `keep`
// is due only when that has passed since the rotation ended.
func (r Rotation) Due() time.Time {
	from, wait := r.dueAfter()
	return from.Add(wait)
}

// Late is for how long the step has been due, in time that really passed; below 0, how
// long it still has to wait.
func (r Rotation) Late(c *clock.Clock) time.Duration {
	from, wait := r.dueAfter()
	return c.Since(from) - wait
}

func (r Rotation) dueAfter() (from time.Time, wait time.Duration) {
	step := r.Next()
	if step == nil {
		return r.Last.At, 0
	}
	return r.DueAfter(step, r.Requested().GetKeep().AsDuration())
}

// Limit is how long the step may be due before it is given up, or called stalled.
func (r Rotation) Limit() time.Duration {
	step := r.Next()
	if step == nil {
		return 0
	}
	limit := fault.Deadline(step.Deadline)
	if step.Waits == saga.ForDrain {
		limit = max(limit, r.Requested().GetDrainDeadline().AsDuration())
	}
	return limit
}

// Anchor is the header of the event below which what happens next belongs in the
// trace: requested, or once the rotation is being rolled back, the event that says why.
func (r Rotation) Anchor() nats.Header {
	if r.Failed != nil {
		return r.Find(r.Failed.Event).Header
	}
	return r.Records[0].Header
}

// Current is the credential that is published once the newest rotation has ended.
type Current struct {
	Rotation   string // under which it is sealed; empty: never adopted, or locked
	User       string
	Generation uint64
}

// Current derives it from this rotation alone. While the rotation is open, it is what
// the rotation began from.
func (r Rotation) Current() Current {
	begin := r.Requested()
	_, staged := r.Has(saga.Staged)
	_, adopted := r.Has(saga.Adopted)
	switch ended, _ := r.Ended(); {
	case r.Flow.Locks:
		return Current{"", begin.GetBasisUser(), begin.GetGeneration()}
	case ended.Event == saga.Completed && (staged || adopted):
		return Current{r.Rotation, r.Staged().GetUser(), begin.GetGeneration()}
	case begin.GetAction() == pawlv1.Action_ACTION_ROLLBACK:
		return Current{begin.GetRestores(), begin.GetRestoresUser(), begin.GetGeneration()}
	}
	return Current{begin.GetBasis(), begin.GetBasisUser(), begin.GetBasisGeneration()}
}

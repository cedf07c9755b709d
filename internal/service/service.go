// Package service is the one loop that every service of Pawl is: receive a
// trigger, fold the credential's log, do the step that is due if it is ours,
// append the result with compare-and-set, acknowledge. A service is the table
// of its step handlers; everything else is here.
package service

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/clock"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Service is what the loop runs.
type Service struct {
	// Name is one of saga.Services.
	Name string
	// Steps holds a handler for each step of the saga table that Name owns, by
	// step name. Run refuses a service that lacks one, or that has one too many.
	Steps map[string]Handler
	// Check looks, without touching anything, at whether this service could do
	// its steps for the credential now. Nil: nothing to check.
	Check Checker
	// CheckSealed compares, in the same preflight, what the servers hold with the
	// sealed credentials that the rotation will need: the one in use, and for a
	// rollback its predecessor. Nil: nothing to compare.
	CheckSealed func(ctx context.Context, c *inventory.Credential, sealed []*sealed.Credential) []*pawlv1.Check
	// Examine reports what this service can see of the credential, for `pawl
	// doctor`. Nil: nothing to see.
	Examine Checker
	// Run, where set, runs beside the loop until ctx ends: the scheduler's
	// timers, the auditor's consumers.
	Run func(ctx context.Context) error
	// Close releases what New opened.
	Close func()
}

// Handler does one step: idempotent under the rotation's id, wrapped in
// effect.Do, first asking the world what is already true. It returns the event
// to append (nil: an event without detail) or an error, of which saga.Permanent
// and saga.NotYet say more. ctx ends before the saga's own deadline does.
type Handler func(ctx context.Context, r *Rotation) (*pawlv1.Event, error)

// Checker returns one line per thing looked at. It never returns secrets.
type Checker func(ctx context.Context, c *inventory.Credential) []*pawlv1.Check

// Topics of the verifier's checks that reports look for.
const (
	TopicSettings = "audit settings" // of a server
	TopicMembers  = "members"        // who may use a credential's logins
)

// Rotation is a folded log, and what the configuration says of its credential.
type Rotation struct {
	ID         string
	Credential *inventory.Credential
	State      saga.State
	Step       *saga.Step
	Events     map[saga.Event]*pawlv1.Event
	// Deadline is when the saga gives this step up (or calls it stalled). It counts
	// the time that really passes: compare it with time.Now of this process only.
	Deadline time.Time
	// Clock says how long ago an event was stored. Nil: the machine's.
	Clock *clock.Clock
	// StillDue asks the log's leader, and returns an error unless the same step is
	// still due. Call it while holding the lock on what is about to change.
	StillDue func(ctx context.Context) error
}

// Waited is how much time really passed since the newest event.
func (r *Rotation) Waited() time.Duration { return r.Clock.Since(r.State.Last.At) }

// Requested returns the detail of the event that began the rotation.
func (r *Rotation) Requested() *pawlv1.Requested { return r.Events[saga.Requested].GetRequested() }

// Staged returns the detail of staged or adopted, nil before either.
func (r *Rotation) Staged() *pawlv1.Staged {
	if e, ok := r.Events[saga.Staged]; ok {
		return e.GetStaged()
	}
	return r.Events[saga.Adopted].GetStaged()
}

// Pending are the nodes and replicas that an emergency could not reach, with the
// reason, until it has released them: later steps leave them alone meanwhile.
func (r *Rotation) Pending() map[string]string {
	if _, released := r.Events[saga.Released]; released {
		return nil
	}
	return r.Events[saga.Contained].GetContained().GetPending()
}

// Reached returns those of the nodes that are not pending.
func (r *Rotation) Reached(nodes []inventory.Node) []inventory.Node {
	pending := r.Pending()
	return slices.DeleteFunc(slices.Clone(nodes), func(n inventory.Node) bool { _, late := pending[n.Name]; return late })
}

// Late returns those of the nodes that are pending.
func (r *Rotation) Late(nodes []inventory.Node) []inventory.Node {
	pending := r.Pending()
	return slices.DeleteFunc(slices.Clone(nodes), func(n inventory.Node) bool { _, late := pending[n.Name]; return !late })
}

// Dependencies is what New of each service is given.
type Dependencies struct {
	Inventory *inventory.Inventory
	Log       *slog.Logger
	Bus       *bus.Bus
	// Sealed opens this service's envelopes; nil for services that hold no
	// sealing key (scheduler, restarter, auditor).
	Sealed  *sealed.Store
	Metrics *telemetry.Metrics
	Tracer  trace.Tracer
	// Clock is the bus's, as this process sees it. Nil: the machine's.
	Clock *clock.Clock
	// Conditions holds what keeps this service from working, or soon will.
	Conditions *condition.Set
	// Process holds what is wrong with the process as a whole: nothing begins while
	// one of it fails, but emergencies. Nil: nothing is known of it.
	Process *condition.Set
	// End ends the service with an error, so that it is restarted; nil: it goes on.
	End func(error)
	// Note records beside the log what the audit trail must know. It does not
	// fail the step: a note that cannot be stored is logged.
	Note func(ctx context.Context, n *pawlv1.Note)
}

// update raises a condition if wrong is true, and clears it otherwise. It logs what
// begins and what ends.
func (d Dependencies) update(wrong bool, c condition.Condition) {
	before := d.Conditions.List()
	known := slices.ContainsFunc(before, func(b condition.Condition) bool {
		return b.Name == c.Name && b.Object == c.Object && b.Failing == c.Failing
	})
	switch changed := d.Conditions.Update(wrong, c); {
	case changed && wrong && !known:
		d.Log.Warn("condition", "name", c.Name, "object", c.Object, "failing", c.Failing, "text", c.Text)
	case changed && !wrong:
		d.Log.Info("condition is over", "name", c.Name, "object", c.Object)
	}
}

func (d Dependencies) end(err error) {
	if d.End != nil {
		d.End(err)
	}
}

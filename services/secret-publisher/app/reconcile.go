package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/secret-publisher/internal/sink"
)

// reconciler compares, for ever, what every sink holds with the credential that
// is current by the log. An earlier login of Pawl's, as from a restored backup,
// is written over; anything else is reported and left.
type reconciler struct {
	app *app
	d   service.Dependencies
	log func(ctx context.Context, credential string) (bus.Log, error)
	// newest is as Bus.Newest.
	newest func(ctx context.Context, credential string) (rotation string, seq uint64, err error)
	// standing is restored.Of.
	standing func(ctx context.Context, log bus.Log) (restored.Verdict, error)

	mu   sync.Mutex
	said map[string]string // by credential and sink
}

func newReconciler(a *app, d service.Dependencies) *reconciler {
	return &reconciler{app: a, d: d, log: d.Bus.ReadNewest, newest: d.Bus.Newest, said: map[string]string{},
		standing: func(ctx context.Context, log bus.Log) (restored.Verdict, error) { return restored.Of(ctx, d.Bus, log) }}
}

// run reconciles until ctx ends.
func (r *reconciler) run(ctx context.Context) error {
	tick := time.NewTicker(r.d.Inventory.ReconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r.pass(ctx)
	}
}

func (r *reconciler) pass(ctx context.Context) {
	for name, c := range r.d.Inventory.Credentials {
		if err := r.credential(ctx, c); err != nil && ctx.Err() == nil {
			r.d.Log.Warn("sinks not compared; again soon", "credential", name, "error", err)
		}
	}
}

// credential compares the sinks of one, unless a rotation is at work on them.
func (r *reconciler) credential(ctx context.Context, c *inventory.Credential) error {
	log, err := r.log(ctx, c.Name)
	if err != nil || len(log.Records) == 0 {
		return err
	}
	state, err := log.Fold()
	if err != nil {
		return err
	}
	current := bus.CurrentOf(log, state)
	if state.Open() || current.Rotation == "" {
		return nil
	}
	if verdict, err := r.standing(ctx, log); err != nil || verdict.Standing != restored.Agrees {
		return err // what the sinks hold may be newer than the log
	}
	envelope, err := r.app.sealed.Open(ctx, c.Name, current.Rotation)
	if err != nil {
		return err
	}
	want := r.app.content(envelope, current.Generation)
	sinks := r.app.sinks(c)
	for _, s := range sinks {
		if err := r.compare(ctx, c, log, s, want, envelope.Earlier); err != nil {
			return err
		}
	}
	// Before it is erased the predecessor may be restored; what was stolen never is.
	if _, erased := state.Has(saga.Erased); !erased && !state.Flow.Urgent {
		return nil
	}
	err = r.app.forget(ctx, sinks, want, state.Flow.Urgent, r.unmoved(log))
	if errors.Is(err, errMovedOn) {
		return nil
	}
	return err
}

// unmoved returns nil as long as no other rotation has begun.
func (r *reconciler) unmoved(log bus.Log) func(context.Context) error {
	return func(ctx context.Context) error {
		rotation, _, err := r.newest(ctx, log.Credential)
		if err == nil && rotation != log.Rotation {
			err = errMovedOn
		}
		return err
	}
}

func (r *reconciler) compare(ctx context.Context, c *inventory.Credential, log bus.Log, s sink.Sink, want sink.Content, earlier []string) error {
	wrong := sink.Holds(ctx, s, want)
	if wrong == nil {
		r.report(ctx, c, s, "drift over", "", s.Name()+" holds what it should again")
		return nil
	}
	if sink.IsPassing(wrong) {
		return wrong
	}
	known := r.known(ctx, c, log, want, earlier)
	if !isKnown(ctx, s, known) {
		r.report(ctx, c, s, "drift", wrong.Error(), fmt.Sprintf("%v, and Pawl did not write that: it is left as it is; `pawl doctor %s` shows more", wrong, c.Name))
		return nil
	}
	changed, err := r.repair(ctx, c, log, s, want, known)
	if errors.Is(err, errMovedOn) {
		return nil
	}
	if err != nil {
		return err
	}
	if changed { // else another replica was first
		r.d.Note(ctx, &pawlv1.Note{Kind: "repaired", Credential: c.Name, Rotation: log.Rotation, Text: wrong.Error() + ", which was an earlier one: the current one was written again"})
	}
	return nil
}

// known are the current login, and those that once were, one that a rotation sealed
// which was rolled back among them.
func (r *reconciler) known(ctx context.Context, c *inventory.Credential, log bus.Log, want sink.Content, earlier []string) *sink.Known {
	k := &sink.Known{Credential: c, InUse: want.User, Logins: []sink.Content{want}, Earlier: earlier, Fingerprint: r.app.sealed.Fingerprint}
	if undone, err := r.app.sealed.Open(ctx, c.Name, log.Rotation); err == nil {
		k.Logins = append(k.Logins, r.app.content(undone, undone.Generation))
	}
	return k
}

// isKnown reports whether all that the sink holds of the credential is known.
func isKnown(ctx context.Context, s sink.Sink, known *sink.Known) bool {
	held, err := s.Read(ctx)
	return err == nil && len(held) > 0 && !slices.ContainsFunc(held, func(h sink.Content) bool { return !known.Has(h) })
}

var errMovedOn = errors.New("the log has moved on")

// repair writes as publish does: under the sink's lock, backed up, and only
// while no other rotation has begun.
func (r *reconciler) repair(ctx context.Context, c *inventory.Credential, log bus.Log, s sink.Sink, want sink.Content, known *sink.Known) (bool, error) {
	ctx, span := r.d.Tracer.Start(ctx, "reconcile")
	defer span.End()
	ctx = effect.With(ctx, &effect.Recorder{Credential: c.Name, Step: "reconcile"})
	return r.app.write(ctx, &service.Rotation{ID: log.Rotation, Credential: c, StillDue: r.unmoved(log)}, s, want, known)
}

// report notes, once, what is wrong with a sink, and that it is over.
func (r *reconciler) report(ctx context.Context, c *inventory.Credential, s sink.Sink, kind, wrong, text string) {
	r.d.Metrics.Drift(c.Name, s.Name(), wrong != "")
	key := c.Name + "/" + s.Name()
	r.mu.Lock()
	said := r.said[key]
	r.said[key] = wrong
	r.mu.Unlock()
	if said != wrong {
		r.d.Note(ctx, &pawlv1.Note{Kind: kind, Credential: c.Name, Text: text})
	}
}

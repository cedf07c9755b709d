// Package app is the restarter: it makes a credential's consumers read it anew,
// one after the other, each healthy before the next one's turn.
package app

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/docker"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/restarter/internal/health"
	"pawl.dev/services/restarter/internal/restart"
)

type app struct {
	dir       string // of pawl.yaml, where health commands run
	inventory *inventory.Inventory
	read      func(ctx context.Context, credential, rotation string) (bus.Log, error)
	progress  progress
	docker    *docker.Engine
}

// New returns the service. It opens nothing and holds no key.
func New(d service.Dependencies) (*service.Service, error) {
	a := &app{dir: filepath.Dir(d.Inventory.File), inventory: d.Inventory, read: read(d.Bus), docker: docker.NewEngine(d.Inventory.Docker)}
	return &service.Service{
		Name:  saga.Restarter,
		Steps: map[string]service.Handler{"restart": a.roll, "rerestart": a.roll},
		Check: a.check,
	}, nil
}

// roll restarts the consumers in their configured order. Forward, the first
// that fails ends it: the rest keep what works. Backward, a consumer that fails
// must not keep the others from the credential that is being restored, so all
// are tried, and the step is retried for those that failed. Which ones it
// restarts at all, where several credentials turn together, is turnOf's affair.
func (a *app) roll(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	backward := r.Step.Retriable()
	if !backward { // a stalled step's deadline is past, and it must go on
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, r.Deadline)
		defer cancel()
	}
	t, err := a.turnOf(ctx, r)
	if err != nil {
		return nil, err
	}
	var failed []error
	summary := t.sum()
	for _, consumer := range poolersFirst(r, t.consumers) {
		shown, done := a.progress.has(r, consumer.Name)
		var err error
		if !done {
			if err := r.StillDue(ctx); err != nil {
				return nil, err
			}
			shown, err = a.restart(ctx, r, consumer)
		}
		if shown != "" {
			summary += "; " + consumer.Name + ": " + shown
		}
		switch {
		case err == nil:
			a.progress.add(r, consumer.Name, shown)
		case ctx.Err() != nil:
			return nil, err // cut short, by shutdown or deadline: not the consumer's fault
		case !backward:
			return nil, saga.Permanent(err)
		default:
			failed = append(failed, err)
		}
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	if t.wait != nil {
		return nil, t.wait
	}
	return &pawlv1.Event{Summary: summary}, nil
}

// poolersFirst: in an emergency, a client that a pooler let in with what was
// stolen must be gone before the pooler learns the new keys from another.
func poolersFirst(r *service.Rotation, consumers []inventory.Consumer) []inventory.Consumer {
	if !r.State.Flow.Urgent {
		return consumers
	}
	sorted := slices.Clone(consumers)
	slices.SortStableFunc(sorted, func(a, b inventory.Consumer) int {
		return rank(a) - rank(b)
	})
	return sorted
}

func rank(c inventory.Consumer) int {
	if c.Restart.Pgbouncer != nil {
		return 0
	}
	return 1
}

// restart restarts one consumer and awaits its health. It returns what shows
// that it was restarted.
func (a *app) restart(ctx context.Context, r *service.Rotation, consumer inventory.Consumer) (shown string, err error) {
	cause := restart.Cause{
		Credential: r.Credential.Name, Rotation: r.ID, Step: r.Step.Name, Consumer: consumer.Name, At: r.State.Last.At,
		Cut: r.State.Flow.Urgent, Show: func(text string) { shown = text },
	}
	if cause.Left, cause.Changed, err = a.moved(ctx, r, consumer); err != nil {
		return "", err
	}
	if consumer.Restart.Swarm != nil {
		if cause.Fingerprint, err = a.published(ctx, r); err != nil {
			return "", err
		}
	}
	gate := health.New(consumer.Health, a.dir, cause.Environ())
	if !gate.IsZero() {
		if err := effect.Do(ctx, "health before", consumer.Name, gate.Look); err != nil {
			effect.Warn(ctx, "consumer %s was unhealthy before its restart: %v", consumer.Name, err)
		}
	}
	err = effect.Do(ctx, "restart", consumer.Name, func(ctx context.Context) error {
		return a.kind(consumer).Restart(ctx, cause)
	})
	if err != nil {
		return "", fmt.Errorf("consumer %s: restart: %w", consumer.Name, err)
	}
	if gate.IsZero() {
		return shown, nil
	}
	if err := effect.Do(ctx, "health", consumer.Name, gate.Await); err != nil {
		return "", fmt.Errorf("consumer %s: after its restart: %w", consumer.Name, err)
	}
	return shown, nil
}

// moved tells which logins the rotation leaves behind, and of which the password
// changed, those of the others that share the consumer among them.
func (a *app) moved(ctx context.Context, r *service.Rotation, consumer inventory.Consumer) (left, changed []string, err error) {
	add := func(begin *pawlv1.Requested, staged string) {
		before, after := begin.GetBasisUser(), staged
		switch {
		case begin.GetAction() == pawlv1.Action_ACTION_ROLLBACK:
			after = begin.GetRestoresUser()
		case r.Step.Undoes != "":
			before, after = after, before
		}
		switch {
		case before == "" || after == "": // nothing was staged
		case before == after:
			changed = append(changed, after)
		default:
			left = append(left, before)
		}
	}
	add(r.Requested(), r.Staged().GetUser())
	for _, name := range a.inventory.Sharing(consumer.Name, r.Requested().GetGroup()) {
		if name == r.Credential.Name {
			continue
		}
		p, err := a.peer(ctx, r.ID, name)
		if err != nil {
			return nil, nil, err
		}
		if staged := p.log.Find(saga.Staged); staged != nil {
			add(p.log.Records[0].Body.GetRequested(), staged.Body.GetStaged().GetUser())
		}
	}
	return left, changed, nil
}

func (a *app) kind(c inventory.Consumer) restart.Kind {
	if k := restart.OnDocker(c.Restart, a.docker); k != nil {
		return k
	}
	return restart.For(c.Restart)
}

// published returns the fingerprint of the login that the sinks hold now: of the
// one that was staged, or, on the way back, of the one before.
func (a *app) published(ctx context.Context, r *service.Rotation) (string, error) {
	rotation := ""
	switch begin := r.Requested(); {
	case begin.GetAction() == pawlv1.Action_ACTION_ROLLBACK:
		rotation = begin.GetRestores()
	case r.Step.Undoes != "":
		rotation = begin.GetBasis()
	}
	if rotation == "" {
		return r.Staged().GetFingerprint(), nil
	}
	log, err := a.read(ctx, r.Credential.Name, rotation)
	if err != nil {
		return "", err
	}
	for _, e := range []saga.Event{saga.Staged, saga.Adopted} {
		if record := log.Find(e); record != nil {
			return record.Body.GetStaged().GetFingerprint(), nil
		}
	}
	return "", nil
}

func (a *app) check(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	var lines []*pawlv1.Check
	for _, consumer := range c.Consumers {
		line := &pawlv1.Check{Service: saga.Restarter, Target: "consumer " + consumer.Name}
		finding, err := a.kind(consumer).Check(ctx)
		if err != nil {
			finding, line.Refused = "cannot be restarted: "+err.Error(), true
		}
		line.Finding = finding
		lines = append(lines, line)

		cause := restart.Cause{Credential: c.Name, Step: "plan", Consumer: consumer.Name}
		gate := health.New(consumer.Health, a.dir, cause.Environ())
		if gate.IsZero() {
			continue
		}
		finding = "healthy"
		if err := gate.Look(ctx); err != nil {
			finding = "warning: unhealthy now: " + err.Error() // a rotation may be what it needs
		}
		lines = append(lines, &pawlv1.Check{Service: saga.Restarter, Target: "health of " + consumer.Name, Finding: finding})
	}
	return lines
}

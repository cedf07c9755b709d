package restart

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
	"pawl.dev/services/restarter/internal/health"
)

// labelRestart, on a service, says what its tasks were last replaced for.
const labelRestart = "dev.pawl.restart"

const tasksInterval = 250 * time.Millisecond

// tasks are those of a Swarm service. Where the service reads the credential from
// a Docker secret, the secret-publisher has updated it, and Docker replaces the
// tasks by itself: here that is awaited and proven, task by task. Elsewhere they
// are replaced first, for a cause that the service is labelled with, once.
type tasks struct {
	inventory.SwarmService
	engine *docker.Engine
}

// view is a service at one look.
type view struct {
	swarm.Service
	tasks    []swarm.Task
	versions map[string]string // fingerprints of the credential's secrets, by id
}

func (t tasks) view(ctx context.Context, api *client.Client, credential string) (v view, err error) {
	if v.Service, _, err = api.ServiceInspectWithRaw(ctx, t.Service, swarm.ServiceInspectOptions{}); err != nil {
		return v, fmt.Errorf("service %s: %w", t.Service, settle(err))
	}
	if v.Spec.TaskTemplate.ContainerSpec == nil || v.Spec.Mode.Replicated == nil && v.Spec.Mode.Global == nil {
		return v, saga.Permanentf("service %s is a job, or runs no containers: it cannot be restarted", t.Service)
	}
	if v.tasks, err = api.TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", v.ID))}); err != nil {
		return v, fmt.Errorf("tasks of service %s: %w", t.Service, settle(err))
	}
	secrets, err := api.SecretList(ctx, swarm.SecretListOptions{Filters: filters.NewArgs(filters.Arg("label", published.LabelCredential+"="+credential))})
	if err != nil {
		return v, fmt.Errorf("secrets of %s: %w", credential, settle(err))
	}
	v.versions = map[string]string{}
	for _, s := range secrets {
		v.versions[s.ID] = s.Spec.Labels[published.LabelFingerprint]
	}
	return v, nil
}

// reads lists the fingerprints of the credential's secrets that a container is
// given.
func (v view) reads(c *swarm.ContainerSpec) map[string]bool {
	found := map[string]bool{}
	for _, r := range c.Secrets {
		if print, ours := v.versions[r.SecretID]; ours {
			found[print] = true
		}
	}
	return found
}

func (t tasks) Restart(ctx context.Context, cause Cause) error {
	ctx, cancel := context.WithTimeoutCause(ctx, t.Timeout, fmt.Errorf("service %s: not all tasks replaced within %s", t.Service, t.Timeout))
	defer cancel()
	api, err := t.engine.Client()
	if err != nil {
		return err
	}
	r := roll{tasks: t, api: api, cause: cause}
	var broken error
	err = health.Await(ctx, tasksInterval, func(ctx context.Context) error {
		err := r.look(ctx)
		if saga.IsPermanent(err) {
			broken = err
			return nil
		}
		return err
	})
	return errors.Join(broken, err)
}

// roll is one attempt at a restart.
type roll struct {
	tasks
	api   *client.Client
	cause Cause
	asked bool // Docker, by this attempt, for new tasks

	seen  string    // the tasks that were last proven
	since time.Time // when they first were

	mended time.Time
}

// look returns nil once every task is proven, and a permanent error where that
// cannot be any more.
func (r *roll) look(ctx context.Context) error {
	v, err := r.view(ctx, r.api, r.cause.Credential)
	if err != nil {
		return err
	}
	published := v.reads(v.Spec.TaskTemplate.ContainerSpec)
	switch id := r.cause.id(); {
	case len(published) > 0:
		if want := r.cause.Fingerprint; len(published) > 1 || want != "" && !published[want] {
			return v.failure("is not given what was published (any more)")
		}
	case v.Spec.Labels[labelRestart] == id:
	case r.asked:
		return v.failure("was turned back to its tasks of before")
	default:
		if err := r.ask(ctx, v, id); err != nil {
			return err
		}
		r.asked = true
		return fmt.Errorf("service %s has just been told to replace its tasks", r.Service)
	}
	proven, err := v.proven()
	if errors.Is(err, errTooMany) {
		return errors.Join(err, r.mend(ctx, v))
	}
	if err == nil {
		err = r.stay(v, proven)
	}
	if err == nil {
		r.cause.Show(fmt.Sprintf("%d tasks of service %s replaced", len(proven), r.Service))
	}
	return err
}

// stay returns nil once the tasks have run for as long as Docker watches those of
// an update: one that crashes is seen to run now and then, and on a busy machine
// Docker may call an update completed before it knows of a crash.
func (r *roll) stay(v view, proven []string) error {
	watch, config := 5*time.Second, v.Spec.UpdateConfig // Docker's default
	if config != nil && config.Monitor > 0 {
		watch = config.Monitor
	}
	if seen := fmt.Sprint(proven); seen != r.seen {
		r.seen, r.since = seen, time.Now()
	}
	if time.Since(r.since) < watch {
		return fmt.Errorf("the tasks of service %s run, and are watched for %s", r.Service, watch)
	}
	return nil
}

// ask has Docker replace all tasks. Where somebody else was first with an update,
// the next look sees that.
func (r *roll) ask(ctx context.Context, v view, id string) error {
	spec := v.Spec
	spec.Labels = maps.Clone(spec.Labels)
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	spec.Labels[labelRestart] = id
	spec.TaskTemplate.ForceUpdate++
	answer, err := r.api.ServiceUpdate(ctx, v.ID, v.Version, spec, swarm.ServiceUpdateOptions{RegistryAuthFrom: swarm.RegistryAuthFromSpec})
	for _, w := range answer.Warnings {
		effect.Warn(ctx, "service %s: %s", r.Service, told(w))
	}
	return settle(err)
}

var errTooMany = errors.New("an update was cut short by another, and has left more tasks than there should be")

// mendEvery is how long Docker gets to stop surplus tasks.
const mendEvery = 10 * time.Second

// mend has Docker look at its tasks anew, by an update that changes nothing: where
// one update cut another short, a place may be left with two tasks for ever.
func (r *roll) mend(ctx context.Context, v view) error {
	if time.Since(r.mended) < mendEvery {
		return nil
	}
	r.mended = time.Now()
	_, err := r.api.ServiceUpdate(ctx, v.ID, v.Version, v.Spec, swarm.ServiceUpdateOptions{RegistryAuthFrom: swarm.RegistryAuthFromSpec})
	return settle(err)
}

// id is what a restart is done for, once.
func (c Cause) id() string { return strings.Join([]string{c.Rotation, c.Step, c.Credential}, "/") }

// proven lists the tasks that run as the service's spec has it, with the very
// secrets, and returns an error as long as there is another that runs or is to
// run, one is missing, or Docker has not said that the update is over.
func (v view) proven() (ids []string, err error) {
	if u := v.UpdateStatus; u != nil {
		switch u.State {
		case swarm.UpdateStatePaused, swarm.UpdateStateRollbackPaused:
			return nil, v.failure("has an update that is " + string(u.State))
		case swarm.UpdateStateUpdating, swarm.UpdateStateRollbackStarted:
			return nil, fmt.Errorf("its update is %s: %s", u.State, told(u.Message))
		}
	}
	for _, task := range v.tasks {
		alive := task.Status.State == swarm.TaskStateRunning || task.Status.State == swarm.TaskStateStarting
		switch wanted := task.DesiredState == swarm.TaskStateRunning || task.DesiredState == swarm.TaskStateReady; {
		case !alive && !wanted:
		case !v.asSpecified(task):
			return nil, fmt.Errorf("task %s on node %s is one of before, and is %s", short(task.ID), short(task.NodeID), task.Status.State)
		case task.Status.State != swarm.TaskStateRunning:
			return nil, fmt.Errorf("task %s on node %s is %s", short(task.ID), short(task.NodeID), task.Status.State)
		default:
			ids = append(ids, task.ID)
		}
	}
	if m := v.Spec.Mode.Replicated; m != nil && m.Replicas != nil && uint64(len(ids)) > *m.Replicas {
		return nil, fmt.Errorf("%w: %d run, not %d", errTooMany, len(ids), *m.Replicas)
	} else if m != nil && m.Replicas != nil && uint64(len(ids)) < *m.Replicas {
		return nil, fmt.Errorf("%d of %d tasks run", len(ids), *m.Replicas)
	}
	slices.Sort(ids)
	return ids, nil
}

// asSpecified compares what may have been replaced for a credential.
func (v view) asSpecified(task swarm.Task) bool {
	ids := func(s swarm.TaskSpec) (all []string) {
		if s.ContainerSpec != nil {
			for _, r := range s.ContainerSpec.Secrets {
				all = append(all, r.SecretID)
			}
		}
		slices.Sort(all)
		return all
	}
	return task.Spec.ForceUpdate == v.Spec.TaskTemplate.ForceUpdate && slices.Equal(ids(task.Spec), ids(v.Spec.TaskTemplate))
}

// failure tells what Docker and the tasks last said.
func (v view) failure(what string) error {
	text := fmt.Sprintf("service %s %s", v.Spec.Name, what)
	if u := v.UpdateStatus; u != nil {
		text += fmt.Sprintf("; Docker: %s: %s", u.State, told(u.Message))
	}
	slices.SortFunc(v.tasks, func(a, b swarm.Task) int { return b.Status.Timestamp.Compare(a.Status.Timestamp) })
	var said []string
	for _, task := range v.tasks {
		if e := told(task.Status.Err); e != "" && !slices.Contains(said, e) && len(said) < 3 {
			said = append(said, e)
		}
	}
	if len(said) > 0 {
		text += "; its tasks, the last first: " + strings.Join(said, ", ")
	}
	return saga.Permanentf("%s", text)
}

func short(id string) string { return id[:min(12, len(id))] }

func (t tasks) Check(ctx context.Context) (string, error) {
	api, err := t.engine.Client()
	if err != nil {
		return "", err
	}
	v, err := t.view(ctx, api, "")
	if err != nil {
		return "", err
	}
	finding := fmt.Sprintf("service %s can be awaited", t.Service)
	if ids, err := v.proven(); err != nil {
		finding += "; warning: now " + err.Error()
	} else {
		finding += fmt.Sprintf(", %d tasks run", len(ids))
	}
	if u := v.Spec.UpdateConfig; u != nil && u.FailureAction == swarm.UpdateFailureActionContinue {
		finding += "; warning: tasks that crash do not end its update: docker service update --update-failure-action rollback " + t.Service
	}
	return finding, nil
}

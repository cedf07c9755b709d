package restart

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/health"
)

const containerInterval = 100 * time.Millisecond

// containers are stopped and started as they are, one after the other: they read
// what is mounted anew, but keep the environment that they were made with.
type containers struct {
	inventory.Container
	engine *docker.Engine
}

// Restart leaves a container alone that started after the sinks were written, but
// awaits its health: the attempt that started it may have died before.
func (c containers) Restart(ctx context.Context, cause Cause) error {
	api, err := c.engine.Client()
	if err != nil {
		return err
	}
	ids, err := c.find(ctx, api)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := c.one(ctx, api, id, cause); err != nil {
			return err
		}
	}
	cause.Show(fmt.Sprintf("%d containers restarted", len(ids)))
	return nil
}

func (c containers) one(ctx context.Context, api *client.Client, id string, cause Cause) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("container %s: not up within %s", c.what(), c.Timeout))
	defer cancel()
	now, err := api.ContainerInspect(ctx, id)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.what(), err)
	}
	started, _ := time.Parse(time.RFC3339Nano, now.State.StartedAt) // none: long ago
	if !now.State.Running || !started.After(cause.At.Add(clockSlack)) {
		if err := api.ContainerRestart(ctx, id, container.StopOptions{}); err != nil {
			return fmt.Errorf("container %s: %w", c.what(), err)
		}
	}
	return health.Await(ctx, containerInterval, func(ctx context.Context) error { return sound(ctx, api, id) })
}

// what the configuration calls it.
func (c containers) what() string {
	if c.Name != "" {
		return c.Name
	}
	return "labelled " + c.Label
}

func (c containers) find(ctx context.Context, api *client.Client) ([]string, error) {
	if c.Name != "" {
		return []string{c.Name}, nil
	}
	ids, err := labelled(ctx, api, c.Label)
	if err == nil && len(ids) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.what(), err)
	}
	return ids, nil
}

// labelled lists the containers, also those that do not run, that have all the
// labels.
func labelled(ctx context.Context, api *client.Client, labels ...string) (ids []string, err error) {
	args := filters.NewArgs()
	for _, l := range labels {
		args.Add("label", l)
	}
	all, err := api.ContainerList(ctx, container.ListOptions{All: true, Filters: args})
	for _, c := range all {
		ids = append(ids, c.ID)
	}
	return ids, err
}

// sound returns nil where the container runs, and is healthy if it can tell.
func sound(ctx context.Context, api *client.Client, id string) error {
	now, err := api.ContainerInspect(ctx, id)
	switch {
	case err != nil:
		return err
	case !now.State.Running || now.State.Restarting:
		return fmt.Errorf("container %s is %s, exit code %d", short(id), now.State.Status, now.State.ExitCode)
	case now.State.Health == nil || now.State.Health.Status == container.Healthy || now.State.Health.Status == container.NoHealthcheck:
		return nil
	}
	text := ""
	if log := now.State.Health.Log; len(log) > 0 {
		text = ": " + told(log[len(log)-1].Output)
	}
	return fmt.Errorf("container %s is %s%s", short(id), now.State.Health.Status, text)
}

func (c containers) Check(ctx context.Context) (string, error) {
	api, err := c.engine.Client()
	if err != nil {
		return "", err
	}
	ids, err := c.find(ctx, api)
	if err != nil {
		return "", err
	}
	finding := fmt.Sprintf("container %s can be restarted", c.what())
	for _, id := range ids {
		if _, err := api.ContainerInspect(ctx, id); err != nil {
			return "", fmt.Errorf("container %s: %w", c.what(), err)
		}
		if err := sound(ctx, api, id); err != nil {
			finding += "; warning: now " + err.Error()
		}
	}
	return finding, nil
}

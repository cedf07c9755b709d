package restart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/docker/docker/client"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/command"
	"pawl.dev/services/restarter/internal/health"
)

// composed is a service of a Compose project. Its containers are made anew: a
// restart would leave them the environment of the old .env.
type composed struct {
	inventory.Compose
	engine *docker.Engine
}

// Restart leaves containers alone that were made after the sinks were written, but
// awaits their health.
func (c composed) Restart(ctx context.Context, cause Cause) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("service %s of %s: not up within %s", c.Service, c.Dir, c.Timeout))
	defer cancel()
	api, err := c.engine.Client()
	if err != nil {
		return err
	}
	fresh, err := c.madeSince(ctx, api, cause.At.Add(clockSlack))
	if err != nil {
		return err
	}
	if !fresh {
		up, err := c.command(ctx, cause, "up", "-d", "--no-deps", "--force-recreate", "--no-build", c.Service)
		if err == nil {
			err = up.Run(ctx)
		}
		if err != nil {
			return fmt.Errorf("service %s of %s: %w", c.Service, c.Dir, err)
		}
	}
	ids, err := labelled(ctx, api, c.labels()...)
	if err == nil && len(ids) == 0 {
		err = errors.New("has no containers, or Compose calls its project otherwise: name it as project")
	}
	if err != nil {
		return fmt.Errorf("service %s of %s: %w", c.Service, c.Dir, err)
	}
	for _, id := range ids {
		if err := health.Await(ctx, containerInterval, func(ctx context.Context) error { return sound(ctx, api, id) }); err != nil {
			return err
		}
	}
	cause.Show(fmt.Sprintf("%d containers made anew", len(ids)))
	return nil
}

// labels that Compose gives the service's containers.
func (c composed) labels() []string {
	labels := []string{"com.docker.compose.service=" + c.Service, "com.docker.compose.oneoff=False"}
	if c.Project != "" {
		return append(labels, "com.docker.compose.project="+c.Project)
	}
	return append(labels, "com.docker.compose.project.working_dir="+c.Dir)
}

func (c composed) madeSince(ctx context.Context, api *client.Client, when time.Time) (bool, error) {
	ids, err := labelled(ctx, api, c.labels()...)
	for _, id := range ids {
		now, err := api.ContainerInspect(ctx, id)
		if err != nil {
			return false, fmt.Errorf("service %s of %s: %w", c.Service, c.Dir, err)
		}
		if made, _ := time.Parse(time.RFC3339Nano, now.Created); !made.After(when) {
			return false, nil
		}
	}
	return len(ids) > 0, err
}

// command is one of Compose: Docker's plugin, or docker-compose of before. Of
// Pawl's environment it gets where Docker is, and nothing that a .env would give
// way to.
func (c composed) command(ctx context.Context, cause Cause, args ...string) (command.Command, error) {
	run := command.Command{Argv: []string{"docker", "compose"}, Dir: c.Dir, Env: append(cause.Environ(), environ(c.engine.Docker)...)}
	plugin := run
	plugin.Argv = []string{"docker", "compose", "version"}
	if plugin.Find() != nil || plugin.Run(ctx) != nil {
		run.Argv = []string{"docker-compose"}
		if err := run.Find(); err != nil {
			return run, errors.New("there is neither Docker's compose plugin nor docker-compose: install one")
		}
	}
	if c.Project != "" {
		run.Argv = append(run.Argv, "-p", c.Project)
	}
	for _, file := range c.Files {
		run.Argv = append(run.Argv, "-f", file)
	}
	run.Argv = append(run.Argv, args...)
	return run, nil
}

// environ tells Docker's programs where Docker is.
func environ(e inventory.Docker) (env []string) {
	if e.Host == "" {
		for _, name := range []string{"DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"} {
			if value, ok := os.LookupEnv(name); ok {
				env = append(env, name+"="+value)
			}
		}
		return env
	}
	env = append(env, "DOCKER_HOST="+e.Host)
	if e.CertFile != "" {
		env = append(env, "DOCKER_TLS_VERIFY=1", "DOCKER_CERT_PATH="+filepath.Dir(e.CertFile))
	}
	return env
}

func (c composed) Check(ctx context.Context) (string, error) {
	api, err := c.engine.Client()
	if err != nil {
		return "", err
	}
	if t := c.engine.Docker; t.CertFile != "" {
		dir := filepath.Dir(t.CertFile)
		if t.CAFile != filepath.Join(dir, "ca.pem") || t.CertFile != filepath.Join(dir, "cert.pem") || t.KeyFile != filepath.Join(dir, "key.pem") {
			return "", errors.New("docker.tls: Compose takes its files from one folder, as ca.pem, cert.pem and key.pem: name them so")
		}
	}
	config, err := c.command(ctx, Cause{}, "config", "-q")
	if err == nil {
		err = config.Run(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("service %s of %s: %w", c.Service, c.Dir, err)
	}
	ids, err := labelled(ctx, api, c.labels()...)
	if err == nil && len(ids) == 0 {
		err = errors.New("has no containers: start it once; or Compose calls its project otherwise: name it as project")
	}
	if err != nil {
		return "", fmt.Errorf("service %s of %s: %w", c.Service, c.Dir, err)
	}
	return fmt.Sprintf("service %s of %s can be made anew, %d containers", c.Service, c.Dir, len(ids)), nil
}

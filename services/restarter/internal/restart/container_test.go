package restart

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/dockertest"
	"pawl.dev/internal/inventory"
)

// healthy is the image of a sleeper that says whether it is well.
func healthy(t *testing.T) string {
	t.Helper()
	dockertest.Need(t)
	dockertest.Image(t, "pawl-swarm-sleeper-healthy", sleeper, `HEALTHCHECK --interval=300ms --retries=1 CMD ["/app", "health"]`)
	return "pawl-swarm-sleeper-healthy"
}

func runs(t *testing.T, args ...string) (name string) {
	t.Helper()
	image := healthy(t)
	name = dockertest.Name("container")
	dockertest.Run(t, append(append([]string{"run", "-d", "--name", name}, args...), image)...)
	t.Cleanup(func() { remove(t, name) })
	return name
}

func remove(t *testing.T, names ...string) {
	t.Helper()
	if _, err := dockertest.Try(context.WithoutCancel(t.Context()), "", append([]string{"rm", "-f"}, names...)...); err != nil {
		t.Error(err)
	}
}

func inspect(t *testing.T, name, format string) string {
	t.Helper()
	return dockertest.Run(t, "inspect", "--type=container", "--format="+format, name)
}

// changes counts how often what is looked at was found to be another.
func changes(look func() string) func() int {
	first, n := look(), 0
	return func() int {
		if now := look(); now != first {
			first = now
			n++
		}
		return n
	}
}

func aContainer(t *testing.T) fixture {
	name := runs(t)
	return fixture{
		kind:     OnDocker(inventory.Restart{Container: &inventory.Container{Name: name, Timeout: time.Minute}}, docker.NewEngine(inventory.Docker{})),
		restarts: changes(func() string { return inspect(t, name, "{{.State.StartedAt}}") }),
		sabotage: func() { dockertest.Run(t, "rename", name, name+"-gone"); t.Cleanup(func() { remove(t, name+"-gone") }) },
		names:    name,
	}
}

// project is a Compose project of the sleeper that gets its environment from .env.
func project(t *testing.T) (dir string, containers func() string) {
	t.Helper()
	image := sleeping(t)
	dir = filepath.Join(dockertest.Dir(t), dockertest.Name("compose"))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, ".env", "PASSWORD=before\n")
	write(t, dir, "docker-compose.yml", "version: '3'\nservices:\n  api: {image: "+image+", env_file: .env, network_mode: none}\n  other: {image: "+image+", network_mode: none}\n")
	containers = func() string {
		return dockertest.Run(t, "ps", "-aq", "--no-trunc", "--filter=label=com.docker.compose.service=api", "--filter=label=com.docker.compose.project.working_dir="+dir)
	}
	up := composed{inventory.Compose{Service: "api", Dir: dir}, docker.NewEngine(inventory.Docker{})}
	run, err := up.command(t.Context(), cause(), "up", "-d", "--no-build")
	if err == nil {
		err = run.Run(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := dockertest.Try(context.WithoutCancel(t.Context()), "", "ps", "-aq", "--filter=label=com.docker.compose.project.working_dir="+dir)
		if err != nil {
			t.Error(err)
		} else if left != "" {
			remove(t, strings.Fields(left)...)
		}
	})
	return dir, containers
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func composeOf(dir string) Kind {
	return OnDocker(inventory.Restart{Compose: &inventory.Compose{Service: "api", Dir: dir, Timeout: time.Minute}}, docker.NewEngine(inventory.Docker{}))
}

func aComposeService(t *testing.T) fixture {
	dir, containers := project(t)
	return fixture{
		kind:     composeOf(dir),
		restarts: changes(containers),
		sabotage: func() { write(t, dir, "docker-compose.yml", "services: {other: {image: x}}\nno: key\n") },
		names:    dir,
	}
}

func TestComposeServiceGetsTheNewEnvironmentOnce(t *testing.T) {
	t.Parallel()
	dir, containers := project(t)
	before := containers()
	write(t, dir, ".env", "PASSWORD=after\n")
	c := cause()
	for range 2 {
		if err := composeOf(dir).Restart(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		c.At = c.At.Add(-time.Hour) // so that the containers are clearly of after it
	}
	after := containers()
	if after == before || !strings.Contains(inspect(t, after, "{{.Config.Env}}"), "PASSWORD=after") {
		t.Errorf("was %s, is %s: %s", before, after, inspect(t, after, "{{.Config.Env}}"))
	}
	if err := composeOf(dir).Restart(t.Context(), c); err != nil || containers() != after {
		t.Errorf("made anew though it had been: %v", err)
	}
}

func TestContainerIsRestartedOnceAndMustBecomeHealthy(t *testing.T) {
	t.Parallel()
	label := "pawl.test=" + dockertest.Name("label")
	well := runs(t, "--label="+label)
	kind := OnDocker(inventory.Restart{Container: &inventory.Container{Label: label, Timeout: 20 * time.Second}}, docker.NewEngine(inventory.Docker{}))
	c := cause()
	if err := kind.Restart(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	started := inspect(t, well, "{{.State.StartedAt}}")
	c.At = c.At.Add(-time.Hour)
	if err := kind.Restart(t.Context(), c); err != nil || inspect(t, well, "{{.State.StartedAt}}") != started {
		t.Errorf("restarted though it had been: %v", err)
	}
	if state := inspect(t, well, "{{.State.Health.Status}}"); state != "healthy" {
		t.Errorf("is %s", state)
	}
	sick := runs(t, "--env=SICK=1", "--stop-timeout=1")
	kind = OnDocker(inventory.Restart{Container: &inventory.Container{Name: sick, Timeout: 15 * time.Second}}, docker.NewEngine(inventory.Docker{}))
	if err := kind.Restart(t.Context(), cause()); err == nil || !strings.Contains(err.Error(), "not up within 15s") || !strings.Contains(err.Error(), "sick as told") {
		t.Errorf("got %v", err)
	}
}

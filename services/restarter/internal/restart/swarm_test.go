package restart

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/docker"
	"pawl.dev/internal/dockertest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
	"pawl.dev/internal/saga"
)

const sleeper = "pawl.dev/internal/dockertest/sleeper"

// sleeping is the image of a program that sleeps.
func sleeping(t *testing.T) string {
	t.Helper()
	dockertest.Need(t)
	dockertest.Image(t, "pawl-swarm-sleeper", sleeper)
	return "pawl-swarm-sleeper"
}

// rolls is a Swarm service of the sleeper whose updates are quick.
func rolls(t *testing.T, args ...string) (service string, kind Kind) {
	t.Helper()
	image := sleeping(t)
	service = dockertest.Name("api")
	dockertest.Service(t, service, image, append([]string{"--update-order=start-first", "--update-monitor=1s", "--update-failure-action=rollback", "--restart-delay=500ms", "--stop-grace-period=1s"}, args...)...)
	return service, OnDocker(inventory.Restart{Swarm: &inventory.SwarmService{Service: service, Timeout: 2 * time.Minute}}, docker.NewEngine(inventory.Docker{}))
}

// watched is long enough for Docker to hear of a crash on a busy machine.
const watched = "--update-monitor=10s"

func aSwarmService(t *testing.T) fixture {
	service, kind := rolls(t)
	return fixture{
		kind: kind,
		restarts: func() int {
			n, err := strconv.Atoi(dockertest.Run(t, "service", "inspect", "--format={{.Spec.TaskTemplate.ForceUpdate}}", service))
			if err != nil {
				t.Fatal(err)
			}
			return n
		},
		sabotage: func() { dockertest.Run(t, "service", "rm", service) },
		names:    service,
	}
}

// running lists the tasks that run, by the first of their secrets.
func running(t *testing.T, service string) (secrets []string) {
	t.Helper()
	for id := range strings.FieldsSeq(dockertest.Run(t, "service", "ps", "-q", "--no-trunc", "--filter=desired-state=running", service)) {
		secrets = append(secrets, dockertest.Run(t, "inspect", "--type=task", "--format={{.Status.State}} {{(index .Spec.ContainerSpec.Secrets 0).SecretName}}", id))
	}
	return secrets
}

// version makes a secret as the secret-publisher does.
func version(t *testing.T, content, fingerprint string) string {
	t.Helper()
	name := dockertest.Name("dsn")
	dockertest.Secret(t, name, content, published.LabelCredential+"=shop", published.LabelSecret+"=dsn", published.LabelFingerprint+"="+fingerprint)
	return name
}

// publish has the service read another secret, as the secret-publisher does.
func publish(t *testing.T, service, old, secret string) {
	t.Helper()
	dockertest.Run(t, "service", "update", "--detach", "--secret-rm="+old, "--secret-add=source="+secret+",target=dsn", service)
}

func publishedIs(fingerprint string) Cause {
	c := cause()
	c.Fingerprint = fingerprint
	return c
}

func TestTasksAreReplacedOncePerCause(t *testing.T) {
	t.Parallel()
	service, kind := rolls(t, "--replicas=2")
	back := cause()
	back.Step = "rerestart"
	for i, c := range []Cause{cause(), cause(), back, back} {
		if err := kind.Restart(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		want := strconv.Itoa(1 + i/2)
		if got := dockertest.Run(t, "service", "inspect", "--format={{.Spec.TaskTemplate.ForceUpdate}}", service); got != want {
			t.Errorf("after %d restarts asked for %s times, want %s", i+1, got, want)
		}
	}
}

func TestEveryTaskIsAwaitedThatReadsTheOldSecret(t *testing.T) {
	t.Parallel()
	old, next := version(t, "a", "print-of-a"), version(t, "b", "print-of-b")
	service, kind := rolls(t, "--replicas=2", "--secret=source="+old+",target=dsn")
	if err := kind.Restart(t.Context(), publishedIs("print-of-a")); err != nil { // waits for its first tasks
		t.Fatal(err)
	}
	publish(t, service, old, next)
	c := publishedIs("print-of-b")
	shown := ""
	c.Show = func(text string) { shown = text }
	for range 2 {
		if err := kind.Restart(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if got := running(t, service); !slices.Equal(got, []string{"running " + next, "running " + next}) {
			t.Fatalf("tasks %q", got)
		}
	}
	if shown != "2 tasks of service "+service+" replaced" {
		t.Errorf("shown %q", shown)
	}
	if n := dockertest.Run(t, "service", "inspect", "--format={{.Spec.TaskTemplate.ForceUpdate}}", service); n != "0" {
		t.Errorf("forced %s times what the secret had done", n)
	}
}

func TestUpdateThatDockerTurnsBackFailsWithWhatTheTasksSaid(t *testing.T) {
	t.Parallel()
	old, next := version(t, "a", "print-of-a"), version(t, "crash", "print-of-b")
	service, kind := rolls(t, "--replicas=2", "--secret=source="+old+",target=dsn", watched)
	if err := kind.Restart(t.Context(), publishedIs("print-of-a")); err != nil {
		t.Fatal(err)
	}
	publish(t, service, old, next)
	err := kind.Restart(t.Context(), publishedIs("print-of-b"))
	if !saga.IsPermanent(err) || !strings.Contains(err.Error(), "is not given what was published") || !strings.Contains(err.Error(), "non-zero exit (3)") || !strings.Contains(err.Error(), "rollback_") {
		t.Fatalf("got %v", err)
	}
	// The way back finds the old secret referred to already, and waits for the tasks.
	if err := kind.Restart(t.Context(), publishedIs("print-of-a")); err != nil {
		t.Fatal(err)
	}
	if got := running(t, service); !slices.Equal(got, []string{"running " + old, "running " + old}) {
		t.Errorf("tasks %q", got)
	}
}

func TestUpdateThatDockerPausesFails(t *testing.T) {
	t.Parallel()
	old, next := version(t, "a", "print-of-a"), version(t, "crash", "print-of-b")
	service, kind := rolls(t, "--secret=source="+old+",target=dsn", "--update-failure-action=pause", watched)
	publish(t, service, old, next)
	err := kind.Restart(t.Context(), publishedIs("print-of-b"))
	if !saga.IsPermanent(err) || !strings.Contains(err.Error(), "has an update that is paused") || !strings.Contains(err.Error(), "non-zero exit (3)") {
		t.Fatalf("got %v", err)
	}
}

func TestDockerIsAskedForWhatIsDocumentedAlone(t *testing.T) {
	t.Parallel()
	service, _ := rolls(t)
	label := "pawl.test=" + dockertest.Name("label")
	runs(t, "--label="+label)
	host, compare := dockertest.Proxy(t, "restarter")
	engine := docker.NewEngine(inventory.Docker{Host: host})
	for _, r := range []inventory.Restart{
		{Swarm: &inventory.SwarmService{Service: service, Timeout: time.Minute}},
		{Container: &inventory.Container{Label: label, Timeout: time.Minute}},
	} {
		kind := OnDocker(r, engine)
		if _, err := kind.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := kind.Restart(t.Context(), cause()); err != nil {
			t.Fatal(err)
		}
	}
	compare()
}

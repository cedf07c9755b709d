package natsconf

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// runs runs a service of which each step succeeds, until stop is called or the test
// ends, and returns its readiness once it is bound.
func (i *installation) runs(name string) (ready func() error, stop func()) {
	i.t.Helper()
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		i.t.Fatal(err)
	}
	steps := map[string]service.Handler{}
	for _, step := range saga.Steps(name) {
		steps[step] = func(context.Context, *service.Rotation) (*pawlv1.Event, error) { return nil, nil }
	}
	i.inv.Credentials = map[string]*inventory.Credential{"c": {Name: "c"}}
	bound, ended := make(chan func() error, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(i.t.Context())
	go func() {
		ended <- service.Run(ctx, service.Options{Name: name, Inventory: i.inv, Log: telemetry.NewLogger(os.Stderr, name, 12), Metrics: metrics,
			New: func(d service.Dependencies) (*service.Service, error) {
				return &service.Service{Name: name, Steps: steps, Check: func(context.Context, *inventory.Credential) []*pawlv1.Check {
					return []*pawlv1.Check{{Finding: "fine"}}
				}}, nil
			},
			Ready: func(of func() error) { bound <- of }})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			i.t.Errorf("%s ended: %v", name, err)
		}
	})
	i.t.Cleanup(stop)
	select {
	case ready = <-bound:
	case err := <-ended:
		ended <- err
		i.t.Fatal(err)
	}
	return ready, stop
}

// TestMissingServiceMakesTheOthersUnreadyUntilItIsBack: each asks the others.
func TestMissingServiceMakesTheOthersUnreadyUntilItIsBack(t *testing.T) {
	i := install(t)
	i.serve()
	i.mustProvision()
	restarter, _ := i.runs(saga.Restarter)
	says(t, restarter, "service auditor: does not answer: it was never started", true)
	_, stop := i.runs(saga.Auditor)
	says(t, restarter, "service auditor", false)
	stop()
	says(t, restarter, "service auditor: does not answer: it is not running, or hangs. Its last sign of life was at 2", true)
	h, err := service.AskHealth(t.Context(), i.join(bus.Operator), saga.Auditor)
	if err != nil || h.Version != "" || len(h.Conditions) != 1 || !h.Conditions[0].Failing {
		t.Errorf("%+v, %v", h, err)
	}
	i.runs(saga.Auditor)
	says(t, restarter, "service auditor", false)
	h, err = service.AskHealth(t.Context(), i.join(bus.Operator), saga.Restarter)
	if err != nil || h.Version == "" || !slices.ContainsFunc(h.Conditions, func(c service.Told) bool { return c.Name == "service" && c.Object == saga.Scheduler }) {
		t.Errorf("%+v, %v", h, err)
	}
}

// TestServiceOfAVersionBeforeIsNotCalledMissing: while versions are mixed, that would
// keep an update from going on.
func TestServiceOfAVersionBeforeIsNotCalledMissing(t *testing.T) {
	i := install(t)
	i.serve()
	i.mustProvision()
	before := i.join(saga.Auditor)
	if err := before.Publish(t.Context(), bus.LiveSubject(saga.Auditor), &pawlv1.Note{Kind: "live"}, nil); err != nil { // of this version, before it was taken back
		t.Fatal(err)
	}
	if err := before.Publish(t.Context(), bus.StartedSubject(saga.Auditor), &pawlv1.Note{Kind: "started"}, nil); err != nil {
		t.Fatal(err)
	}
	restarter, _ := i.runs(saga.Restarter)
	says(t, restarter, "service scheduler", true)
	if err := restarter(); strings.Contains(err.Error(), "service auditor") {
		t.Error(err)
	}
}

// TestServerOfAVersionBeforeIsTold: it knows no signs of life, and services go on.
func TestServerOfAVersionBeforeIsTold(t *testing.T) {
	i := install(t)
	s := i.serve()
	i.mustProvision()
	i.reload(s, func(conf string) string {
		permitted := regexp.MustCompile(`(?m)^( +)"(pawl\.(live|health)|\$JS\.API\.DIRECT\.GET\.PAWL_LIVE)[^"]*"$`)
		return permitted.ReplaceAllString(conf, `${1}"nothing"`)
	})
	restarter, _ := i.runs(saga.Restarter)
	for _, text := range []string{"bus: publish pawl.live.restarter: not permitted to publish on pawl.live.restarter. Does the server know this version's permissions? (`pawl nats-config` writes them)",
		"bus pawl.live.restarter: NATS does not permit", "bus pawl.health.*: not permitted"} {
		says(t, restarter, text, true)
	}
}

// reload has the server read its configuration as changed.
func (i *installation) reload(s *server.Server, change func(string) string) {
	i.t.Helper()
	path := filepath.Join(i.opts.Out, i.node.Name, "nats.conf")
	right, err := os.ReadFile(path)
	if err != nil {
		i.t.Fatal(err)
	}
	defer os.WriteFile(path, right, 0o644)
	if err := os.WriteFile(path, []byte(change(string(right))), 0o644); err != nil {
		i.t.Fatal(err)
	}
	options, err := server.ProcessConfigFile(path)
	if err != nil {
		i.t.Fatal(err)
	}
	options.NoSigs, options.NoLog = true, true
	if err := s.ReloadOptions(options); err != nil {
		i.t.Fatal(err)
	}
}

// withoutEars takes the right to subscribe from a user.
func withoutEars(user string) func(string) string {
	of := regexp.MustCompile(`(?s)(# ` + user + `\n.*?subscribe: \{allow: \[)[^\]]*\]`)
	return func(conf string) string { return of.ReplaceAllString(conf, `${1}"nothing"]`) }
}

// says waits until what keeps a service from working has the text, or lacks it.
func says(t *testing.T, ready func() error, text string, has bool) {
	t.Helper()
	began, last := time.Now(), ""
	for time.Since(began) < time.Minute {
		if last = ""; ready() != nil {
			last = ready().Error()
		}
		if strings.Contains(last, text) == has {
			t.Logf("%q: %v after %v", text, has, time.Since(began).Round(100*time.Millisecond))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%q is to be told: %v; told: %s", text, has, last)
}

// TestServiceHearsAgainAfterItsPermissionsAreRestored: the server removes the
// subscriptions that a reloaded configuration forbids. Another reload permits them
// again and does not bring them back.
func TestServiceHearsAgainAfterItsPermissionsAreRestored(t *testing.T) {
	i := install(t)
	s := i.serve()
	i.mustProvision()
	ready, _ := i.runs(saga.Restarter)
	scheduler, rotator, publisher := i.join(saga.Scheduler), i.join(saga.DBRotator), i.join(saga.SecretPublisher)
	says(t, ready, "starting", false)

	i.reload(s, withoutEars(saga.Restarter))
	says(t, ready, "bus _INBOX_restarter.>: NATS does not permit", true)
	i.reload(s, func(right string) string { return right })

	says(t, ready, "bus", false)
	if _, err := service.Ask(t.Context(), scheduler, bus.CheckSubject(saga.Restarter, "c")); err != nil {
		t.Errorf("the preflight's question: %v", err)
	}
	requested := begin()
	requested.GetRequested().Flow, requested.GetRequested().Action = saga.Alternating, pawlv1.Action_ACTION_ROTATE
	seq := uint64(0)
	for _, e := range []struct {
		by    *bus.Bus
		event saga.Event
		body  *pawlv1.Event
	}{{scheduler, saga.Requested, requested}, {rotator, saga.Staged, &pawlv1.Event{}}, {publisher, saga.Published, &pawlv1.Event{}}} {
		var err error
		if seq, err = e.by.Append(t.Context(), "c", "r1", e.event, e.body, nil, seq); err != nil {
			t.Fatal(err)
		}
	}
	await(t, func() bool {
		log, err := scheduler.ReadNewest(t.Context(), "c")
		return err == nil && log.Find(saga.Restarted) != nil
	})
}

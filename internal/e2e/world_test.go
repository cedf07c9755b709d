// Package e2e tests whole installations: the services as processes, a real
// NATS, a real PostgreSQL, applications that use what is published.
package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
)

var (
	full = flag.Bool("full", false, "run every crash point and every pair, not a sample")
	seed = flag.Uint64("seed", 0, "of the sample; 0: a new one, which is printed")
)

const (
	ackWait      = time.Second      // after which a dead service's work is given to another
	stepDeadline = 12 * time.Second // instead of minutes
)

// world is an installation under test.
type world struct {
	t      *testing.T
	site   *site.Site
	apps   *site.Apps
	fleet  *site.Fleet
	client *site.Client
	sealed *sealed.Store
	admin  *postgres.Admin
	random *rand.Rand
	spans  *collector

	seen *sightings
}

// sightings is what the parts of a test have seen.
type sightings struct {
	mu      sync.Mutex
	outage  time.Duration
	missed  []string        // points that nobody came by
	secrets map[string]bool // passwords and verifiers: none may be found anywhere
}

func (s *sightings) sawOutage(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = max(s.outage, d)
}

func (s *sightings) miss(point string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed = append(s.missed, point)
}

// misses returns and forgets what was missed.
func (s *sightings) misses() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	missed := s.missed
	s.missed = nil
	return missed
}

func (s *sightings) longest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outage
}

func TestMain(m *testing.M) { os.Exit(site.Run(m)) }

// newWorld starts an installation with the credentials that layOut names, and
// so many replicas of each service. After the test it looks for passwords where
// none may be.
func newWorld(t *testing.T, replicas int, layOut func(*site.Apps, *pgserver.Server) []site.Credential) *world {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{Settings: loudestLogging()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return newWorldOn(t, replicas, []site.Node{{Name: "primary", Server: server}}, func(apps *site.Apps) []site.Credential { return layOut(apps, server) })
}

// newWorldOn does so on servers that run already, of which one is "primary".
func newWorldOn(t *testing.T, replicas int, nodes []site.Node, layOut func(*site.Apps) []site.Credential) *world {
	t.Helper()
	return newWorldWith(t, replicas, stepDeadline, layOut, func(dir, otlp string, credentials []site.Credential) (*site.Site, error) {
		return site.NewCluster(t.Context(), dir, nodes, otlp, credentials)
	})
}

// newWorldWith does so on the site that build makes, with no step longer than deadline.
func newWorldWith(t *testing.T, replicas int, deadline time.Duration, layOut func(*site.Apps) []site.Credential, build func(dir, otlp string, credentials []site.Credential) (*site.Site, error)) *world {
	t.Helper()
	w := &world{t: t, apps: site.NewApps(), random: newRandom(t), seen: &sightings{secrets: map[string]bool{}}}
	t.Cleanup(w.apps.Close)
	w.spans = newCollector(t)
	var err error
	if w.site, err = build(t.TempDir(), w.spans.server.URL, layOut(w.apps)); err != nil {
		t.Fatal(err)
	}
	w.apps.Use(w.site)
	w.startFleet(replicas, deadline)
	t.Cleanup(w.scan)
	return w
}

// loudestLogging makes PostgreSQL write down whatever it is told.
func loudestLogging() map[string]string {
	return map[string]string{"max_connections": "1000", "authentication_timeout": "5s", "log_statement": "all", "log_min_duration_statement": "0", "log_connections": "on",
		"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on", "pg_stat_statements.track": "all"}
}

func (w *world) startFleet(replicas int, deadline time.Duration) {
	w.t.Helper()
	w.t.Cleanup(func() {
		w.client.NATS.Close()
		w.fleet.Stop()
		if w.t.Failed() {
			w.showLogs()
		}
	})
	w.runFleet(replicas, deadline)
	w.newAdmin()
}

// runFleet does so again, after the fleet was stopped.
func (w *world) runFleet(replicas int, deadline time.Duration) {
	t := w.t
	t.Helper()
	built, err := site.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	if w.fleet, err = w.site.StartFleet(context.Background(), built, replicas, ackWait, deadline); err != nil {
		t.Fatal(err)
	}
	if w.client, err = dial(t.Context(), w.site.Operator); err != nil {
		t.Fatal(err)
	}
	keys, err := w.site.Keys(saga.DBRotator)
	if err != nil {
		t.Fatal(err)
	}
	rotator, err := w.site.Connect(saga.DBRotator)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rotator.NATS.Close)
	w.sealed = sealed.NewStore(rotator, saga.DBRotator, keys)
}

// newAdmin looks at the first node as Pawl does.
func (w *world) newAdmin() {
	w.t.Helper()
	cluster := w.site.Inventory.Clusters["main"]
	var err error
	if w.admin, err = postgres.NewAdmin(cluster.Nodes["primary"], cluster, nil); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.admin.Close)
}

// dial tries until the server answers and the last of its streams is there.
func dial(ctx context.Context, connect func() (*site.Client, error)) (*site.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		client, err := connect()
		if err == nil {
			if _, err = client.Stream(ctx, bus.StreamDead); err == nil {
				return client, nil
			}
			client.NATS.Close()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the bus did not come up: %w", err)
		case <-tick.C:
		}
	}
}

func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d (again with -args -seed %d)", s, s)
	return rand.New(rand.NewPCG(s, 0))
}

// atOnce runs the drills, a few at a time, each as a subtest.
func (w *world) atOnce(drills []drill) {
	slots := make(chan struct{}, 6)
	var wait sync.WaitGroup
	for _, d := range drills {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if err := w.run(w.t.Context(), d); err != nil {
				w.t.Errorf("%s:\n%v", d, err)
			}
		})
	}
	wait.Wait()
	// Whether a step looks once more, or waits, is a matter of time: now and then
	// a point is not on the way. Nearly all must have been hit.
	if missed := w.seen.misses(); len(missed) > 2+len(drills)/10 {
		w.t.Errorf("points that nobody came by: %v", missed)
	} else if len(missed) > 0 {
		w.t.Logf("not on the way this time: %v", missed)
	}
	w.t.Logf("%d drills, %d processes died so far; the longest outage of an in-place credential was %v", len(drills), w.fleet.Died(), w.seen.longest().Round(time.Millisecond))
}

// in returns the same world, reporting to a subtest.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	return &sub
}

// wake continues the processes that the drill has stopped, and waits until
// each has seen that it came too late.
func (w *world) wake(ctx context.Context, d drill) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var faults []error
	for _, p := range d.points {
		if !w.fleet.Hit(d.credential, p) {
			continue
		}
		pid, at, err := w.fleet.Stopped(d.credential, p)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		faults = append(faults, w.fleet.Wake(ctx, pid, at, `"credential":"`+d.credential+`"`))
	}
	return errors.Join(faults...)
}

// showLogs prints the services' warnings and errors of a failed test.
func (w *world) showLogs() {
	files, _ := filepath.Glob(filepath.Join(w.fleet.Logs, "*.log"))
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var told []string
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, `"level":"WARN"`) || strings.Contains(line, `"level":"ERROR"`) || !strings.HasPrefix(line, "{") {
				told = append(told, strings.TrimSpace(line))
			}
		}
		w.t.Logf("%s: %d warnings, the last:\n%s", filepath.Base(file), len(told), strings.Join(told[max(0, len(told)-15):], "\n"))
	}
}

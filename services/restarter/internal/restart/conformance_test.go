package restart

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/consumer"
)

func TestMain(m *testing.M) { consumer.Main(m) }

const canary = "Zk3Qp9Lm2Xv7Bn4Tc8Rw1Ys6Hd5Gf0Ja"

func cause() Cause {
	return Cause{Credential: "shop", Rotation: "r1", Step: "restart", Consumer: "api", At: time.Now(), Changed: []string{"app", "app_b"}, Show: func(string) {}}
}

// fixture is one kind with a real consumer.
type fixture struct {
	kind     Kind
	restarts func() int // how many the consumer noticed
	sabotage func()     // afterwards it can be neither restarted nor checked
	names    string     // what the errors then name
}

// kinds is every kind; the suite below is what all of them keep.
var kinds = map[string]func(*testing.T) fixture{
	"process, signalled": func(t *testing.T) fixture {
		c := consumer.New(t).Start(t)
		return fixture{
			kind:     For(inventory.Restart{Process: &inventory.Process{PIDFile: c.PIDFile, Signal: "HUP"}}),
			restarts: func() int { return c.Count("hangup") },
			sabotage: func() { os.Remove(c.PIDFile) },
			names:    c.PIDFile,
		}
	},
	"process, replaced": func(t *testing.T) fixture {
		c := consumer.New(t).Start(t)
		p := &inventory.Process{PIDFile: c.PIDFile, Start: c.Argv(), Dir: c.Dir, Timeout: 20 * time.Second}
		return fixture{
			kind:     For(inventory.Restart{Process: p}),
			restarts: func() int { return c.Count("start") - 1 },
			sabotage: func() { p.Start[0] = filepath.Join(c.Dir, "no-such-program") },
			names:    "no-such-program",
		}
	},
	"command": func(t *testing.T) fixture {
		dir := t.TempDir()
		program := filepath.Join(dir, "reload")
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho $PAWL_CREDENTIAL/$PAWL_ROTATION/$PAWL_STEP/$PAWL_CONSUMER >> runs\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return fixture{
			kind: For(inventory.Restart{Command: &inventory.Command{Argv: []string{"./reload"}, Dir: dir, Timeout: 20 * time.Second}}),
			restarts: func() int {
				runs, _ := os.ReadFile(filepath.Join(dir, "runs"))
				return strings.Count(string(runs), "shop/r1/restart/api\n")
			},
			sabotage: func() { os.Remove(program) },
			names:    "reload",
		}
	},
	"http": func(t *testing.T) fixture {
		var calls atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.Method == "PUT" && r.URL.Path == "/reload" {
				calls.Add(1)
			}
		}))
		t.Cleanup(server.Close)
		address := strings.TrimPrefix(server.URL, "http://")
		return fixture{
			kind: For(inventory.Restart{HTTP: &inventory.HTTPCall{
				URL: "http://app:" + canary + "@" + address + "/reload", Method: "PUT", Timeout: time.Second}}),
			restarts: func() int { return int(calls.Load()) },
			sabotage: server.Close,
			names:    address,
		}
	},
	"pgbouncer":     aPgbouncer,
	"swarm_service": aSwarmService,
	"container":     aContainer,
	"compose":       aComposeService,
	"none":          func(*testing.T) fixture { return fixture{kind: For(inventory.Restart{})} },
}

func TestEveryKindConforms(t *testing.T) {
	for name, start := range kinds {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			if f.restarts == nil { // a consumer that nothing restarts
				finding, err := f.kind.Check(t.Context())
				if err := f.kind.Restart(t.Context(), cause()); err != nil {
					t.Error(err)
				}
				if err != nil || finding == "" {
					t.Errorf("check: %q, %v", finding, err)
				}
				return
			}
			conforms(t, f)
		})
	}
}

func conforms(t *testing.T, f fixture) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.kind.Restart(ended, cause()); err == nil {
		t.Error("a replica that wakes after its deadline must not succeed")
	}
	if finding, err := f.kind.Check(t.Context()); err != nil || finding == "" {
		t.Errorf("check of a sound consumer: %q, %v", finding, err)
	}
	if n := f.restarts(); n != 0 {
		t.Fatalf("an ended context or a check restarted the consumer %d times", n)
	}
	for _, attempt := range []string{"first", "redelivered"} {
		if err := f.kind.Restart(t.Context(), cause()); err != nil {
			t.Fatalf("%s attempt: %v", attempt, err)
		}
		consumer.Eventually(t, attempt+" attempt to reach the consumer", func() bool { return f.restarts() > 0 })
	}
	f.sabotage()
	_, checked := f.kind.Check(t.Context())
	for what, err := range map[string]error{"check": checked, "restart": f.kind.Restart(t.Context(), cause())} {
		switch {
		case err == nil:
			t.Errorf("%s of a broken consumer succeeded", what)
		case !strings.Contains(err.Error(), f.names):
			t.Errorf("%s does not name %s: %v", what, f.names, err)
		case strings.Contains(err.Error(), canary):
			t.Errorf("%s tells a secret", what)
		}
	}
}

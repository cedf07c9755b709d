package loginwatch

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/cmd/pawl/internal/pglog"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const configuration = `
data_dir: %q
watch_logins: {failures: 3, quiet: 1h, ignore: [10.9.9.9]}
clusters:
  main:
    admin: {user: pawl_admin, password_file: admin}
    nodes: {one: {host: 127.0.0.1, port: 5432}, two: {host: 127.0.0.1, port: 5433}}
credentials:
  shop: {cluster: main, nodes: [one], role: app, database: shop, strategy: alternating, publish: [dotenv: {path: .env, user: U, password: P}]}
  gone: {cluster: main, nodes: [one], role: gone, strategy: in-place, publish: [dotenv: {path: .env2, password: P}]}
  trusted: {cluster: main, nodes: [one], role: trusted, strategy: in-place, publish: [dotenv: {path: .env3, password: P}]}
  forbidden: {cluster: main, nodes: [one], role: forbidden, strategy: in-place, publish: [dotenv: {path: .env4, password: P}]}
  elsewhere: {cluster: main, nodes: [two], role: elsewhere, strategy: in-place, publish: [dotenv: {path: .env5, password: P}]}
`

func inventoryIn(t testing.TB, dir string) *inventory.Inventory {
	t.Helper()
	path := filepath.Join(dir, "pawl.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, configuration, filepath.Join(dir, "data")), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// written is a log that tests write themselves, to a clock that goes on.
type written struct {
	t    *testing.T
	path string
	n    int
}

func (l *written) failed(user, address string) {
	l.t.Helper()
	l.n++
	now := time.Now().UTC()
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, `{"timestamp":"%s UTC","user":"%s","dbname":"shop","pid":%d,"remote_host":"%s","remote_port":1,"session_id":"%x.%x","line_num":2,"ps":"authentication","session_start":"%s UTC","error_severity":"FATAL","state_code":"28P01","message":"password authentication failed","backend_type":"client backend"}`+"\n",
		now.Format("2006-01-02 15:04:05.000"), user, l.n, address, now.Unix(), l.n, now.Format("2006-01-02 15:04:05"))
}

// output is a log that can be read while it is written.
type output struct {
	mu sync.Mutex
	bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Buffer.Write(p)
}
func (o *output) String() string { o.mu.Lock(); defer o.mu.Unlock(); return o.Buffer.String() }

func newWatcher(t *testing.T, inv *inventory.Inventory, b *bus.Bus, logDir string, log *output) *Watcher {
	t.Helper()
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(Options{Inventory: inv, Cluster: "main", Node: "one", LogDir: logDir, FromStart: true, Bus: b, Log: slog.New(slog.NewTextHandler(log, nil)), Metrics: metrics, Every: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// start runs a watcher until the test ends or it is stopped.
func start(t *testing.T, w *Watcher) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// alerts reads what is on the subject, from the beginning.
type alerts struct {
	t    *testing.T
	bus  *bus.Bus
	from bus.Start
}

func listen(t *testing.T, b *bus.Bus) *alerts {
	t.Helper()
	return &alerts{t, b, bus.Start{}}
}

func (a *alerts) next() *pawlv1.Alert {
	a.t.Helper()
	until := time.Now().Add(time.Minute)
	for time.Now().Before(until) {
		var first *jetstream.RawStreamMsg
		var err error
		if a.from, err = a.bus.Scan(a.t.Context(), bus.StreamAlert, "pawl.alert.*", a.from, func(m *jetstream.RawStreamMsg) bool { first = m; return false }); err != nil {
			a.t.Fatal(err)
		}
		if first == nil {
			time.Sleep(5 * time.Millisecond) // nobody but the scheduler may listen there
			continue
		}
		alert := &pawlv1.Alert{}
		if err := bus.Decode(first.Header, first.Data, alert); err != nil {
			a.t.Fatal(err)
		}
		return alert
	}
	a.t.Fatal("no further alert")
	return nil
}

// about names an alert in one line.
func about(a *pawlv1.Alert) string {
	l := a.GetLabels()
	return fmt.Sprintf("%s %s/%s %s@%s %s %s", l["alertname"], l["cluster"], l["node"], l["pg_role"], l["address"], l["sqlstate"], l["credential"])
}

const child = "PAWL_LOGINWATCH"

// TestMain is also the watcher that TestKilledBetweenPublishAndSaveTellsTheSameAgain kills.
func TestMain(m *testing.M) {
	dir := os.Getenv(child)
	if dir == "" {
		os.Exit(m.Run())
	}
	inv, err := inventory.Load(filepath.Join(dir, "pawl.yaml"))
	if err != nil {
		panic(err)
	}
	seed, err := bus.LoadSeed(os.Getenv(child + "_SEED"))
	if err != nil {
		panic(err)
	}
	b, err := bus.Connect(bus.ConnectOptions{URL: os.Getenv(child + "_URL"), User: bus.SourceUser(inventory.LoginWatch), Seed: seed})
	if err != nil {
		panic(err)
	}
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		panic(err)
	}
	w, err := New(Options{Inventory: inv, Cluster: "main", Node: "one", LogDir: filepath.Join(dir, "log"), FromStart: true, Bus: b, Log: slog.New(slog.DiscardHandler), Metrics: metrics, Every: 20 * time.Millisecond})
	if err != nil {
		panic(err)
	}
	w.published = func() {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	fmt.Println(w.Run(context.Background()))
	os.Exit(1)
}

// TestKilledBetweenPublishAndSaveTellsTheSameAgain: one episode, which is decided upon
// once.
func TestKilledBetweenPublishAndSaveTellsTheSameAgain(t *testing.T) {
	dir := t.TempDir()
	inv := inventoryIn(t, dir)
	logDir := filepath.Join(dir, "log")
	if err := os.Mkdir(logDir, 0o700); err != nil {
		t.Fatal(err)
	}
	server := bustest.Start(t)
	log := &written{t: t, path: filepath.Join(logDir, "p.json")}
	for range 4 {
		log.failed("app", "10.0.0.9")
	}
	for range 2 { // the second, too, publishes and is killed before it saves
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), child+"="+dir, child+"_URL="+server.URL, child+"_SEED="+server.SeedFile(bus.SourceUser(inventory.LoginWatch)))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("the watcher ended with %v: %s", err, out)
		}
	}
	w := newWatcher(t, inv, server.Connect(t, bus.SourceUser(inventory.LoginWatch)), logDir, &output{})
	start(t, w)
	for range 3 {
		log.failed("app_b", "10.0.0.9")
	}
	all := listen(t, server.Connect(t, bus.Operator))
	first := all.next()
	next := all.next()
	for next.GetFingerprint() == first.GetFingerprint() && next.GetStartsAt().AsTime().Equal(first.GetStartsAt().AsTime()) {
		next = all.next()
	}
	if about(first) != "FailedLogins main/one app@10.0.0.9 28P01 shop" || about(next) != "FailedLogins main/one app_b@10.0.0.9 28P01 shop" {
		t.Errorf("published %s, then %s", about(first), about(next))
	}
}

func TestOneWatcherForEachNode(t *testing.T) {
	dir := t.TempDir()
	inv := inventoryIn(t, dir)
	b := bustest.Start(t).Connect(t, bus.SourceUser(inventory.LoginWatch))
	w := newWatcher(t, inv, b, dir, &output{})
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Inventory: inv, Cluster: "main", Node: "one", LogDir: dir, Bus: b, Log: slog.New(slog.DiscardHandler), Metrics: metrics}); err == nil || !strings.Contains(err.Error(), "is watched already") {
		t.Errorf("a second watcher: %v", err)
	}
	start(t, w)
}

func TestPositionWaitsForTheBus(t *testing.T) {
	dir := t.TempDir()
	inv := inventoryIn(t, dir)
	server := bustest.Start(t)
	log := &written{t: t, path: filepath.Join(dir, "p.json")}
	w := newWatcher(t, inv, server.Connect(t, bus.SourceUser(inventory.LoginWatch)), dir, &output{})
	defer w.follower.Close()
	w.o.Bus.NATS.Close() // it is away
	for range 3 {
		log.failed("app", "10.0.0.9")
	}
	for range 3 {
		if _, err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.saveIfDue(true); err != nil {
		t.Fatal(err)
	}
	if w.Ready() == nil {
		t.Error("a watcher without a bus says it is ready")
	}
	saved, _, err := load(w.dir)
	if err != nil || len(saved.Position.Files) != 0 {
		t.Fatalf("the position went on to %+v (%v)", saved.Position, err)
	}
	if err := w.lock.Close(); err != nil {
		t.Fatal(err)
	}
	// Its successor finds the bus, and loses nothing.
	start(t, newWatcher(t, inv, server.Connect(t, bus.SourceUser(inventory.LoginWatch)), dir, &output{}))
	if got := about(listen(t, server.Connect(t, bus.Operator)).next()); got != "FailedLogins main/one app@10.0.0.9 28P01 shop" {
		t.Errorf("published %s", got)
	}
}

func TestBusAwayForLongKeepsBoundedAlerts(t *testing.T) {
	dir := t.TempDir()
	log := &written{t: t, path: filepath.Join(dir, "p.json")}
	w := newWatcher(t, inventoryIn(t, dir), bustest.Start(t).Connect(t, bus.SourceUser(inventory.LoginWatch)), dir, &output{})
	defer w.follower.Close()
	w.o.Bus.NATS.Close()
	w.follower.Limit = 64 << 10
	for i := range 2 * 3 * maxUnpublished {
		log.failed("app", fmt.Sprint("10.0.", i/3/250, ".", i/3%250))
	}
	for range 200 {
		if _, err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(w.tracker.out); n < maxUnpublished || n > maxUnpublished+1000 {
		t.Errorf("%d alerts wait", n)
	}
}

// TestPortThatLooksLikeACodeWarnsOfNothing: what tells that a connection was received
// comes before the process has a title.
func TestPortThatLooksLikeACodeWarnsOfNothing(t *testing.T) {
	dir := t.TempDir()
	told := &output{}
	w := newWatcher(t, inventoryIn(t, dir), bustest.Start(t).Connect(t, bus.SourceUser(inventory.LoginWatch)), dir, told)
	defer w.follower.Close()
	w.record(pglog.Record{Address: "127.0.0.1", Backend: "not initialized", SQLState: "00000", Message: "connection received: host=127.0.0.1 port=53300"})
	if told.String() != "" {
		t.Errorf("told %s", told)
	}
	w.record(pglog.Record{Address: "127.0.0.1", Backend: "client backend", SQLState: "28P01", Message: "password authentication failed"})
	if !strings.Contains(told.String(), "update_process_title") {
		t.Error("of a server without titles nothing is told")
	}
}

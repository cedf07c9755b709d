package loginwatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"

	"pawl.dev/cmd/pawl/internal/pglog"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/telemetry"
)

// Subject is where the alerts go.
const Subject = "pawl.alert.logins"

// Options of New.
type Options struct {
	Inventory *inventory.Inventory
	Cluster   string
	Node      string
	LogDir    string // the server's log_directory
	FromStart bool   // where no position is saved: begin with the oldest file, not at the end
	Bus       *bus.Bus
	Log       *slog.Logger
	Metrics   *telemetry.Metrics
	Every     time.Duration // how often the log is looked at; default 500ms
}

// Watcher follows the log of one server.
type Watcher struct {
	o        Options
	dir      string
	lock     *flock.Flock
	follower *pglog.Follower
	classify *classifier
	tracker  *tracker
	logins   map[string]*inventory.Credential
	metrics  *instruments

	said      map[string]bool // what is worth one line, not one for each record
	dirty     bool            // something was read, or published, that is not saved
	savedAt   time.Time
	failing   atomic.Pointer[error] // of the last look at the log
	published func()                // called between publishing and saving; tests die there
}

// maxUnpublished is how many alerts may wait for the bus before the log waits too.
const maxUnpublished = 1000

// New opens the saved position, or begins one, and takes the lock on it: one
// watcher for each node.
func New(o Options) (*Watcher, error) {
	if o.Every == 0 {
		o.Every = 500 * time.Millisecond
	}
	w := &Watcher{o: o, dir: filepath.Join(o.Inventory.DataDir, "watch-logins", o.Cluster+"."+o.Node), logins: loginsOn(o.Inventory, o.Cluster, o.Node),
		classify: newClassifier(), tracker: newTracker(o.Cluster, o.Node, o.Inventory.WatchLogins), said: map[string]bool{}, published: func() {}}
	var err error
	if w.metrics, err = newInstruments(o.Metrics.Meter()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	w.lock = flock.New(filepath.Join(w.dir, "lock"))
	if held, err := w.lock.TryLock(); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	} else if !held {
		return nil, fmt.Errorf("node %s of cluster %s is watched already by a process that keeps its position in %s: stop that one", o.Node, o.Cluster, w.dir)
	}
	saved, ok, err := load(w.dir)
	if err != nil {
		return nil, errors.Join(err, w.lock.Close())
	}
	if !ok && !o.FromStart {
		saved.Position.Since = time.Now()
	}
	w.tracker.restore(saved)
	w.follower = pglog.Follow(o.LogDir, saved.Position)
	w.follower.Wanted, w.follower.Record, w.follower.Skipped = wanted, w.record, w.skipped
	if err := w.save(); err != nil { // so that a crash before the first record begins here again
		return nil, errors.Join(err, w.lock.Close())
	}
	return w, nil
}

// loginsOn returns the logins that credentials have on a node.
func loginsOn(inv *inventory.Inventory, cluster, node string) map[string]*inventory.Credential {
	logins := map[string]*inventory.Credential{}
	for _, c := range inv.Credentials {
		if c.Cluster.Name != cluster {
			continue
		}
		for _, member := range c.Members() {
			if member.Name == node {
				for _, login := range c.Logins() {
					logins[login] = c
				}
			}
		}
	}
	return logins
}

// Run watches until ctx ends. What goes wrong meanwhile is logged, and tried
// again for ever.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.lock.Close()
	defer w.follower.Close()
	tick := time.NewTicker(w.o.Every)
	defer tick.Stop()
	for {
		more, err := w.look(ctx)
		if err != nil {
			w.once(err.Error())
		}
		w.failing.Store(&err)
		if more && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return w.saveIfDue(true)
		case <-tick.C:
		}
	}
}

// Ready returns why the watcher does not watch, if it does not.
func (w *Watcher) Ready() error {
	if !w.o.Bus.NATS.IsConnected() {
		return errors.New("not connected to NATS")
	}
	if err := w.failing.Load(); err != nil && *err != nil {
		return *err
	}
	return nil
}

// look reads on, publishes what came of it, and saves the position once all of
// that is published.
func (w *Watcher) look(ctx context.Context) (more bool, err error) {
	if len(w.tracker.out) < maxUnpublished {
		now := time.Now() // whatever was logged until now is read
		if more, err = w.follower.Read(); err != nil {
			return false, err
		}
		w.metrics.behind.Store(w.follower.Behind())
		w.dirty = true
		if !more {
			w.tracker.tick(now)
		}
		if n := w.tracker.evicted; n > 0 {
			count(w.metrics.evicted, n)
			w.tracker.evicted = 0
		}
	}
	done, err := w.publish(ctx)
	if err != nil {
		return false, err
	}
	return more, w.saveIfDue(done)
}

// record takes one record of the log.
func (w *Watcher) record(r pglog.Record) {
	kind := w.classify.classify(r)
	if kind == "" {
		if r.Phase == "" && r.Backend == "client backend" && r.SQLState != "00000" { // a port, too, can have the digits of a code
			w.once("the log does not tell what a process was at: update_process_title must be on, as it is by default, or no failed login is seen")
		}
		return
	}
	credential := w.logins[r.User]
	role := ""
	if credential != nil {
		role = r.User
	}
	count(w.metrics.failures, 1, "kind", kind, "role", role)
	alert := alertOf[kind]
	if alert == "" || w.o.Inventory.WatchLogins.Ignore.Contains(r.Address) || credential == nil && kind != unknownRole {
		return
	}
	f := failure{key: key{alert, role, printable(r.Address)}, At: r.Time, SQLState: r.SQLState}
	if credential != nil {
		f.Credential = credential.Name
		if r.Database == credential.Database {
			f.Database = r.Database
		}
	}
	w.tracker.failed(f)
}

// printable makes a label of an address, which under log_hostname is a name that
// its owner chose.
func printable(address string) string {
	return strings.ToValidUTF8(address[:min(len(address), 253)], "\uFFFD")
}

func (w *Watcher) skipped(file string, err error) {
	reason := "malformed"
	if pglog.TooLong(err) {
		reason = "long"
	} else {
		w.once("a record of " + file + " " + err.Error() + ": it is skipped, as further ones will be (counted in pawl_login_log_skipped)")
	}
	count(w.metrics.skipped, 1, "reason", reason)
}

// once logs what is true again and again.
func (w *Watcher) once(text string) {
	if !w.said[text] && len(w.said) < 1000 {
		w.said[text] = true
		w.o.Log.Warn(text)
	}
}

// publish sends what waits, in order. It reports whether anything was sent.
func (w *Watcher) publish(ctx context.Context) (sent bool, err error) {
	for len(w.tracker.out) > 0 && ctx.Err() == nil {
		if !w.o.Bus.NATS.IsConnected() {
			return sent, nil // Ready says so
		}
		a := w.tracker.out[0]
		// One that is on its way is seen to its end, which Publish bounds.
		if err := w.o.Bus.Publish(context.WithoutCancel(ctx), Subject, a.alert, nil); err != nil {
			return sent, err
		}
		sent = true
		w.tracker.out = w.tracker.out[1:]
		labels := a.alert.GetLabels()
		count(w.metrics.alerts, 1, "alertname", labels["alertname"], "state", a.state)
		w.o.Log.Info("alert "+a.state, "alertname", labels["alertname"], "role", labels["pg_role"], "address", labels["address"], "count", a.alert.GetAnnotations()["count"])
	}
	return sent, nil
}

// saveIfDue saves at once where now says so, and else once a second; and never
// while an alert waits to be published.
func (w *Watcher) saveIfDue(now bool) error {
	if !w.dirty || len(w.tracker.out) > 0 || !now && time.Since(w.savedAt) < time.Second {
		return nil
	}
	if now {
		w.published()
	}
	return w.save()
}

func (w *Watcher) save() error {
	s := state{Version: 1, Position: w.follower.Position}
	w.tracker.save(&s)
	if err := s.save(w.dir); err != nil {
		return err
	}
	w.dirty, w.savedAt = false, time.Now()
	return nil
}

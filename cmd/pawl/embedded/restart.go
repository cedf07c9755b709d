package embedded

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"

	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
)

// ConditionStore is raised while the store refuses writes: the process is not ready.
const ConditionStore = "store"

// unlimited is NATS's own limit on the store. By default NATS takes 75 % of what is
// free when it starts. That figure is wrong as soon as anybody frees or uses space,
// and the limits of all streams together have to fit into it, so that Pawl would
// not start on a small disk. The limit is the disk: disk watches it.
const unlimited = math.MaxInt64 / 2

const (
	lookEvery    = time.Second            // at what NATS says of the store
	tryEvery     = 500 * time.Millisecond // to write, while the store has failed
	restartEvery = 2 * time.Second        // at most: a restart disconnects every client
)

// Server is the embedded NATS server. NATS keeps a stream whose write has failed
// unwritable until the server restarts, even when there is space again. So Server
// watches the store, and replaces the NATS server within the process once the disk
// can be written. Clients reconnect: those of the process through InProcessConn.
type Server struct {
	options  Options
	lock     *flock.Flock
	disk     *disk
	failures chan string // what NATS last said of a failed store
	lost     chan error  // that a restart found the store damaged, once
	stop     context.CancelFunc
	watching sync.WaitGroup

	mu      sync.Mutex
	running *run           // nil from the end of one to the start of the next
	nats    *server.Server // of running
	began   time.Time
	damaged error // what a restart found that must not be touched again
}

// supervise starts the NATS server and watches its store until Stop.
func supervise(ctx context.Context, o Options) (*Server, error) {
	s := &Server{options: o, failures: make(chan string, 1), lost: make(chan error, 1)}
	var err error
	if s.disk, err = newDisk(o); err != nil {
		return nil, err
	}
	now, err := spaceOf(s.disk.store)
	if err == nil {
		err = s.disk.giveBack(now) // a full disk needs its reserve to start on
	}
	if err != nil {
		return nil, err
	}
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.disk.guard()
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.watching.Go(func() { s.watch(watch) })
	s.watching.Go(func() { s.disk.measure(watch, s) })
	return s, nil
}

// newRun is a start to come.
func (s *Server) newRun() *run {
	inv := s.options.Inventory
	r := &run{log: s.options.Log, stop: func() {}, store: store.Store{Dir: storeDir(inv), Account: bus.Account, Manifest: provision.Record(inv), Spare: []string{bus.StreamLive}, Log: s.options.Log}}
	r.failed = func(line string) {
		r.broken.Store(true)
		if s.isRunning(r) { // not one that ends, whose failures are known
			s.tell(line)
		}
	}
	return r
}

func storeDir(inv *inventory.Inventory) string { return filepath.Join(inv.DataDir, "nats") }

// NATS returns the server that runs now, nil while it is being restarted.
func (s *Server) NATS() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nats
}

func (s *Server) isRunning(r *run) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running == r
}

// InProcessConn connects to the NATS server that runs now.
func (s *Server) InProcessConn() (net.Conn, error) {
	if running := s.NATS(); running != nil {
		return running.InProcessConn()
	}
	return nil, errors.New("the embedded NATS server is being restarted")
}

// Lost delivers an error if a restart within the process finds the store damaged: as
// at any other start, the process cannot go on then.
func (s *Server) Lost() <-chan error { return s.lost }

// Stop ends the server and waits for it.
func (s *Server) Stop() {
	s.stop()
	s.watching.Wait()
	s.end()
	_ = s.lock.Unlock() // the kernel does it anyway
}

func (s *Server) begin(ctx context.Context) error {
	r := s.newRun()
	if err := r.start(ctx, s.options); err != nil {
		r.close()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running, s.nats, s.began = r, r.NATS, time.Now()
	return nil
}

func (s *Server) end() {
	s.mu.Lock()
	r := s.running
	s.running, s.nats = nil, nil // nobody connects to it any more
	s.mu.Unlock()
	if r != nil {
		r.close()
	}
}

// tell takes what NATS says of a failed store. It may be called at any time.
func (s *Server) tell(line string) {
	select {
	case s.failures <- line:
	default: // one is known already
	}
}

// aboutClient matches what NATS logs about a client: its address comes first, and
// then what the client has called itself, before it was let in.
var aboutClient = regexp.MustCompile(`^\S+ - [a-z]+(_ws)?:\d+`)

// tellsOfFailure reports whether an error that NATS logs means that something of
// the store stays unwritable. A line about a client never does: whoever reaches the
// port could choose its text, and restart the server as often as they like.
func tellsOfFailure(line string) bool {
	if aboutClient.MatchString(line) {
		return false
	}
	line = strings.ToLower(line)
	for _, sign := range []string{"critical write error", "no space left on device", "will be disabled", "disabling jetstream"} {
		if strings.Contains(line, sign) {
			return true
		}
	}
	return false
}

// unwritable is what NATS itself knows to be wrong with the store, "" for nothing.
func (s *Server) unwritable() string {
	if running := s.NATS(); running != nil {
		return storeFault(running)
	}
	return "the server is not running"
}

func storeFault(running *server.Server) string {
	for _, e := range running.Healthz(&server.HealthzOptions{Details: true}).Errors {
		if e.Type == server.HealthzErrorJetStream || strings.Contains(e.Error, "write error") {
			return e.Error
		}
	}
	return ""
}

// watch restarts the server whenever its store has failed, until ctx ends.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		failure := ""
		select {
		case <-ctx.Done():
			return
		case failure = <-s.failures:
		case <-tick.C:
			failure = s.unwritable()
		}
		s.disk.guard()
		if failure != "" {
			s.restore(ctx, failure)
		}
	}
}

// restore waits until the disk can be written, and restarts the server. It returns
// when the store works, or ctx ends.
func (s *Server) restore(ctx context.Context, failure string) {
	log, said, since := s.options.Log, "", time.Now()
	for {
		err := s.restart(ctx)
		if err == nil {
			s.options.Conditions.Clear(ConditionStore, "")
			log.Warn("the store takes writes again: NATS was restarted within this process", "after", time.Since(since).Round(time.Millisecond).String())
			return
		}
		if ctx.Err() != nil {
			return
		}
		text := fmt.Sprintf("the store in %s refuses writes (%s). Pawl restarts it within 10 s once the disk can be written: %v. Fix: docs/runbooks/disk.md", storeDir(s.options.Inventory), failure, err)
		s.options.Conditions.Raise(condition.Condition{Name: ConditionStore, Failing: true, Text: text})
		if said != err.Error() {
			said = err.Error()
			log.Error(text)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(tryEvery):
		}
		s.disk.guard()
	}
}

// restart replaces the NATS server if the disk can be written. It examines the store
// as every start does.
func (s *Server) restart(ctx context.Context) error {
	if s.damaged != nil {
		return s.damaged
	}
	if err := s.disk.writable(); err != nil {
		return err
	}
	s.mu.Lock()
	early := time.Until(s.began.Add(restartEvery))
	s.mu.Unlock()
	if early > 0 {
		return errors.New("it was restarted only just now")
	}
	s.end()
	select {
	case <-s.failures: // known by now
	default:
	}
	err := s.begin(ctx)
	if damaged := new(store.DamagedError); errors.As(err, &damaged) {
		s.damaged = err // set aside for a person to look at
		s.lost <- err
	}
	if err != nil {
		return fmt.Errorf("the restart failed: %w", err)
	}
	return nil
}

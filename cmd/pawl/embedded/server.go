// Package embedded runs NATS with JetStream inside the process: file storage,
// every write synced, the same users and permissions as a server of your own would
// have. A store that lost something is not opened.
package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"go.opentelemetry.io/otel/metric"

	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
)

// Options of Start.
type Options struct {
	Inventory  *inventory.Inventory
	Log        *slog.Logger
	AckWait    time.Duration  // default: bus.DefaultAckWait
	Conditions *condition.Set // where what is wrong with the store and its disk is told; may be nil
	Meter      metric.Meter   // of the store's figures; nil: none are measured
	Restoring  bool           // by `pawl restore`: others may not start what is half restored
}

// Start examines the store, starts the server on the inventory's listen address, and
// makes the streams and consumers that are new. If the store has lost something, the
// error is a *store.DamagedError. Two servers never share a data directory: the second
// one is refused. A store that fails later is opened again in place, once it can be
// written: see Server.
func Start(ctx context.Context, o Options) (*Server, error) {
	if err := provision.CheckRestored(o.Inventory); err != nil && !o.Restoring {
		return nil, err
	}
	dir := o.Inventory.DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	lock := flock.New(filepath.Join(dir, "lock"))
	held, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("data_dir %s: %w", dir, err)
	}
	if !held {
		return nil, fmt.Errorf("data_dir %s is in use by another `pawl up`: stop that one, or name another data_dir", dir)
	}
	s, err := supervise(ctx, o)
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	s.lock = lock
	return s, nil
}

// run is one start of the NATS server.
type run struct {
	NATS   *server.Server
	store  store.Store
	log    *slog.Logger
	stop   func()            // ends what keeps the manifest
	failed func(line string) // told what the server says of a store that failed
	broken atomic.Bool       // it has said so
}

func (s *run) start(ctx context.Context, o Options) error {
	options, err := configure(o.Inventory, s.store.Dir)
	if err != nil {
		return err
	}
	options.SyncAlways = !o.Restoring // which syncs all of it in the end
	if err := decrypt(s.store, o.Inventory); err != nil {
		return err
	}
	if err := s.open(options); err != nil {
		return err
	}
	if err := s.provision(ctx, o); err != nil {
		return err
	}
	if err := s.writeManifest(); err != nil {
		return err
	}
	if err := s.listen(o.Inventory.NATS.Listen); err != nil {
		return err
	}
	keep, stop := context.WithCancel(context.Background())
	kept := make(chan struct{})
	s.stop = func() { stop(); <-kept }
	go func() {
		defer close(kept)
		s.keepManifest(keep, o.Conditions)
	}()
	return nil
}

// open starts the server on the store, and compares what it recovered with what was
// there. Until that is done nobody is let in.
func (s *run) open(options *server.Options) error {
	opened, err := s.store.Open()
	if err != nil {
		return err
	}
	options.DontListen = true
	if s.NATS, err = server.NewServer(options); err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	s.NATS.SetLoggerV2(natsLog{s.log, s.failed}, false, false, false)
	s.NATS.Start()
	if !s.NATS.ReadyForConnections(15 * time.Second) {
		return errors.New("embedded NATS did not start within 15 s: see its warnings above")
	}
	found, err := s.streams()
	if err != nil {
		return err
	}
	if lost := opened.Compare(found); len(lost) > 0 {
		s.end()
		return opened.Reject(lost)
	}
	return opened.Confirm()
}

func (s *run) provision(ctx context.Context, o Options) error {
	seed, err := bus.LoadSeed(bus.SeedFile(o.Inventory, bus.Provisioner))
	if err != nil {
		return err
	}
	b, err := bus.Connect(bus.ConnectOptions{User: bus.Provisioner, Seed: seed, Server: s.NATS})
	if err != nil {
		return err
	}
	defer b.NATS.Close()
	if err := provision.TellAltered(ctx, b, o.Log); err != nil {
		return err
	}
	return bus.Provision(ctx, b.JetStream, bus.Settings{Replicas: 1, AckWait: cmp.Or(o.AckWait, bus.DefaultAckWait)})
}

// listen lets clients in.
func (s *run) listen(address string) error {
	done := make(chan struct{})
	s.NATS.AcceptLoop(done)
	<-done
	if s.NATS.Addr() == nil {
		return fmt.Errorf("embedded NATS does not listen on %s: is the address taken?", address)
	}
	return nil
}

// close records what was acknowledged last, ends the server and waits for it.
func (s *run) close() {
	s.stop()
	if s.NATS != nil {
		if err := s.writeManifest(); err != nil {
			s.log.Error("what was acknowledged last is not recorded", "error", err)
		}
	}
	s.end()
}

// end waits for the end of the server, however long it takes: two servers on one
// store would destroy it.
func (s *run) end() {
	if s.NATS != nil {
		s.NATS.Shutdown()
		s.NATS.WaitForShutdown()
		s.NATS = nil
	}
}

func configure(inv *inventory.Inventory, store string) (*server.Options, error) {
	host, port, err := net.SplitHostPort(inv.NATS.Listen)
	if err != nil {
		return nil, fmt.Errorf("nats.listen: %w", err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("nats.listen: port %q: %w", port, err)
	}
	// The server would only say "address already in use" in its own log.
	if probe, err := net.Listen("tcp", inv.NATS.Listen); err != nil {
		return nil, fmt.Errorf("nats.listen: %w: name a free address in pawl.yaml, such as nats: {listen: \"127.0.0.1:4333\"}", err)
	} else if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("nats.listen: %w", err)
	}
	options := &server.Options{}
	accounts, err := bus.Accounts(inv)
	if err != nil {
		return nil, err
	}
	if err := options.ProcessConfigString(accounts); err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	options.ServerName, options.Host, options.Port, options.NoSigs = "pawl", host, number, true
	options.JetStream, options.StoreDir, options.SyncAlways = true, store, true
	options.MaxPayload, options.JetStreamMaxStore = 1<<20, unlimited
	return options, nil
}

// natsLog hands the server's warnings and errors to slog, and to failed those that
// tell of a store that failed.
type natsLog struct {
	log    *slog.Logger
	failed func(line string)
}

func (l natsLog) say(level slog.Level, format string, args []any) {
	l.log.Log(context.Background(), level, "nats: "+fmt.Sprintf(format, args...))
}
func (l natsLog) Noticef(format string, args ...any) { l.say(slog.LevelDebug, format, args) }
func (l natsLog) Debugf(format string, args ...any)  {}
func (l natsLog) Tracef(format string, args ...any)  {}
func (l natsLog) Warnf(format string, args ...any)   { l.say(slog.LevelWarn, format, args) }
func (l natsLog) Errorf(format string, args ...any) {
	l.say(slog.LevelError, format, args)
	if line := fmt.Sprintf(format, args...); tellsOfFailure(line) {
		l.failed(line)
	}
}
func (l natsLog) Fatalf(format string, args ...any) { l.say(slog.LevelError, format, args) }

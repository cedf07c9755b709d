// Package embedded runs NATS with JetStream inside the process: file storage,
// every write synced, encrypted at rest, the same users and permissions as a
// server of your own would have.
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
	"slices"
	"strconv"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// Server is a running server.
type Server struct {
	NATS *server.Server
	lock *flock.Flock
}

// Options of Start.
type Options struct {
	Inventory *inventory.Inventory
	Log       *slog.Logger
	AckWait   time.Duration // default: bus.DefaultAckWait
}

// Start starts the server on the inventory's listen address, and makes the
// streams and consumers that are missing. Two servers never share a data
// directory: the second one is refused.
func Start(ctx context.Context, o Options) (*Server, error) {
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
	s := &Server{lock: lock}
	if err := s.start(ctx, o); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, o Options) error {
	store := filepath.Join(o.Inventory.DataDir, "nats")
	key, err := storeKey(o.Inventory, store)
	if err != nil {
		return err
	}
	options, err := configure(o.Inventory, store, key)
	if err != nil {
		return err
	}
	if s.NATS, err = server.NewServer(options); err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	s.NATS.SetLoggerV2(natsLog{o.Log}, false, false, false)
	s.NATS.Start()
	if !s.NATS.ReadyForConnections(15 * time.Second) {
		return fmt.Errorf("embedded NATS did not start on %s within 15 s: is the address taken?", o.Inventory.NATS.Listen)
	}
	if err := s.recovered(store); err != nil {
		return err
	}
	seed, err := bus.LoadSeed(bus.SeedFile(o.Inventory, bus.Provisioner))
	if err != nil {
		return err
	}
	b, err := bus.Connect(bus.ConnectOptions{User: bus.Provisioner, Seed: seed, Server: s.NATS})
	if err != nil {
		return err
	}
	defer b.NATS.Close()
	return bus.Provision(ctx, b.JetStream, bus.Settings{Replicas: 1, AckWait: cmp.Or(o.AckWait, bus.DefaultAckWait)})
}

// Stop ends the server and waits for it.
func (s *Server) Stop() {
	if s.NATS != nil {
		s.NATS.Shutdown()
		s.NATS.WaitForShutdown()
	}
	_ = s.lock.Unlock() // the kernel does it anyway
}

func configure(inv *inventory.Inventory, store string, key []byte) (*server.Options, error) {
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
	options.JetStreamCipher, options.JetStreamKey = server.ChaCha, string(key)
	options.MaxPayload = 1 << 20
	return options, nil
}

// recovered compares the streams on disk with those the server found, before
// anything is created: creating a stream that could not be decrypted deletes it.
func (s *Server) recovered(store string) error {
	account, err := s.NATS.LookupAccount(bus.Account)
	if err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	onDisk, err := os.ReadDir(filepath.Join(store, "jetstream", account.Name, "streams"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	found, err := s.NATS.JszAccount(&server.JSzOptions{Account: account.Name, Streams: true})
	if err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	var missing []string
	for _, d := range onDisk {
		if slices.ContainsFunc(found.Streams, func(s server.StreamDetail) bool { return s.Name == d.Name() }) {
			continue
		}
		if path := filepath.Join(store, "jetstream", account.Name, "streams", d.Name()); unfinished(path) {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("embedded NATS: %w", err)
			}
			continue
		}
		missing = append(missing, d.Name())
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("embedded NATS could not read the streams %v in %s: nothing was changed; restore the store or its key before starting", missing, store)
	}
	return nil
}

// unfinished reports whether a stream's directory is what a server leaves that
// was killed while it created the stream: no message was ever stored there.
func unfinished(stream string) bool {
	blocks, err := filepath.Glob(filepath.Join(stream, "msgs", "*.blk"))
	for _, b := range blocks {
		if info, statErr := os.Stat(b); statErr != nil || info.Size() > 0 {
			return false
		}
	}
	return err == nil
}

// natsLog hands the server's warnings and errors to slog.
type natsLog struct{ log *slog.Logger }

func (l natsLog) say(level slog.Level, format string, args []any) {
	l.log.Log(context.Background(), level, "nats: "+fmt.Sprintf(format, args...))
}
func (l natsLog) Noticef(format string, args ...any) { l.say(slog.LevelDebug, format, args) }
func (l natsLog) Debugf(format string, args ...any)  {}
func (l natsLog) Tracef(format string, args ...any)  {}
func (l natsLog) Warnf(format string, args ...any)   { l.say(slog.LevelWarn, format, args) }
func (l natsLog) Errorf(format string, args ...any)  { l.say(slog.LevelError, format, args) }
func (l natsLog) Fatalf(format string, args ...any)  { l.say(slog.LevelError, format, args) }

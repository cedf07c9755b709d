// Package provision makes Pawl's streams and consumers on a NATS of one's own.
// Nobody else makes any there.
package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// Options of Server.
type Options struct {
	Inventory *inventory.Inventory
	Log       *slog.Logger
	Wait      time.Duration // how long the server may take to be there; default: DefaultWait
	AckWait   time.Duration // default: bus.DefaultAckWait
}

// DefaultWait is long enough for three servers to start and to elect.
const DefaultWait = time.Minute

// errNoCluster is the refusal of three replicas by a server that is alone.
const errNoCluster jetstream.ErrorCode = 10074

// errLost means that a server has not what was made on it.
var errLost = errors.New("was made here and is not here any more")

// Server makes what is missing on the server that the inventory names, and
// brings the rest up to date; it may run beside services at work. Idempotent.
//
// It makes no stream a second time: a server that does not find what it stored,
// having another volume or another key than before, deletes it for good when a
// stream of that name is made.
func Server(ctx context.Context, o Options) error {
	if err := CheckRestored(o.Inventory); err != nil {
		return err
	}
	wait := cmp.Or(o.Wait, DefaultWait)
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	connect, err := bus.For(o.Inventory, bus.Provisioner)
	if err != nil {
		return err
	}
	connect.Log = o.Log
	settings := bus.Settings{Replicas: o.Inventory.NATS.Replicas, AckWait: cmp.Or(o.AckWait, bus.DefaultAckWait)}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := once(limited, connect, Record(o.Inventory), settings, o.Log)
		if err == nil || final(err) {
			return err
		}
		if last != nil && limited.Err() != nil {
			err = last // this try was cut short, and says no more than that
		}
		last = err
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("nats.url: %s could not be provisioned within %v: %w", connect.URL, wait, err)
		case <-tick.C: // a cluster that is starting, or electing
		}
	}
}

// final reports whether it makes no sense to wait. Streams that are lost may be
// those of a cluster that is not yet itself again.
func final(err error) bool {
	refused := new(jetstream.APIError)
	return errors.Is(err, bus.ErrNotPermitted) || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) ||
		errors.As(err, &refused) && refused.ErrorCode == errNoCluster
}

func once(ctx context.Context, connect bus.ConnectOptions, record string, settings bus.Settings, log *slog.Logger) error {
	b, err := bus.Connect(connect)
	if err != nil {
		return err
	}
	defer b.NATS.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second) // an election in the middle
	defer cancel()
	made, err := store.ReadManifest(record)
	if err != nil {
		return err
	}
	var there []string
	names := b.JetStream.StreamNames(ctx)
	for name := range names.Name() {
		there = append(there, name)
	}
	if err := names.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		return fmt.Errorf("list the streams: %w", err)
	}
	lost := slices.DeleteFunc(made.Names(), func(name string) bool { return slices.Contains(there, name) })
	if len(lost) > 0 {
		return fmt.Errorf("%s on %s %w: nothing was made in its place. Fix: give the server back its volume, or restore a backup. Without either, delete %s to begin again, and adopt every credential again",
			listed(lost), b.NATS.ConnectedUrlRedacted(), errLost, record)
	}
	if err := made.Write(record); err != nil {
		return err // before anything is made
	}
	if err := TellAltered(ctx, b, log); err != nil {
		return err
	}
	if err := bus.Provision(ctx, b.JetStream, settings); err != nil {
		if refused := new(jetstream.APIError); errors.As(err, &refused) && refused.ErrorCode == errNoCluster {
			return fmt.Errorf("nats.replicas: %d, but the server belongs to no cluster: %w", settings.Replicas, err)
		}
		return err
	}
	made = nil
	for _, s := range bus.Streams(settings) {
		made = append(made, store.Known{Name: s.Name})
	}
	return made.Write(record)
}

// TellAltered logs what provisioning is about to set back.
func TellAltered(ctx context.Context, b *bus.Bus, log *slog.Logger) error {
	told, err := bus.Alterations(ctx, b.JetStream)
	for _, what := range told {
		log.Error(what + "; it is set back. See docs/runbooks/altered.md")
	}
	return err
}

// listed names a few of them.
func listed(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:2], ", "), len(names)-2)
	}
	return strings.Join(names, ", ")
}

// Record is the file that tells which streams have been made.
func Record(inv *inventory.Inventory) string { return filepath.Join(inv.DataDir, "streams-made") }

// Restoring is the file that lies in data_dir while a restore is under way. What
// is on the server, or in data_dir, is then not whole.
func Restoring(inv *inventory.Inventory) string { return filepath.Join(inv.DataDir, "restoring") }

// CheckRestored returns an error if a restore was begun and has not ended.
func CheckRestored(inv *inventory.Inventory) error {
	_, err := os.Stat(Restoring(inv))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("data_dir: %w", err)
	}
	return fmt.Errorf("%s: `pawl restore` was begun and did not end, so the streams are not whole. Run it again: it begins from the start", Restoring(inv))
}

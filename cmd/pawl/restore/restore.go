// Package restore makes the streams of Pawl again from a backup, where there are none.
package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/gofrs/flock"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/cmd/pawl/backup"
	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Options of Restore.
type Options struct {
	Inventory *inventory.Inventory
	File      string
	Identity  string // a file; default: backup.IdentityFile
	WithKeys  bool   // write the keys of the backup that are missing here
	Log       *slog.Logger
}

// Dropped is a request that waited when the backup was taken. It was answered since,
// or its requester has given up: nobody does now what was wanted then.
type Dropped struct {
	Subject string    `json:"subject"`
	At      time.Time `json:"at"`
	What    string    `json:"what"`
}

// Result is what a restore has made.
type Result struct {
	backup.Head
	Messages uint64    `json:"messages"`
	Keys     []string  `json:"keys"` // files that were written
	Dropped  []Dropped `json:"dropped"`
}

// ErrUsage is wrapped by errors after which nothing was touched.
var ErrUsage = errors.New("nothing was changed")

// Run makes the streams from a backup, where there are none.
func Run(ctx context.Context, o Options) (r Result, err error) {
	if o.Identity == "" {
		o.Identity = backup.IdentityFile(o.Inventory)
	}
	identities, err := backup.LoadIdentities(o.Identity)
	if err != nil {
		return r, fmt.Errorf("%w; %w", err, ErrUsage)
	}
	file, err := os.Open(o.File)
	if err != nil {
		return r, fmt.Errorf("%w; %w", err, ErrUsage)
	}
	defer file.Close()
	t := &restoring{o: o, file: file, identities: identities}
	if t.manifest, err = t.read(func(string, io.Reader) error { return nil }); err != nil { // all of it is read before anything is touched
		return r, fmt.Errorf("%s: %w; %w", o.File, err, ErrUsage)
	}
	r.Head = t.manifest.Head
	if err := t.checkWhole(); err != nil {
		return r, fmt.Errorf("%s: %w; %w", o.File, err, ErrUsage)
	}
	if err := os.MkdirAll(o.Inventory.DataDir, 0o700); err != nil {
		return r, fmt.Errorf("data_dir: %w; %w", err, ErrUsage)
	}
	if o.WithKeys {
		if r.Keys, err = t.keys(); err != nil {
			return r, err
		}
	}
	if o.Inventory.NATS.URL == "" {
		err = t.embedded(ctx)
	} else {
		err = t.own(ctx)
	}
	r.Messages, r.Dropped = t.messages, t.dropped
	return r, err
}

// restoring is one restore under way.
type restoring struct {
	o          Options
	file       *os.File
	identities []age.Identity
	manifest   *backup.Manifest
	bus        *bus.Bus // as the provisioner
	messages   uint64
	dropped    []Dropped
}

// read reads the file from its start.
func (t *restoring) read(visit func(name string, content io.Reader) error) (*backup.Manifest, error) {
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	r, err := backup.Open(t.file, t.identities)
	if err != nil {
		return nil, err
	}
	return r.Parts(visit)
}

func (t *restoring) checkWhole() error {
	for _, name := range bus.BackedUp {
		if !slices.ContainsFunc(t.manifest.Streams, func(s backup.Stream) bool { return s.Name == name }) {
			return fmt.Errorf("it has no stream %s", name)
		}
	}
	if t.o.WithKeys && t.manifest.Keys == nil {
		return errors.New("it holds no keys: it was made without --with-keys")
	}
	return nil
}

func (t *restoring) keys() (written []string, err error) {
	_, err = t.read(func(name string, content io.Reader) error {
		if name != backup.KeysPart {
			return nil
		}
		written, err = backup.RestoreKeys(t.o.Inventory, content)
		return err
	})
	return written, err
}

// embedded restores into data_dir. The marker lies there before the store is begun,
// and until it is whole.
func (t *restoring) embedded(ctx context.Context) error {
	inv := t.o.Inventory
	if _, err := bus.Accounts(inv); err != nil { // the keys of its users, some of which are in data_dir
		return fmt.Errorf("%w; %w", err, ErrUsage)
	}
	folder := filepath.Join(inv.DataDir, "nats")
	ours := filepath.Join(folder, "restoring") // lies in what a restore has begun, and in no other store
	lock := flock.New(filepath.Join(inv.DataDir, "lock"))
	if held, err := lock.TryLock(); err != nil {
		return fmt.Errorf("data_dir %s: %w; %w", inv.DataDir, err, ErrUsage)
	} else if !held {
		return fmt.Errorf("data_dir %s is in use by `pawl up`, or by another restore: end that one; %w", inv.DataDir, ErrUsage)
	}
	defer lock.Unlock()
	if entries, err := os.ReadDir(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w; %w", err, ErrUsage)
	} else if _, err := os.Lstat(ours); len(entries) > 0 && err != nil {
		return fmt.Errorf("%s holds a store: a restore is only into an empty one. Stop `pawl up`, and move that folder aside (or, if it is the store that you want, and %s lies there from a restore that you gave up, delete that file); %w",
			folder, provision.Restoring(inv), ErrUsage)
	}
	if err := mark(provision.Restoring(inv)); err != nil {
		return err
	}
	// Whatever lies there now, this command has begun it; and what a store had that is
	// lost must not be looked for in the restored one.
	for _, old := range []string{folder, provision.Record(inv)} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return err
	}
	if err := mark(ours); err != nil {
		return err
	}
	if err := lock.Unlock(); err != nil { // the server takes it
		return err
	}
	err := t.intoEmbedded(ctx)
	if err == nil {
		err = os.Remove(ours)
	}
	if err == nil {
		err = store.SyncAll(folder)
	}
	if err == nil {
		return os.Remove(provision.Restoring(inv))
	}
	return fmt.Errorf("%w. The streams are not whole, and `pawl up` does not start; run the restore again", err)
}

func (t *restoring) intoEmbedded(ctx context.Context) error {
	server, err := embedded.Start(ctx, embedded.Options{Inventory: t.o.Inventory, Log: t.o.Log, Restoring: true})
	if err != nil {
		return err
	}
	defer server.Stop()
	if t.bus, err = join(t.o.Inventory, bus.Provisioner, server); err != nil {
		return err
	}
	defer t.bus.NATS.Close()
	if err := t.clear(ctx); err != nil { // the empty ones that were made just now
		return err
	}
	return t.streams(ctx, server)
}

// own restores into a server of one's own, where no stream of Pawl may be.
func (t *restoring) own(ctx context.Context) (err error) {
	inv := t.o.Inventory
	if t.bus, err = join(inv, bus.Provisioner, nil); err != nil {
		return fmt.Errorf("%w; %w", err, ErrUsage)
	}
	defer t.bus.NATS.Close()
	there, err := t.present(ctx)
	if err != nil {
		return fmt.Errorf("%w; %w", err, ErrUsage)
	}
	if len(there) > 0 && provision.CheckRestored(inv) == nil {
		return fmt.Errorf("%s has the streams %s: a restore is only into an empty server. Stop every service, and delete those streams or give the server an empty store; %w",
			t.bus.NATS.ConnectedUrlRedacted(), strings.Join(there, ", "), ErrUsage)
	}
	if err := mark(provision.Restoring(inv)); err != nil {
		return err
	}
	if err = t.clear(ctx); err == nil {
		err = t.streams(ctx, nil)
	}
	if err != nil {
		return fmt.Errorf("%w. The streams are not whole: start no service, and run the restore again", err)
	}
	for _, old := range []string{provision.Record(inv), provision.Restoring(inv)} {
		if err := os.RemoveAll(old); err != nil {
			return err
		}
	}
	return provision.Server(ctx, provision.Options{Inventory: inv, Log: t.o.Log}) // which remembers what was made there
}

func join(inv *inventory.Inventory, user string, server *embedded.Server) (*bus.Bus, error) {
	o, err := bus.For(inv, user)
	if err != nil {
		return nil, err
	}
	if server != nil {
		o.Server = server
	}
	return bus.Connect(o)
}

func mark(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// present lists the streams of Pawl that are there.
func (t *restoring) present(ctx context.Context) (there []string, err error) {
	names := t.bus.JetStream.StreamNames(ctx)
	for name := range names.Name() {
		if slices.ContainsFunc(bus.Streams(bus.Settings{}), func(s jetstream.StreamConfig) bool { return s.Name == name }) {
			there = append(there, name)
		}
	}
	if err := names.Err(); err != nil && !errors.Is(err, jetstream.ErrEndOfData) {
		return nil, fmt.Errorf("list the streams: %w", err)
	}
	return there, nil
}

func (t *restoring) clear(ctx context.Context) error {
	there, err := t.present(ctx)
	for _, name := range there {
		if err == nil {
			err = t.bus.JetStream.DeleteStream(ctx, name)
		}
	}
	return err
}

// streams restores all of them, the log last: no service does anything without it.
func (t *restoring) streams(ctx context.Context, server *embedded.Server) error {
	m := bus.RestoreMark{At: time.Now(), Backup: t.manifest.At, Log: bus.Everything, Notes: bus.Everything}
	for _, isLog := range []bool{false, true} {
		_, err := t.read(func(name string, content io.Reader) error {
			i := slices.IndexFunc(t.manifest.Streams, func(s backup.Stream) bool { return s.Name == name })
			if i < 0 || (name == bus.StreamLog) != isLog {
				return nil
			}
			return t.stream(ctx, t.manifest.Streams[i], content, m)
		})
		if err != nil {
			return err
		}
	}
	settings := bus.Settings{Replicas: t.o.Inventory.NATS.Replicas, AckWait: bus.DefaultAckWait}
	if err := bus.ProvisionRestored(ctx, t.bus.JetStream, settings); err != nil {
		return err
	}
	for _, name := range []string{bus.StreamRequest, bus.StreamAsked, bus.StreamEmergency} {
		if err := t.drop(ctx, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	var err error
	if m.Notes, err = t.last(ctx, bus.StreamNote); err != nil {
		return err
	}
	if m.Log, err = t.last(ctx, bus.StreamLog); err != nil {
		return err
	}
	if err := bus.Mark(ctx, t.bus.JetStream, m); err != nil {
		return err
	}
	return t.note(ctx, server)
}

// stream restores one, and looks whether all of it is there.
func (t *restoring) stream(ctx context.Context, s backup.Stream, content io.Reader, m bus.RestoreMark) (err error) {
	var config map[string]any
	decoder := json.NewDecoder(strings.NewReader(string(s.Config)))
	decoder.UseNumber()
	if err := decoder.Decode(&config); err != nil {
		return err
	}
	config["num_replicas"] = max(1, t.o.Inventory.NATS.Replicas)
	delete(config, "metadata")
	delete(config, "max_bytes") // of another disk; it is set when the stream is provisioned
	if s.Name == bus.StreamLog {
		config["metadata"] = m.AddTo(nil) // so that no service trusts it for a moment
	}
	if s.Config, err = json.Marshal(config); err != nil {
		return err
	}
	if err := s.Restore(ctx, t.bus, content); err != nil {
		return err
	}
	last, err := t.last(ctx, s.Name)
	if err == nil && last < s.Last {
		err = fmt.Errorf("the server has it up to message %d of %d", last, s.Last)
	}
	return err
}

func (t *restoring) info(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	stream, err := t.bus.JetStream.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", name, err)
	}
	return stream.CachedInfo(), nil
}

func (t *restoring) last(ctx context.Context, name string) (uint64, error) {
	info, err := t.info(ctx, name)
	if err != nil {
		return 0, err
	}
	return info.State.LastSeq, nil
}

// drop lists the requests that waited, and removes them. Their numbers stay taken.
func (t *restoring) drop(ctx context.Context, name string) error {
	stream, err := t.bus.JetStream.Stream(ctx, name)
	if err != nil {
		return err
	}
	state := stream.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		request := &pawlv1.Request{}
		what := "cannot be decoded"
		if bus.DecodeRequest(m.Header, m.Data, request) == nil {
			action := strings.ToLower(strings.TrimPrefix(request.GetAction().String(), "ACTION_"))
			what = strings.TrimSpace(fmt.Sprintf("%s by %q: %s", strings.TrimPrefix(action, "unspecified"), request.GetRequestedBy(), request.GetReason()))
		}
		t.dropped = append(t.dropped, Dropped{m.Subject, m.Time, what})
	}
	return stream.Purge(ctx)
}

// note tells the audit trail.
func (t *restoring) note(ctx context.Context, server *embedded.Server) error {
	for _, s := range t.manifest.Streams {
		t.messages += s.Messages
	}
	operator, err := join(t.o.Inventory, bus.Operator, server)
	if err != nil {
		return err
	}
	defer operator.NATS.Close()
	return operator.Publish(ctx, bus.NoteSubject(bus.Operator), &pawlv1.Note{Kind: "restored", Text: fmt.Sprintf("the streams were restored from a backup of %s, made by Pawl %s; %d waiting requests were dropped",
		t.manifest.At.Format(time.RFC3339), t.manifest.Version, len(t.dropped))}, nil)
}

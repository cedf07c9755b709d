package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/cmd/pawl/backup"
	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// messages is how many are in the log, and were in the sealed store.
const messages = 12

// installation is a pawl.yaml without credentials, and its keys.
type installation struct {
	t   *testing.T
	inv *inventory.Inventory
}

func install(t *testing.T) installation {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	file := filepath.Join(dir, "pawl.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "nats: {listen: %q}\n", l.Addr()), 0o600); err != nil {
		t.Fatal(err)
	}
	i := installation{t: t}
	if i.inv, err = inventory.Load(file); err == nil {
		_, err = embedded.CreateKeys(i.inv)
	}
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// up runs work while the server is up.
func (i installation) up(work func(join func(user string) *bus.Bus)) {
	i.t.Helper()
	server, err := embedded.Start(i.t.Context(), embedded.Options{Inventory: i.inv, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		i.t.Fatal(err)
	}
	defer server.Stop()
	work(func(user string) *bus.Bus {
		b, err := join(i.inv, user, server)
		if err != nil {
			i.t.Fatal(err)
		}
		i.t.Cleanup(b.NATS.Close)
		return b
	})
}

// fill has something in every stream, erased and replaced messages among it.
func (i installation) fill(join func(user string) *bus.Bus) {
	i.t.Helper()
	ctx := i.t.Context()
	must := func(err error) {
		i.t.Helper()
		if err != nil {
			i.t.Fatal(err)
		}
	}
	scheduler, rotator, auditor, operator := join(saga.Scheduler), join(saga.DBRotator), join(saga.Auditor), join(bus.Operator)
	for n := range messages {
		_, err := scheduler.Append(ctx, fmt.Sprintf("c%d", n), "r1", saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Role: "app", Flow: saga.Alternating, Generation: 1}}}, nil, 0)
		must(err)
		_, err = rotator.JetStream.Publish(ctx, fmt.Sprintf("pawl.sealed.c%d.r1.verifier", n), bytes.Repeat([]byte{byte(n)}, 300))
		must(err)
	}
	sealed, err := rotator.Stream(ctx, bus.StreamSealed)
	must(err)
	must(sealed.Purge(ctx, jetstream.WithPurgeSubject("pawl.sealed.c7.r1.*")))
	for subject, b := range map[string]*bus.Bus{bus.NoteSubject(saga.Scheduler): scheduler, bus.DeadSubject(saga.Scheduler): scheduler, bus.AnswerSubject("x"): scheduler, "pawl.alarm.c1.e1": scheduler,
		"pawl.audit.record.1": auditor, bus.AlertSubject("siem"): operator, bus.EvidenceSubject("c1", "r1", "n", "x"): operator} {
		_, err := b.JetStream.Publish(ctx, subject, []byte("text of "+subject))
		must(err)
	}
	must(operator.Publish(ctx, bus.RequestSubject("c1"), &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, Reason: "why not", RequestedBy: "ann"}, nil))
	must(join(bus.Requester).Publish(ctx, bus.RequestSubject("c3"), &pawlv1.Request{Action: pawlv1.Action_ACTION_PLAN, Reason: "for fun", RequestedBy: "eve"}, nil))
	must(operator.Publish(ctx, bus.EmergencySubject("c2"), &pawlv1.Request{Action: pawlv1.Action_ACTION_CONTAIN, Reason: "stolen", RequestedBy: "bob"}, nil))
}

// contents reads every message of the streams that a backup holds.
func (i installation) contents(provisioner *bus.Bus) map[string][]string {
	i.t.Helper()
	all := map[string][]string{}
	for _, name := range bus.BackedUp {
		stream, err := provisioner.JetStream.Stream(i.t.Context(), name)
		if err != nil {
			i.t.Fatal(err)
		}
		state := stream.CachedInfo().State
		all[name] = append(all[name], fmt.Sprintf("last %d", state.LastSeq))
		for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
			m, err := stream.GetMsg(i.t.Context(), seq)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				i.t.Fatal(err)
			}
			all[name] = append(all[name], fmt.Sprintf("%d %s %v %s %x", m.Sequence, m.Subject, m.Header, m.Time, m.Data))
		}
	}
	return all
}

func (i installation) backup(out string) string {
	i.t.Helper()
	w, err := backup.Write(i.t.Context(), backup.Options{Inventory: i.inv, Out: out})
	if err != nil {
		i.t.Fatal(err)
	}
	return w.File
}

func (i installation) restore(file string) (Result, error) {
	return Run(context.WithoutCancel(i.t.Context()), Options{Inventory: i.inv, File: file, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
}

func (i installation) lose() {
	i.t.Helper()
	if err := os.RemoveAll(filepath.Join(i.inv.DataDir, "nats")); err != nil {
		i.t.Fatal(err)
	}
}

// TestRestoredMessageDiffersOrIsMissing compares every message, and how services
// find the streams: marked, with consumers, and without what waited.
func TestRestoredMessageDiffersOrIsMissing(t *testing.T) {
	i := install(t)
	var before map[string][]string
	var file string
	i.up(func(join func(string) *bus.Bus) {
		i.fill(join)
		file = i.backup("")
		before = i.contents(join(bus.Provisioner))
	})
	i.lose()
	r, err := i.restore(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Dropped) != 3 || !strings.Contains(r.Dropped[0].What, `rotate by "ann": why not`) || !strings.Contains(r.Dropped[1].What, `plan by "eve": for fun`) || !strings.Contains(r.Dropped[2].What, `contain by "bob": stolen`) {
		t.Errorf("dropped: %+v", r.Dropped)
	}
	i.up(func(join func(string) *bus.Bus) {
		after := i.contents(join(bus.Provisioner))
		for _, name := range bus.BackedUp {
			want := before[name]
			switch name {
			case bus.StreamRequest, bus.StreamAsked, bus.StreamEmergency:
				want = want[:1]
			case bus.StreamNote: // of the restore itself
				want, after[name] = want[1:], after[name][1:len(after[name])-1]
			}
			if !slices.Equal(after[name], want) {
				t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(after[name], "\n"), strings.Join(want, "\n"))
			}
		}
		mark, err := join(saga.Verifier).Restored(t.Context())
		if err != nil || mark == nil || mark.Log != messages || mark.Notes != 1 || mark.Backup.IsZero() {
			t.Errorf("mark: %+v %v", mark, err)
		}
		c, err := join(saga.DBRotator).JetStream.Consumer(t.Context(), bus.StreamLog, saga.DBRotator)
		if err != nil || c.CachedInfo().NumPending != 0 {
			t.Errorf("the db-rotator is to hear all of the past again: %v", err)
		}
	})
	if _, err := os.Stat(provision.Restoring(i.inv)); err == nil {
		t.Error("the marker of a restore under way still lies there")
	}
}

// TestRestoreOfUnfitFileTouchesSomething: each is refused, and nothing is there
// afterwards that was not there before.
func TestRestoreOfUnfitFileTouchesSomething(t *testing.T) {
	i := install(t)
	var file string
	i.up(func(join func(string) *bus.Bus) {
		i.fill(join)
		file = i.backup("")
	})
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	i.lose()
	entries := func() (names []string) {
		_ = filepath.WalkDir(i.inv.DataDir, func(path string, _ os.DirEntry, _ error) error { names = append(names, path); return nil })
		return names
	}
	before := entries()
	broken := func(edit func([]byte) []byte) string {
		path := filepath.Join(t.TempDir(), "broken.backup")
		if err := os.WriteFile(path, edit(slices.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, file := range map[string]string{
		"missing":        "/nonexistent",
		"empty":          broken(func([]byte) []byte { return nil }),
		"truncated":      broken(func(b []byte) []byte { return b[:len(b)/2] }),
		"last byte lost": broken(func(b []byte) []byte { return b[:len(b)-1] }),
		"bit flipped":    broken(func(b []byte) []byte { b[len(b)-200] ^= 1; return b }),
		"longer":         broken(func(b []byte) []byte { return append(b, 0) }),
		"not a backup":   broken(func([]byte) []byte { return []byte("hello") }),
	} {
		_, err := i.restore(file)
		if !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if after := entries(); !slices.Equal(after, before) {
			t.Errorf("%s: %v", name, after)
		}
	}
	other := install(t)
	if _, err := Run(t.Context(), Options{Inventory: i.inv, File: file, Identity: backup.IdentityFile(other.inv)}); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "sealed to another key") {
		t.Errorf("with another identity: %v", err)
	}
	if after := entries(); !slices.Equal(after, before) {
		t.Errorf("with another identity: %v", after)
	}
	other.up(func(func(string) *bus.Bus) {})
	if _, err := Run(t.Context(), Options{Inventory: other.inv, File: file, Identity: backup.IdentityFile(i.inv)}); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "holds a store") {
		t.Errorf("into a store that is there: %v", err)
	}
}

// TestHalfRestoredStoreComesUp ends a restore in its midst.
func TestHalfRestoredStoreComesUp(t *testing.T) {
	i := install(t)
	var file string
	i.up(func(join func(string) *bus.Bus) {
		i.fill(join)
		file = i.backup("")
	})
	i.lose()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{Inventory: i.inv, File: file, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}); err == nil {
		t.Fatal("a restore that was interrupted has ended well")
	}
	_, err := embedded.Start(t.Context(), embedded.Options{Inventory: i.inv, Log: slog.Default()})
	if err == nil || !strings.Contains(err.Error(), "Run it again") {
		t.Fatalf("started: %v", err)
	}
	if _, err := i.restore(file); err != nil {
		t.Fatal(err)
	}
	i.up(func(func(string) *bus.Bus) {})
}

// TestKeysInABackupAreLostOrLieBesideTheirKey restores on a machine that has nothing
// but pawl.yaml and the key that opens the backup.
func TestKeysInABackupAreLostOrLieBesideTheirKey(t *testing.T) {
	i := install(t)
	file, identity := filepath.Join(t.TempDir(), "keys.backup"), filepath.Join(t.TempDir(), "backup.key")
	var before map[string][]string
	i.up(func(join func(string) *bus.Bus) {
		i.fill(join)
		if _, err := backup.Write(t.Context(), backup.Options{Inventory: i.inv, Out: file, WithKeys: true}); err == nil || !strings.Contains(err.Error(), "lies beside the keys") {
			t.Errorf("with the identity on the same machine: %v", err)
		}
		if err := os.Rename(backup.IdentityFile(i.inv), identity); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Write(t.Context(), backup.Options{Inventory: i.inv, Out: file, WithKeys: true}); err != nil {
			t.Fatal(err)
		}
		before = i.contents(join(bus.Provisioner))
	})
	keys := func() map[string]string {
		all := map[string]string{}
		for _, dir := range []string{i.inv.KeysDir, filepath.Join(i.inv.DataDir, "clients")} {
			_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					raw, _ := os.ReadFile(path)
					all[path] = string(raw)
				}
				return nil
			})
		}
		return all
	}
	want := keys()
	for _, dir := range []string{i.inv.KeysDir, i.inv.DataDir} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Inventory: i.inv, File: file, Identity: identity, WithKeys: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if r, err := Run(t.Context(), o); err != nil || len(r.Keys) != len(want) {
		t.Fatalf("%v %v", r.Keys, err)
	}
	if have := keys(); !maps.Equal(have, want) {
		t.Errorf("%d keys, want %d", len(have), len(want))
	}
	i.up(func(join func(string) *bus.Bus) {
		if after := i.contents(join(bus.Provisioner)); !slices.Equal(after[bus.StreamSealed], before[bus.StreamSealed]) {
			t.Error("the sealed credentials differ")
		}
	})
}

// serve runs a server of one's own on an empty store, until the returned function is
// called.
func (i installation) serve(dir string) (stop func()) {
	i.t.Helper()
	accounts, err := bus.Accounts(i.inv)
	if err != nil {
		i.t.Fatal(err)
	}
	address, err := url.Parse(i.inv.NATS.URL)
	if err != nil {
		i.t.Fatal(err)
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		i.t.Fatal(err)
	}
	o := &server.Options{}
	if err := o.ProcessConfigString(accounts); err != nil {
		i.t.Fatal(err)
	}
	o.Host, o.Port, o.JetStream, o.StoreDir, o.NoSigs = "127.0.0.1", port, true, dir, true
	s, err := server.NewServer(o)
	if err != nil {
		i.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(15 * time.Second) {
		i.t.Fatal("the server did not start")
	}
	return func() { s.Shutdown(); s.WaitForShutdown() }
}

// TestServerOfOnesOwnIsRestoredOverWhatItHas restores into an empty server, and is
// refused by one that holds streams.
func TestServerOfOnesOwnIsRestoredOverWhatItHas(t *testing.T) {
	i := install(t)
	if err := os.WriteFile(i.inv.File, fmt.Appendf(nil, "nats: {url: %q}\n", "nats://"+i.inv.NATS.Listen), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if i.inv, err = inventory.Load(i.inv.File); err != nil {
		t.Fatal(err)
	}
	joined := func(user string) *bus.Bus {
		b, err := join(i.inv, user, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.NATS.Close)
		return b
	}
	provisioned := func() error {
		return provision.Server(t.Context(), provision.Options{Inventory: i.inv, Log: slog.Default()})
	}
	stop := i.serve(t.TempDir())
	if err := provisioned(); err != nil {
		t.Fatal(err)
	}
	i.fill(joined)
	file, before := i.backup(""), i.contents(joined(bus.Provisioner))
	if _, err := i.restore(file); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "has the streams") {
		t.Errorf("over streams that are there: %v", err)
	}
	if after := i.contents(joined(bus.Provisioner)); !maps.EqualFunc(after, before, slices.Equal) {
		t.Error("a restore that was refused has changed something")
	}
	stop()
	stop = i.serve(t.TempDir())
	defer stop()
	if err := provisioned(); err == nil {
		t.Fatal("streams were made in the place of those that are lost")
	}
	if _, err := i.restore(file); err != nil {
		t.Fatal(err)
	}
	after := i.contents(joined(bus.Provisioner))
	for _, name := range []string{bus.StreamLog, bus.StreamSealed, bus.StreamAudit} {
		if !slices.Equal(after[name], before[name]) {
			t.Errorf("%s differs", name)
		}
	}
	if mark, err := joined(saga.Scheduler).Restored(t.Context()); err != nil || mark == nil || mark.Log != messages {
		t.Errorf("mark: %+v %v", mark, err)
	}
	if err := provisioned(); err != nil {
		t.Errorf("after the restore: %v", err)
	}
	if mark, err := joined(saga.Scheduler).Restored(t.Context()); err != nil || mark == nil {
		t.Errorf("provisioned again, the mark is gone: %v", err)
	}
}

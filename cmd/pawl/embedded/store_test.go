package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// installation is a data_dir and its keys.
type installation struct {
	t   *testing.T
	inv *inventory.Inventory
	log *bytes.Buffer
}

func install(t *testing.T) *installation {
	t.Helper()
	dir := t.TempDir()
	i := &installation{t: t, log: &bytes.Buffer{}, inv: &inventory.Inventory{DataDir: filepath.Join(dir, "data"), KeysDir: filepath.Join(dir, "keys"),
		NATS: inventory.NATS{Listen: bustest.FreeAddress(t)}}}
	if _, err := embedded.CreateKeys(i.inv); err != nil {
		t.Fatal(err)
	}
	return i
}

// copied is the same installation with a copy of its data.
func (i *installation) copied(t *testing.T) *installation {
	t.Helper()
	inv := *i.inv
	inv.DataDir, inv.NATS.Listen = filepath.Join(t.TempDir(), "data"), bustest.FreeAddress(t)
	if err := os.CopyFS(inv.DataDir, os.DirFS(i.inv.DataDir)); err != nil {
		t.Fatal(err)
	}
	return &installation{t, &inv, &bytes.Buffer{}}
}

func (i *installation) start() (*embedded.Server, error) {
	return embedded.Start(i.t.Context(), embedded.Options{Inventory: i.inv, Log: slog.New(slog.NewTextHandler(i.log, nil))})
}

// run starts the server, does something, and stops the server.
func (i *installation) run(do func(*server.Server)) {
	i.t.Helper()
	s, err := i.start()
	if err != nil {
		i.t.Fatalf("%v\n%s", err, i.log)
	}
	defer s.Stop()
	do(s.NATS())
}

// join connects as a user.
func (i *installation) join(s *server.Server, user string) *bus.Bus {
	i.t.Helper()
	seed, err := bus.LoadSeed(bus.SeedFile(i.inv, user))
	if err != nil {
		i.t.Fatal(err)
	}
	b, err := bus.Connect(bus.ConnectOptions{User: user, Seed: seed, Server: s})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(b.NATS.Close)
	return b
}

// publish stores n messages of a kilobyte each; a * in the subject is the message's
// number.
func publish(t *testing.T, b *bus.Bus, subject string, from, n int) {
	t.Helper()
	for k := range n {
		m := nats.NewMsg(strings.ReplaceAll(subject, "*", fmt.Sprint(from+k)))
		m.Header.Set("Number", fmt.Sprint(from+k))
		m.Data = bytes.Repeat([]byte{byte(k)}, 1024)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := b.JetStream.PublishMsg(ctx, m); err != nil {
			cancel()
			t.Fatal(err)
		}
		cancel()
	}
}

// fill stores notes, envelopes and a request.
func (i *installation) fill(s *server.Server) {
	publish(i.t, i.join(s, saga.Scheduler), "pawl.note.scheduler", 0, 20)
	publish(i.t, i.join(s, saga.DBRotator), "pawl.sealed.app.r*.verifier", 0, 20)
	publish(i.t, i.join(s, bus.Operator), "pawl.request.app*", 0, 3)
}

func (i *installation) dir(parts ...string) string {
	return filepath.Join(append([]string{i.inv.DataDir, "nats", "jetstream", bus.Account, "streams"}, parts...)...)
}

// messages counts what a stream holds.
func (i *installation) messages(s *server.Server, stream string) uint64 {
	i.t.Helper()
	found, err := s.JszAccount(&server.JSzOptions{Account: bus.Account, Streams: true})
	if err != nil {
		i.t.Fatal(err)
	}
	for _, d := range found.Streams {
		if d.Name == stream {
			return d.State.Msgs
		}
	}
	i.t.Fatalf("no stream %s", stream)
	return 0
}

func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(content), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDamagedStoreIsNotOpenedAndIsKept(t *testing.T) {
	t.Parallel()
	whole := install(t)
	whole.run(whole.fill)
	for name, f := range map[string]struct {
		damage func(t *testing.T, i *installation)
		says   []string
	}{
		"a bit in the middle of a block": {func(t *testing.T, i *installation) {
			rewrite(t, i.dir(bus.StreamNote, "msgs", "1.blk"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, []string{"PAWL_NOTE: 1.blk: a record at byte", "is broken, and message"}},
		"the last message": {func(t *testing.T, i *installation) {
			rewrite(t, i.dir(bus.StreamNote, "msgs", "1.blk"), func(b []byte) []byte { return b[:len(b)-1] })
		}, []string{"PAWL_NOTE: message 20 was acknowledged, and the last one on disk is 19"}},
		"a block that is cut to nothing": {func(t *testing.T, i *installation) {
			rewrite(t, i.dir(bus.StreamSealed, "msgs", "1.blk"), func([]byte) []byte { return nil })
		}, []string{"PAWL_SEALED: message 20 was acknowledged, and the last one on disk is 0"}},
		"a block that is gone": {func(t *testing.T, i *installation) {
			block := i.dir(bus.StreamNote, "msgs", "1.blk")
			rewrite(t, block, func(b []byte) []byte { return b[len(b)/20*5:] })
		}, []string{"PAWL_NOTE: 5 of 20 messages are missing"}},
		"a stream that is gone": {func(t *testing.T, i *installation) {
			if err := os.RemoveAll(i.dir(bus.StreamDead)); err != nil {
				t.Fatal(err)
			}
		}, []string{"PAWL_DEAD: the stream was made here and is missing"}},
		"a stream without a description": {func(t *testing.T, i *installation) {
			if err := os.Remove(i.dir(bus.StreamNote, "meta.inf")); err != nil {
				t.Fatal(err)
			}
		}, []string{"PAWL_NOTE: meta.inf is missing"}},
		"a description that is cut off": {func(t *testing.T, i *installation) {
			rewrite(t, i.dir(bus.StreamNote, "meta.inf"), func(b []byte) []byte { return b[:len(b)/2] })
		}, []string{"PAWL_NOTE: meta.inf cannot be read"}},
		"a stream that the server was deleting": {func(t *testing.T, i *installation) {
			if err := os.Rename(i.dir(bus.StreamNote), i.dir("."+bus.StreamNote)); err != nil {
				t.Fatal(err)
			}
		}, []string{"PAWL_NOTE: nats-server was deleting the stream"}},
		"a consumer whose position is cut off": {func(t *testing.T, i *installation) {
			if err := os.WriteFile(i.dir(bus.StreamNote, "obs", saga.Auditor, "o.dat"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"PAWL_NOTE: o.dat of the consumer auditor cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			i := whole.copied(t)
			f.damage(t, i)
			before := contents(t, filepath.Join(i.inv.DataDir, "nats"))
			for range 2 { // the next start says it again
				_, err := i.start()
				damaged := new(store.DamagedError)
				if !errors.As(err, &damaged) || len(damaged.Aside) != 1 {
					t.Fatalf("%v", err)
				}
				for _, want := range []string{"nats.damaged-", "`pawl restore FILE` restores a backup", "delete " + provision.Record(i.inv)} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%v lacks %q", err, want)
					}
				}
				if after := contents(t, damaged.Aside[0]); after != before {
					t.Errorf("set aside:\n%s\nbefore:\n%s", after, before)
				}
				if f.says == nil {
					continue
				}
				for _, want := range f.says {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%v lacks %q", err, want)
					}
				}
				f.says = nil
			}
		})
	}
}

// contents is every file below dir, and a checksum of sorts of its content.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(&text, "%s %d %x\n", strings.TrimPrefix(path, dir), len(content), content[:min(len(content), 4096)])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestWhatAKillLeavesIsPutInOrder(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.run(i.fill)
	note := i.dir(bus.StreamNote)
	block, err := os.ReadFile(filepath.Join(note, "msgs", "1.blk"))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		"msgs/2.blk": "", "msgs/index.db.tmp": "half", "msgs/1.blk.tmp": "half", "msgs/1.new": "half", "meta.inf.tmp": "half", "meta.sum": "0123",
		"obs/auditor/o.dat.tmp": "half", "obs/auditor/meta.sum": "",
	} {
		if err := os.WriteFile(filepath.Join(note, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sealed := i.dir(bus.StreamSealed, "msgs", "1.blk") // a record that was being written
	rewrite(t, sealed, func(b []byte) []byte { return append(b, block[:300]...) })
	if err := os.MkdirAll(i.dir("PAWL_NEW", "msgs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(note, "obs", "auditor", "meta.inf")); err != nil {
		t.Fatal(err)
	}
	i.run(func(s *server.Server) {
		for stream, want := range map[string]uint64{bus.StreamNote: 20, bus.StreamSealed: 20, bus.StreamRequest: 3} {
			if n := i.messages(s, stream); n != want {
				t.Errorf("%s has %d messages, want %d", stream, n, want)
			}
		}
		publish(t, i.join(s, saga.Scheduler), "pawl.note.scheduler", 20, 5)
	})
	i.log.Reset()
	i.run(func(s *server.Server) {
		if n := i.messages(s, bus.StreamNote); n != 25 {
			t.Errorf("%d notes", n)
		}
	})
	if strings.Contains(i.log.String(), "level=WARN") {
		t.Errorf("an orderly start after that warns:\n%s", i.log)
	}
}

func TestInterruptedStartDoesNotHideWhatTheServerDeleted(t *testing.T) {
	t.Parallel()
	i := install(t)
	i.run(i.fill)
	dir := filepath.Join(i.inv.DataDir, "nats")
	opened, err := store.Store{Dir: dir, Account: bus.Account, Manifest: provision.Record(i.inv), Log: slog.New(slog.DiscardHandler)}.Open()
	if err != nil {
		t.Fatal(err)
	}
	_ = opened // and killed here, when the server had deleted a stream, before the manifest was ever written
	if err := os.RemoveAll(i.dir(bus.StreamNote)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(provision.Record(i.inv)); err != nil {
		t.Fatal(err)
	}
	_, err = i.start()
	damaged := new(store.DamagedError)
	if !errors.As(err, &damaged) || len(damaged.Aside) != 2 || !strings.Contains(err.Error(), "PAWL_NOTE: the stream was made here and is missing") {
		t.Fatalf("%v", err)
	}
	if err := os.Remove(provision.Record(i.inv)); err != nil { // as the error says
		t.Fatal(err)
	}
	i.run(func(s *server.Server) {
		if n := i.messages(s, bus.StreamNote); n != 0 {
			t.Errorf("%d notes in a new store", n)
		}
	})
	if _, err := os.Stat(filepath.Join(damaged.Aside[0], "jetstream", bus.Account, "streams", bus.StreamNote, "msgs", "1.blk")); err != nil {
		t.Errorf("what was deleted is not kept: %v", err)
	}
}

package embedded_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestSignsOfLifeTakeTheWholeStoreDown: the stream of the signs of life is written
// again all the time, so a damaged one is put away, and made anew, and nothing else.
func TestSignsOfLifeTakeTheWholeStoreDown(t *testing.T) {
	t.Parallel()
	whole := install(t)
	lives := func(i *installation, s *server.Server) {
		if err := i.join(s, saga.Auditor).Publish(t.Context(), bus.LiveSubject(saga.Auditor), &pawlv1.Note{Kind: "live", Text: "a sign"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	whole.run(func(s *server.Server) {
		whole.fill(s)
		for range 3 {
			lives(whole, s)
		}
	})
	spoil := func(i *installation, stream string) {
		rewrite(t, i.dir(stream, "msgs", "1.blk"), func(b []byte) []byte { return b[:len(b)/3] })
	}

	i := whole.copied(t)
	spoil(i, bus.StreamLive)
	for range 2 { // and it is not missed afterwards
		i.run(func(s *server.Server) {
			if n := i.messages(s, bus.StreamNote); n != 20 {
				t.Errorf("%d notes, want 20", n)
			}
			if n := i.messages(s, bus.StreamLive); n > 1 {
				t.Errorf("%d signs of life in a new stream", n)
			}
			lives(i, s)
		})
	}
	if kept, _ := filepath.Glob(filepath.Join(i.inv.DataDir, "nats.discarded-*")); len(kept) != 1 {
		t.Errorf("put away: %v, want it once", kept)
	}

	i = whole.copied(t)
	spoil(i, bus.StreamLive)
	spoil(i, bus.StreamNote)
	if _, err := i.start(); !errors.As(err, new(*store.DamagedError)) {
		t.Errorf("a store that lost notes, too, has started: %v", err)
	}
	if _, err := os.Stat(filepath.Join(i.inv.DataDir, "nats")); err == nil {
		t.Error("it was not set aside")
	}
}

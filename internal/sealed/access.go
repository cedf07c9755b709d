package sealed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// accesses are the envelopes that this process has opened. Each is noted once:
// from then on the process may know what is in it, however often it looks.
type accesses struct {
	mu     sync.Mutex
	opened map[string]bool            // by credential and rotation
	unsure map[string]<-chan struct{} // those of which the note is not yet stored; closed once it is
}

// rememberedAccesses is how many a process remembers; one that it has forgotten
// is noted once more.
const rememberedAccesses = 100_000

// note has a note stored of what was opened, and does not wait for it.
func (s *Store) note(ctx context.Context, credential, rotation string) {
	a, key := &s.accesses, credential+"/"+rotation
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.opened[key] {
		return
	}
	if len(a.opened) >= rememberedAccesses {
		clear(a.opened)
	}
	host, _ := os.Hostname()
	n := &pawlv1.Note{Kind: "opened", Credential: credential, Rotation: rotation, At: timestamppb.Now(),
		Text: fmt.Sprintf("what is sealed to %s, by %s/%d", s.self, host, os.Getpid())}
	header := telemetry.Inject(ctx)
	header.Set(jetstream.MsgIDHeader, "opened-"+rand.Text()) // however often it is sent, it is stored once
	stored := make(chan struct{})
	a.opened[key], a.unsure[key] = true, stored
	go func() {
		if s.insist(n, header) {
			a.mu.Lock()
			defer a.mu.Unlock()
			delete(a.unsure, key)
			close(stored)
		}
	}()
}

// insist publishes the note until it is stored, or the connection is closed.
func (s *Store) insist(n *pawlv1.Note, header nats.Header) bool {
	for {
		err := s.bus.Publish(context.Background(), bus.NoteSubject(s.self), n, header)
		if err == nil || errors.Is(err, nats.ErrConnectionClosed) {
			return err == nil
		}
		time.Sleep(time.Second)
	}
}

// Noted waits until the notes of all that was opened so far are stored: before
// what was opened has any effect in the log. (Waiting as it is opened would cost
// each step one more write to disk.) Where the process dies before, whoever does
// the step again notes that.
func (s *Store) Noted(ctx context.Context) error {
	a := &s.accesses
	a.mu.Lock()
	unsure := slices.Collect(maps.Values(a.unsure))
	a.mu.Unlock()
	ctx, cancel := bus.Bound(ctx)
	defer cancel()
	for _, stored := range unsure {
		select {
		case <-stored:
		case <-ctx.Done():
			return fmt.Errorf("note that a sealed credential was opened: %w", ctx.Err())
		}
	}
	return nil
}

package embedded

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
)

// Conditions of the store.
const (
	oldStore      = "old-store"      // an encrypted store is still kept
	storeManifest = "store-manifest" // what was acknowledged last cannot be written down
)

// manifestEvery is how far the manifest may lag behind what was acknowledged.
const manifestEvery = 5 * time.Second

// settleFor is longer than a write takes to fail.
const settleFor = 50 * time.Millisecond

// streams returns what the server holds. A sequence that it tells of is on the disk,
// unless its write is failing at this moment.
func (s *run) streams() ([]server.StreamDetail, error) {
	found, err := s.NATS.JszAccount(&server.JSzOptions{Account: bus.Account, Streams: true, Config: true})
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	return found.Streams, nil
}

// writeManifest records what was acknowledged last. After a failed write the server
// counts messages that it has neither stored nor acknowledged; then the record of
// before stays.
func (s *run) writeManifest() error {
	known, err := store.ReadManifest(s.store.Manifest)
	if err != nil {
		return err
	}
	found, err := s.streams()
	if err != nil {
		return err
	}
	time.Sleep(settleFor)
	if s.broken.Load() || storeFault(s.NATS) != "" {
		return nil
	}
	var now []store.Stream
	for _, d := range found {
		if d.State.LastSeq >= known.Last(d.Name) {
			now = append(now, store.Of(d))
		}
	}
	slices.SortFunc(now, func(a, b store.Stream) int { return strings.Compare(a.Name, b.Name) })
	return known.With(now).Write(s.store.Manifest)
}

// keepManifest writes the manifest until ctx ends, and watches what is kept.
func (s *run) keepManifest(ctx context.Context, conditions *condition.Set) {
	tick := time.NewTicker(manifestEvery)
	defer tick.Stop()
	for {
		err := s.writeManifest()
		c := condition.Condition{Name: storeManifest, Text: fmt.Sprintf("what was acknowledged last is not recorded: %v. If the store loses it, the next start cannot tell", err)}
		if conditions.Update(err != nil, c) && err != nil {
			s.log.Error(c.String())
		}
		old, err := s.store.Old()
		conditions.Update(err == nil && len(old) > 0, condition.Condition{Name: oldStore,
			Text: fmt.Sprintf("an encrypted store is kept in %s: delete it, and store.key, if everything works", strings.Join(old, ", "))})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

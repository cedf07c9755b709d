package e2e

import (
	"strings"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
)

// TestReplicaWithAWrongClockWaitsAsLongAsTheOthers runs two replicas of every service
// on a bus of its own: one has a clock that is wrong all the time.
func TestReplicaWithAWrongClockWaitsAsLongAsTheOthers(t *testing.T) {
	t.Parallel()
	offsets := []time.Duration{time.Hour, -time.Hour}
	if !*full {
		offsets = offsets[newRandom(t).IntN(2):][:1]
	}
	for _, off := range offsets {
		t.Run(off.String(), func(t *testing.T) { wrongClock(t, off) })
	}
}

func wrongClock(t *testing.T, off time.Duration) {
	binaries, err := site.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	s, binary := newStepped(t, func(server *pgserver.Server) (*site.Site, error) {
		return site.NewOnServers(t.Context(), t.TempDir(), 1, []site.Node{{Name: "primary", Server: server}}, "", clockCredentials())
	})
	fleet, err := s.site.StartFleet(t.Context(), binaries, 1, ackWait, stepDeadline)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fleet.Stop)
	if err := s.clock.Set(off); err != nil {
		t.Fatal(err)
	}
	s.begin(binary)
	begin := []func() *waiting{s.draining, s.inUse, s.kept, s.tooLate, s.midway, s.watched}
	var all sync.WaitGroup
	for _, b := range begin {
		all.Go(func() {
			if w := b(); w != nil {
				s.ends(w, time.Now())
			}
		})
	}
	all.Wait()
	s.saysThatItsClockIsWrong(off)
}

// saysThatItsClockIsWrong looks for the note, and that only the replica with the
// wrong clock has one.
func (s *stepped) saysThatItsClockIsWrong(off time.Duration) {
	t := s.t
	t.Helper()
	notes := s.notes("clock")
	direction := "1h0m0s ahead of"
	if off < 0 {
		direction = "1h0m0s behind"
	}
	for _, text := range notes {
		if !strings.Contains(text, direction) {
			t.Errorf("noted: %s", text)
		}
	}
	if len(notes) != len(saga.Services) {
		t.Errorf("noted by %d services, not by the %d of the replica with the wrong clock", len(notes), len(saga.Services))
	}
	if stepped := s.notes("clock stepped"); len(stepped) > 0 {
		t.Errorf("the bus's clock was not stepped: %v", stepped)
	}
}

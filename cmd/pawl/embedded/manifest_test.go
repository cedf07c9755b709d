package embedded

import (
	"os"
	"testing"

	"pawl.dev/cmd/pawl/provision"
)

// TestUnacknowledgedMessageIsMissedAfterAFailedWrite: after a failed write NATS counts
// a message that nobody got an acknowledgement for. Written down as acknowledged, it
// would have the next start call a whole store damaged.
func TestUnacknowledgedMessageIsMissedAfterAFailedWrite(t *testing.T) {
	s, inv := startOn(t, t.TempDir(), nil)
	before, err := os.ReadFile(provision.Record(inv))
	if err != nil {
		t.Fatal(err)
	}
	s.running.broken.Store(true)
	publish(t, inv, s)
	if err := s.running.writeManifest(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(provision.Record(inv)); err != nil || string(after) != string(before) {
		t.Errorf("written down although a write has failed (%v):\n%s", err, after)
	}
	s.running.broken.Store(false)
	if err := s.running.writeManifest(); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(provision.Record(inv)); string(after) == string(before) {
		t.Error("nothing is written down at all: this test proves nothing")
	}
}

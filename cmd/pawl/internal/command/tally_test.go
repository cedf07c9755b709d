package command

import (
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestCredentialThatWasStalledAndGoesOnIsNotCountedAsFailed: a stalled step is tried on,
// and mostly succeeds.
func TestCredentialThatWasStalledAndGoesOnIsNotCountedAsFailed(t *testing.T) {
	tally := newTally([]string{"app", "web"}, true)
	seq := uint64(0)
	happens := func(name string, e saga.Event) {
		seq++
		tally.take(bus.Entry{Credential: name, Rotation: "r-1", Event: &bus.Record{Entry: saga.Entry{Event: e, Seq: seq, At: time.Unix(int64(seq), 0)}, Body: &pawlv1.Event{}}})
	}
	stalls := func(name string) {
		tally.take(bus.Entry{Credential: name, Rotation: "r-1", Note: &pawlv1.Note{Kind: "stalled", Text: "no answer"}})
	}
	for name, p := range tally.parts {
		p.Rotation = "r-1"
		happens(name, saga.Requested)
		stalls(name)
	}
	if c := tally.counts(); c.Failed != 0 || c.Stalled != 2 || tally.parts["app"].Outcome != chronicle.Stalled {
		t.Errorf("both stalled: %+v, %+v", c, tally.parts["app"])
	}
	happens("app", saga.Contained)
	stalls("app")
	happens("app", saga.Staged)
	if c, app := tally.counts(), tally.parts["app"]; c.Failed != 0 || c.Stalled != 1 || app.Outcome != "contained" || app.Reason != "" {
		t.Errorf("one went on: %+v, %+v", c, app)
	}
}

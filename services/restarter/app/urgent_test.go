package app

import (
	"testing"
	"time"

	"pawl.dev/internal/saga"
)

// newEmergency is the same three credentials in an emergency of several.
func newEmergency(t *testing.T) *group {
	g := newGroup(t)
	for _, log := range g.logs {
		log.Records[0].Body.GetRequested().Flow = saga.Emergency
	}
	return g
}

func TestEmergencyOfSeveralRestartsASharedConsumerOnceAfterTheLastIsPublished(t *testing.T) {
	g := newEmergency(t)
	g.all(saga.Contained, saga.Staged)
	g.happens("c", saga.Published)
	g.waits("c")
	g.happens("a", saga.Published)
	g.waits("c", "a")
	g.restarted("own")             // which c shares with nobody
	g.happens("b", saga.Published) // the last: it shares api with a, api and jobs with c
	g.steps("b")
	g.restarted("own api jobs")
	g.steps("a", "c")
	g.restarted("own api jobs")
}

func TestEmergencyWaitsForNobodyWhoDidNotBegin(t *testing.T) {
	g := newEmergency(t)
	delete(g.logs, "b")
	g.happens("a", saga.Contained, saga.Staged, saga.Published)
	g.happens("c", saga.Contained, saga.Staged, saga.Published)
	g.waits("a")
	g.steps("c", "a")
	g.restarted("own jobs api")
}

// TestEmergencyWaitsOnlySoLongForWhoCannotPublish: its sink may take for ever to mend.
func TestEmergencyWaitsOnlySoLongForWhoCannotPublish(t *testing.T) {
	g := newEmergency(t)
	g.all(saga.Contained, saga.Staged)
	g.happens("a", saga.Published)
	g.waits("a")
	g.ages(time.Minute)
	g.steps("a")
	g.restarted("api")
}

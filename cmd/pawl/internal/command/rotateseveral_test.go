package command

import (
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestRunThatGoesOnWaitsForNothingThatHasStalledOrEnded: before it was started again, one
// rotation stalled, one was superseded by an emergency, and one never began.
func TestRunThatGoesOnWaitsForNothingThatHasStalledOrEnded(t *testing.T) {
	s := newServer(t)
	s.twoMore()
	begin := func(name, id string, b *pawlv1.Requested) {
		t.Helper()
		b.Generation, b.Role = 1, name
		if err := s.eventOf(name, id, saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: b}}); err != nil {
			t.Fatal(err)
		}
	}
	begin("app", "r-1", &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating})
	stalled := &pawlv1.Note{Kind: "stalled", Credential: "app", Rotation: "r-1", Step: "stage", Text: "no answer"}
	if err := s.users[saga.DBRotator].Publish(t.Context(), bus.NoteSubject(saga.DBRotator), stalled, nil); err != nil {
		t.Fatal(err)
	}
	begin("jobs", "r-2", &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.InPlace})
	begin("jobs", "r-5", &pawlv1.Requested{Action: pawlv1.Action_ACTION_CONTAIN, Flow: saga.Emergency, Supersedes: "r-2"})
	for name, id := range map[string]string{"app": "r-1", "jobs": "r-2", "web": "r-4"} {
		answer := accepted(id)
		answer.Request, answer.Credential = requestOf("run-1", name, 0), name
		if err := s.users[saga.Scheduler].Publish(t.Context(), bus.AnswerSubject(answer.Request), answer, nil); err != nil {
			t.Fatal(err)
		}
	}
	_, stderr := s.want(exitRejected, "rotate", "--all", "--run", "run-1", "--at-once", "1")
	for _, want := range []string{"app (stalled: no answer)", "jobs (superseded: by r-5)", "web (rejected: not begun"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
}

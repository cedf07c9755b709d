package command

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// cancelled is a rotation that was cancelled while it was being published.
var cancelled = []told{{saga.Cancelled, &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "publish", Reason: "cancelled by anna@laptop: wrong week"}}}},
	{saga.Restored, none}, {saga.Unstaged, none}, {saga.RolledBack, none}}

var saturday = time.Date(2999, 12, 1, 3, 0, 0, 0, time.UTC)

// waits plays what the scheduler keeps of requests that wait.
func (s *site) waits(ids ...string) {
	s.t.Helper()
	list := &pawlv1.Waiting{}
	for i, id := range ids {
		list.Requests = append(list.Requests, &pawlv1.WaitingRequest{Id: id, Request: &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE, RequestedBy: "anna@laptop",
			Reason: "the freeze\nends", With: []string{"jobs"}, NotBefore: timestamppb.New(saturday.AddDate(0, 0, i))}})
	}
	list.Requests = append(list.Requests, &pawlv1.WaitingRequest{Id: "over", Request: &pawlv1.Request{}, Cancelled: "cancelled by bob"}, &pawlv1.WaitingRequest{Id: "due", Request: &pawlv1.Request{}, Due: true})
	if err := s.users[saga.Scheduler].Publish(s.t.Context(), bus.WaitingSubject("app"), list, nil); err != nil {
		s.t.Fatal(err)
	}
}

// TestCancelOfARotationEndsWith0OnceItIsRolledBack: by its own name, its credential's,
// or that of the request that began it.
func TestCancelOfARotationEndsWith0OnceItIsRolledBack(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", rotation[:2])
	begun := accepted("r-2")
	begun.Request, begun.Credential = "cli-begun", "app"
	if err := s.users[saga.Scheduler].Publish(t.Context(), bus.AnswerSubject("cli-begun"), begun, nil); err != nil {
		t.Fatal(err)
	}
	answer := accepted("r-2")
	answer.Reason = "rotation r-2 is cancelled"
	requests := s.answer(answer, nil)
	for _, what := range []string{"app", "r-2", "cli-begun"} {
		if stdout, _ := s.want(exitDone, "cancel", what, "--wait=false", "--reason", "wrong week"); stdout != "r-2 accepted\n" {
			t.Errorf("pawl cancel %s: stdout %q", what, stdout)
		}
		if r := <-requests; r.GetAction() != pawlv1.Action_ACTION_CANCEL || r.GetCancels() != "r-2" || r.GetReason() != "wrong week" || !strings.Contains(r.GetRequestedBy(), "@") {
			t.Errorf("pawl cancel %s asked %v", what, r)
		}
	}
	s.mustTell("r-2", cancelled)
	if stdout, stderr := s.want(exitDone, "cancel", "r-2"); stdout != "r-2 rolled-back\n" || !strings.Contains(stderr, "rotation r-2 is cancelled") {
		t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
	}
	history := decode[[]chronicle.Rotation](t, first(s.want(exitDone, "history", "app", "--json")))
	if f := history[1].Failure; history[1].Outcome != "rolled-back" || f == nil || f.Reason != "cancelled by anna@laptop: wrong week" {
		t.Errorf("history %+v", history[1])
	}
}

func TestWaitForARotationThatIsCancelledSaysByWhom(t *testing.T) {
	s := newServer(t)
	s.answer(accepted("r-2"), func() error { return s.tell("r-2", slices.Concat(rotation[:2], cancelled)) })
	if _, stderr := s.want(exitRolledBack, "rotate", "app", "--wait"); !strings.Contains(stderr, `pawl: rolled back: cancelled by anna@laptop: wrong week, at "publish"`) {
		t.Errorf("stderr:\n%s", stderr)
	}
}

func TestRequestThatWaitsIsShownAndWithdrawn(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	s.waits("cli-later")
	stdout, _ := s.want(exitDone, "status", "app")
	if text := strings.Join(strings.Fields(stdout), " "); !strings.Contains(text, "waits until ") || !strings.Contains(text, "request cli-later to rotate with jobs, by anna@laptop: the freeze ends") ||
		strings.Contains(text, "over") && strings.Contains(text, "cancelled by bob") {
		t.Errorf("status:\n%s", stdout)
	}
	status := decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "--json")))[0]
	if len(status.Waiting) != 1 || status.Waiting[0].Request != "cli-later" || !status.Waiting[0].NotBefore.Equal(saturday) || status.Waiting[0].Action != "rotate" {
		t.Errorf("status %+v", status.Waiting)
	}
	if stdout, _ := s.want(exitDone, "schedule"); !strings.Contains(stdout, "request cli-later to rotate with jobs, by anna@laptop: the freeze ends") {
		t.Errorf("schedule:\n%s", stdout)
	}
	dues := decode[[]render.Due](t, first(s.want(exitDone, "schedule", "app", "--json")))
	if last := dues[len(dues)-1]; last.Request != "cli-later" || last.At == nil || !last.At.Equal(saturday) || last.Credential != "app" {
		t.Errorf("schedule %+v", dues)
	}
	requests := s.answer(&pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_ACCEPTED, Reason: "request cli-later of app is withdrawn"}, nil)
	for _, what := range []string{"app", "cli-later"} {
		stdout, stderr := s.want(exitDone, "cancel", what)
		if r := <-requests; stdout != "cli-later withdrawn\n" || stderr != "request cli-later of app is withdrawn\n" || r.GetCancels() != "cli-later" {
			t.Errorf("pawl cancel %s: stdout %q, stderr %q, asked %v", what, stdout, stderr, r)
		}
	}
}

func TestCancelThatCouldMeanSeveralAsksWhich(t *testing.T) {
	s := newServer(t)
	if _, stderr := s.want(exitRejected, "cancel", "app"); !strings.Contains(stderr, "nothing to cancel") {
		t.Errorf("stderr %q", stderr)
	}
	s.mustTell("r-1", adoption[:2])
	s.waits("cli-later", "cli-last")
	if _, stderr := s.want(exitUsage, "cancel", "app"); !strings.Contains(stderr, "one of r-1, cli-later, cli-last") {
		t.Errorf("stderr %q", stderr)
	}
	if _, stderr := s.want(exitUsage, "cancel", "no-such-thing"); !strings.Contains(stderr, "no credential in") {
		t.Errorf("stderr %q", stderr)
	}
	s.answer(&pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_REJECTED, Reason: "rotation r-1 of app has passed its point of no return", Rotation: "r-1"}, nil)
	if stdout, stderr := s.want(exitRejected, "cancel", "r-1"); stdout != "" || stderr != "pawl: rejected: rotation r-1 of app has passed its point of no return\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

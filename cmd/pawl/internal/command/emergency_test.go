package command

import (
	"context"
	"errors"
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestCuttingALoginOffMustSayWhy(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"emergency", "lock", "unlock"} {
		if _, stderr := s.want(exitUsage, name, "app"); !strings.Contains(stderr, "--reason") {
			t.Errorf("%s: %s", name, stderr)
		}
		s.want(exitUsage, name, "app", "--reason", "  ")
		s.want(exitUsage, name, "Not A Name", "--reason", "stolen")
		if _, stderr := s.want(exitFailed, name, "app", "--reason", "stolen"); !strings.Contains(stderr, "pawl up") {
			t.Errorf("%s without a Pawl: %s", name, stderr)
		}
	}
}

func TestBreakingTheGlassNamesTheNodeThatIsAway(t *testing.T) {
	s := newSite(t) // nothing answers on its PostgreSQL, nor on its bus
	_, stderr := s.want(exitFailed, "emergency", "app", "--break-glass")
	for _, want := range []string{"not contained everywhere: coordinator", "the log knows nothing of it"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
	if _, stderr := s.want(exitUsage, "emergency", "nobody", "--break-glass"); !strings.Contains(stderr, "unknown credential") {
		t.Error(stderr)
	}
}

func TestSupersededRotationEndsTheWaitWith5(t *testing.T) {
	s := newServer(t)
	s.answer(accepted("r-2"), func() error {
		err := s.tell("r-2", rotation[:3])
		begin := requested(pawlv1.Action_ACTION_CONTAIN, saga.Emergency, 3, "r-1")
		begin.GetRequested().Supersedes = "r-2"
		return errors.Join(err, s.tell("r-3", []told{{saga.Requested, begin}}))
	})
	stdout, stderr := s.want(exitRejected, "rotate", "app", "--wait")
	if stdout != "r-2 superseded\n" || !strings.Contains(stderr, "superseded by emergency r-3; `pawl trace r-3` tells more") {
		t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
	}
	if stdout, _ := s.want(exitDone, "history", "app"); !strings.Contains(stdout, "superseded") {
		t.Errorf("history:\n%s", stdout)
	}
}

func TestEmergencySaysWhenItHasContained(t *testing.T) {
	s := newServer(t)
	s.answer(accepted("r-2"), func() error {
		return s.tell("r-2", []told{{saga.Requested, requested(pawlv1.Action_ACTION_CONTAIN, saga.Emergency, 3, "r-1")},
			{saga.Contained, &pawlv1.Event{Summary: "app refused on coordinator, 1 session ended"}}})
	})
	stdout, stderr := s.want(exitDone, "emergency", "app", "--reason", "stolen")
	if stdout != "r-2\n" || !strings.Contains(stderr, "contained: app refused on coordinator, 1 session ended") {
		t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
	}
}

func TestEmergencyThatIsNotHeardOfFailsAndTellsWhatIsInTheWay(t *testing.T) {
	s := newServer(t)
	s.answer(accepted("r-2"), func() error {
		err := s.tell("r-2", []told{{saga.Requested, requested(pawlv1.Action_ACTION_CONTAIN, saga.Emergency, 3, "r-1")}})
		note := &pawlv1.Note{Kind: "retrying", Credential: "app", Rotation: "r-2", Step: "contain", Text: "coordinator: connection refused"}
		return errors.Join(err, s.users[saga.DBRotator].Publish(context.Background(), bus.NoteSubject(saga.DBRotator), note, nil))
	})
	stdout, stderr := s.want(exitFailed, "emergency", "app", "--reason", "stolen")
	if stdout != "r-2\n" || !strings.Contains(stderr, "coordinator: connection refused") || !strings.Contains(stderr, "not heard within 10s that it is contained") {
		t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
	}
}

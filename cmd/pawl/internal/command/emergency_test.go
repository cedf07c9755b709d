package command

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

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
		if _, stderr := s.want(exitFailed, name, "app", "--reason", "stolen"); !strings.Contains(stderr, "pawl up") || name != "unlock" && !strings.Contains(stderr, "`pawl emergency app --break-glass`") {
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

// TestEmergencyThatNobodyAcceptsHangsInSilence: the bus takes the request, and nobody
// answers it, as where the stream of the log has no room left.
func TestEmergencyThatNobodyAcceptsHangsInSilence(t *testing.T) {
	s := newServer(t)
	s.late = acceptedWithin + time.Second
	s.answer(accepted("r-2"), func() error {
		return s.tell("r-2", []told{{saga.Requested, requested(pawlv1.Action_ACTION_CONTAIN, saga.Emergency, 3, "r-1")},
			{saga.Contained, &pawlv1.Event{Summary: "app refused on coordinator"}}})
	})
	stdout, stderr := s.want(exitDone, "emergency", "app", "--reason", "stolen")
	if stdout != "r-2\n" || !strings.Contains(stderr, "nobody has accepted it") || !strings.Contains(stderr, "`pawl emergency app --break-glass` works without the bus") || !strings.Contains(stderr, "contained: ") {
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
	if stdout != "r-2\n" || !strings.Contains(stderr, "coordinator: connection refused") || !strings.Contains(stderr, "r-2 is accepted and not contained after 3s; still waiting. To refuse the logins without Pawl and NATS: `pawl emergency app --break-glass`") || !strings.Contains(stderr, "not heard within 10s that it is contained") {
		t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
	}
}

// Whoever waits in an emergency is told what for, and what to do if nobody answers.
func TestEmergencyThatNobodyAnswersNamesBreakGlassWhileItWaits(t *testing.T) {
	s := newServer(t) // of which no scheduler is connected
	for _, command := range []string{"emergency", "lock"} {
		ctx, cancel := context.WithCancel(t.Context())
		from, stderr := io.Pipe()
		ended := make(chan int, 1)
		go func() {
			code := Run(ctx, []string{"-c", s.inv.File, command, "app", "--reason", "stolen"}, io.Discard, stderr)
			stderr.Close()
			ended <- code
		}()
		lines := bufio.NewScanner(from)
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "asking Pawl to refuse the logins of app") {
			t.Errorf("%s: said first %q", command, lines.Text())
		}
		if !lines.Scan() || !strings.Contains(lines.Text(), "pawl emergency app --break-glass") || len(ended) > 0 {
			t.Errorf("%s: said while it waits %q", command, lines.Text())
		}
		cancel()
		for lines.Scan() { // the command would wait for a reader
		}
		if code := <-ended; code == exitDone {
			t.Errorf("%s: exit code 0", command)
		}
	}
}

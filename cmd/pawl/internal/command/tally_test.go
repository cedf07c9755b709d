package command

import (
	"errors"
	"strings"
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

// TestExitCodeOfSeveralIsThatOfTheWorst: 3 rolled back, 4 stalled, 5 rejected or
// superseded, and 1 if not all is known.
func TestExitCodeOfSeveralIsThatOfTheWorst(t *testing.T) {
	done := part{Credential: "done", Outcome: "completed", over: true}
	rolledBack := part{Credential: "back", Outcome: "rolled-back", Reason: "publish: read-only", over: true, bad: true}
	stalled := part{Credential: "stuck", Outcome: chronicle.Stalled, Reason: "no answer", stalled: true}
	rejected := part{Credential: "refused", Outcome: "rejected", Reason: "not begun", over: true, bad: true}
	superseded := part{Credential: "ended", Outcome: chronicle.Superseded, Reason: "by r-5", over: true, bad: true}
	running := part{Credential: "running", Outcome: "requested"}
	for name, c := range map[string]struct {
		parts    []part
		finished bool
		code     int
		outcome  string
		want     []string
	}{
		"rolled back":           {[]part{done, rolledBack}, true, exitRolledBack, "failed", []string{"1 credential did not end well: back (rolled-back: publish: read-only)"}},
		"stalled":               {[]part{done, rolledBack, stalled}, true, exitStalled, chronicle.Stalled, []string{"stuck (stalled: no answer)"}},
		"rejected":              {[]part{done, rolledBack, stalled, rejected}, true, exitRejected, chronicle.Stalled, []string{"3 credentials did not end well"}},
		"superseded":            {[]part{superseded}, true, exitRejected, "failed", []string{"ended (superseded: by r-5)"}},
		"unfinished":            {[]part{done, running}, false, exitFailed, chronicle.Running, []string{"1 credential not done yet (running)"}},
		"unfinished and failed": {[]part{running, rejected}, false, exitRejected, chronicle.Running, []string{"1 credential not done yet (running)", "1 credential did not end well: refused (rejected: not begun)"}},
	} {
		r := &severalResult{Run: "run-1"}
		for _, p := range c.parts {
			r.Credentials = append(r.Credentials, &p)
		}
		err := r.judge(c.finished, true)
		var with exit
		if !errors.As(err, &with) || with.code != c.code || r.Outcome != c.outcome {
			t.Errorf("%s: %s, exit %d, want %s, %d (%v)", name, r.Outcome, with.code, c.outcome, c.code, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in %v", name, want, err)
			}
		}
	}
}

// TestServerThatIsReachedLaterIsNoLongerPending: released says so.
func TestServerThatIsReachedLaterIsNoLongerPending(t *testing.T) {
	tally := newTally([]string{"app"}, true)
	p := tally.parts["app"]
	p.Rotation = "r-1"
	for i, e := range []saga.Event{saga.Requested, saga.Contained, saga.Released} {
		body := &pawlv1.Event{}
		if e == saga.Contained {
			body.Detail = &pawlv1.Event_Contained{Contained: &pawlv1.Contained{Pending: map[string]string{"worker-1": "away"}}}
		}
		tally.take(bus.Entry{Credential: "app", Rotation: "r-1", Event: &bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(i + 1)}, Body: body}})
		if pending := e == saga.Contained; pending != (len(p.Pending) > 0) || pending != (tally.counts().Pending == 1) {
			t.Errorf("after %s: pending %v", e, p.Pending)
		}
	}
}

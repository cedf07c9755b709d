package command

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// grouped tells what each of three went through under one rotation id.
func (s *site) grouped(id string, stories map[string][]told) error {
	for _, name := range []string{"app", "jobs", "web"} {
		for i, e := range stories[name] {
			body := proto.CloneOf(e.body)
			if i == 0 {
				body.GetRequested().Group = []string{"app", "jobs", "web"}
			}
			if err := s.eventOf(name, id, e.event, body); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestWaitingForAGroupEndsWithTheWorstOutcome(t *testing.T) {
	for _, c := range []struct {
		jobs, web []told
		stalls    bool
		code      int
		outcome   string
		stderr    string
	}{
		{rotation, rotation, false, exitDone, "completed", "confirmed"},
		{failing, rotation, false, exitRolledBack, "rolled-back", `pawl: jobs: rolled back, since "publish" failed`},
		{failing, rotation[:5], true, exitStalled, "stalled", "pawl: web: rotation r-2 is stalled: web waits for api"},
	} {
		s := newServer(t)
		requests := s.answer(accepted("r-2"), func() error {
			err := s.grouped("r-2", map[string][]told{"app": rotation, "jobs": c.jobs, "web": c.web})
			if err == nil && c.stalls {
				note := &pawlv1.Note{Kind: "stalled", Credential: "web", Rotation: "r-2", Step: "retire", Text: "web waits for api"}
				err = s.users[saga.Scheduler].Publish(context.Background(), bus.NoteSubject(saga.Scheduler), note, nil)
			}
			return err
		})
		stdout, stderr := s.want(c.code, "rotate", "app", "web", "jobs", "web", "--wait")
		if stdout != "r-2 "+c.outcome+"\n" || !strings.Contains(stderr, c.stderr) {
			t.Errorf("stdout %q\nstderr:\n%s", stdout, stderr)
		}
		if got := (<-requests).GetWith(); strings.Join(got, " ") != "jobs web" {
			t.Errorf("asked with %v", got)
		}
	}
}

func TestTraceStatusAndHistoryOfAGroup(t *testing.T) {
	s := newServer(t)
	if err := s.grouped("r-2", map[string][]told{"app": rotation, "jobs": failing, "web": rotation[:5]}); err != nil {
		t.Fatal(err)
	}
	note := &pawlv1.Note{Kind: "waiting", Credential: "web", Rotation: "r-2", Step: "retire", Text: "web alone waits"}
	if err := s.users[saga.DBRotator].Publish(t.Context(), bus.NoteSubject(saga.DBRotator), note, nil); err != nil {
		t.Fatal(err)
	}
	text, _ := s.want(exitDone, "trace", "r-2")
	if strings.Count(text, "web alone waits") != 1 || strings.Count(text, "together with") != 3 || !strings.Contains(text, ".env is read-only") {
		t.Errorf("trace:\n%s", text)
	}
	all := decode[[]chronicle.Timeline](t, first(s.want(exitDone, "trace", "r-2", "--json")))
	if len(all) != 3 || all[0].Credential != "app" || all[1].Outcome != "rolled-back" || all[2].Outcome != chronicle.Running || len(all[0].Notes) != 0 || len(all[2].Notes) != 1 {
		t.Errorf("trace %+v", all)
	}
	history := decode[[]chronicle.Rotation](t, first(s.want(exitDone, "history", "app", "--json")))
	if len(history) != 1 || len(history[0].Group) != 3 || history[0].Outcome != "completed" {
		t.Errorf("history %+v", history)
	}
	if status := decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "app", "--json")))[0]; status.Note != nil || status.Last.ID != "r-2" {
		t.Errorf("status %+v", status)
	}
}

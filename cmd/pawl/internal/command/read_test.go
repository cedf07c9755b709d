package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/cmd/pawl/internal/render"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// readUntil returns the lines up to the first that contains text.
func readUntil(t *testing.T, r io.Reader, text string) string {
	t.Helper()
	var seen strings.Builder
	one := make([]byte, 1) // not a byte more than asked for
	line := ""
	for {
		if _, err := r.Read(one); err != nil {
			t.Fatalf("ended before %q: %v\n%s", text, err, seen.String())
		}
		line += string(one)
		if one[0] != '\n' {
			continue
		}
		seen.WriteString(line)
		if strings.Contains(line, text) {
			return seen.String()
		}
		line = ""
	}
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return v
}

func TestStatusHistoryAndTraceTellTheLog(t *testing.T) {
	s := newServer(t)
	if stdout, stderr := s.want(exitDone, "history", "app", "--json"); stdout != "[]\n" || !strings.Contains(stderr, "never had a rotation") {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	if got := decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "--json"))); got[0].State != chronicle.NotAdopted {
		t.Errorf("status %+v", got)
	}
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", failing)
	s.mustTell("r-3", rotation[:5])
	note := &pawlv1.Note{Kind: "waiting", Credential: "app", Rotation: "r-3", Step: "retire", Text: "app is still in use", Laggards: []string{"api (2 sessions)"}}
	if err := s.users[saga.DBRotator].Publish(t.Context(), bus.NoteSubject(saga.DBRotator), note, nil); err != nil {
		t.Fatal(err)
	}

	status := decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "app", "--json")))[0]
	if status.State != chronicle.Running || status.Step != "retire" || status.Login != "app" || status.NextDue == nil || status.Note == nil || status.Note.Laggards[0] != "api (2 sessions)" {
		t.Errorf("status %+v", status)
	}
	if stdout, _ := s.want(exitDone, "status"); !strings.Contains(stdout, "running: retire") || !strings.Contains(stdout, "api (2 sessions)") {
		t.Errorf("status:\n%s", stdout)
	}
	history := decode[[]chronicle.Rotation](t, first(s.want(exitDone, "history", "app", "--json")))
	if len(history) != 3 || history[0].Flow != saga.Adopt || history[1].Outcome != "rolled-back" || history[1].Failure.Step != "publish" || history[2].Outcome != chronicle.Running {
		t.Errorf("history %+v", history)
	}
	if stdout, _ := s.want(exitDone, "history", "app"); strings.Count(stdout, "\n") != 4 || !strings.Contains(stdout, ".env is read-only") {
		t.Errorf("history:\n%s", stdout)
	}
	trace, _ := s.want(exitDone, "trace", "r-2")
	for _, want := range []string{"✗ publish", "↩ restore", "alter role", "http://127.0.0.1:16686/trace/4bf92f3577b34da6a3ce929d0e0e4736"} {
		if !strings.Contains(trace, want) {
			t.Errorf("no %q in:\n%s", want, trace)
		}
	}
	if strings.Contains(trace, "\x1b") {
		t.Error("colour without a terminal")
	}
	if timeline := decode[chronicle.Timeline](t, first(s.want(exitDone, "trace", "r-3", "--json"))); len(timeline.Steps) != 5 || len(timeline.Notes) != 1 {
		t.Errorf("trace %+v", timeline)
	}
	s.want(exitFailed, "trace", "r-9")
	s.want(exitUsage, "status", "ap")
	s.want(exitUsage, "history", "ap")
}

func first(stdout, _ string) string { return stdout }

func TestStatusKnowsHowLongThePredecessorIsKept(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", rotation)
	status := decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "--json")))[0]
	if status.State != chronicle.Idle || status.Login != "app_b" || status.KeptUntil == nil || status.Generation != 2 {
		t.Errorf("status %+v", status)
	}
	s.mustTell("r-3", rollback)
	status = decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "--json")))[0]
	if status.State != chronicle.Idle || status.Login != "app" || status.KeptUntil != nil {
		t.Errorf("after the rollback: %+v", status)
	}
}

// TestStatusTellsDriftUntilItIsOver, also what began before anything that is open.
func TestStatusTellsDriftUntilItIsOver(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	note := func(service, kind, text string) {
		n := &pawlv1.Note{Kind: kind, Credential: "app", Text: text}
		if kind == "configuration" {
			n.Credential = ""
		}
		if err := s.users[service].Publish(t.Context(), bus.NoteSubject(service), n, nil); err != nil {
			t.Fatal(err)
		}
	}
	wantDrift := func(want ...string) {
		t.Helper()
		var got []string
		for _, d := range decode[[]chronicle.Status](t, first(s.want(exitDone, "status", "app", "--json")))[0].Drift {
			got = append(got, d.Text)
		}
		if !slices.Equal(got, want) {
			t.Errorf("drift %q, want %q", got, want)
		}
	}
	note(saga.DBRotator, "drift", "coordinator: it may not log in")
	note(saga.DBRotator, "drift", "coordinator: it has another password")
	note(saga.DBRotator, "drift", "worker-1: it does not exist")
	wantDrift("coordinator: it has another password", "worker-1: it does not exist")
	if stdout, _ := s.want(exitDone, "status"); !strings.Contains(stdout, "app: drift: coordinator: it has another password") {
		t.Errorf("status:\n%s", stdout)
	}
	note(saga.DBRotator, "repaired", "worker-1 had lost it")
	wantDrift("coordinator: it has another password")
	note(saga.SecretPublisher, "configuration", "loaded")
	wantDrift("coordinator: it has another password")
	note(saga.DBRotator, "drift over", "coordinator holds what it should again")
	wantDrift()
	note(saga.DBRotator, "drift", "coordinator: it has another password")
	note(saga.DBRotator, "configuration", "loaded")
	wantDrift()
}

func TestPositionPartsWhatIsReadFromWhatIsFollowed(t *testing.T) {
	s := newServer(t)
	operator, err := bus.For(s.inv, bus.Operator)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Connect(s.inv, operator)
	if err != nil {
		t.Fatal(err)
	}
	defer c.NATS.Close()
	s.mustTell("r-1", adoption)
	now, err := c.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.mustTell("r-2", failing)
	before, err := c.Since(t.Context(), time.Now().Add(-time.Hour), now)
	if err != nil || len(before) != len(adoption) || before[0].Rotation != "r-1" {
		t.Errorf("%d events before (%v), want %d", len(before), err, len(adoption))
	}
	entries := c.Follow(t.Context(), "*", "*", now)
	for _, want := range failing {
		if e := <-entries; e.Rotation != "r-2" || e.Event.Event != want.event {
			t.Errorf("followed %s of %s, want %s of r-2", e.Event.Event, e.Rotation, want.event)
		}
	}
}

func TestWatchBeginsAtOnceOrEarlier(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	for _, c := range []struct {
		args  []string
		first string // event
	}{{nil, string(saga.Requested)}, {[]string{"--since", "1h"}, string(saga.Requested)}} {
		ctx, interrupt := context.WithCancel(t.Context())
		outReader, stdout := io.Pipe()
		errReader, stderr := io.Pipe()
		code := make(chan int, 1)
		go func() {
			code <- Run(ctx, append([]string{"watch", "app", "--json", "-c", s.config}, c.args...), stdout, stderr)
			stdout.Close()
		}()
		lines := make(chan chronicle.Line, 64)
		go func() {
			defer close(lines)
			for scanner := bufio.NewScanner(outReader); scanner.Scan(); {
				var l chronicle.Line
				if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
					t.Error(err)
				}
				lines <- l
			}
		}()
		readUntil(t, errReader, "watching")
		id := "r-2" + strings.Join(c.args, "")
		id = strings.ReplaceAll(id, "--since", "-since-")
		s.mustTell(id, failing)
		var rotations []string
		for l := range lines {
			if l.Event == string(saga.Requested) {
				rotations = append(rotations, l.Rotation)
			}
			if l.Rotation == id && l.Event == string(saga.RolledBack) {
				break
			}
		}
		interrupt()
		for range lines {
			continue
		}
		if got := <-code; got != exitDone {
			t.Errorf("exit code %d", got)
		}
		want := []string{id}
		if c.args != nil {
			want = []string{"r-1", "r-2", id}
		}
		if strings.Join(rotations, " ") != strings.Join(want, " ") {
			t.Errorf("watch %v saw %v, want %v", c.args, rotations, want)
		}
	}
}

// play answers doctor's question to a service.
func (s *site) play(service string, checks ...*pawlv1.Check) {
	s.t.Helper()
	body, err := bus.Encode(&pawlv1.Findings{Checks: checks})
	if err != nil {
		s.t.Fatal(err)
	}
	b := s.users[service]
	sub, err := b.NATS.Subscribe(bus.ExamineSubject(service, "*"), func(m *nats.Msg) {
		if err := m.Respond(body); err != nil {
			s.t.Error(err)
		}
	})
	if err == nil {
		err = b.NATS.Flush()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = sub.Unsubscribe() }) // the server is about to end
}

// healthy answers the question what keeps services from working.
func (s *site) healthy(service string, checks ...*pawlv1.Check) (missing func()) {
	s.t.Helper()
	body, err := bus.Encode(&pawlv1.Findings{Checks: append([]*pawlv1.Check{{Service: service, Target: "vm/1", Finding: "v1", Topic: "running"}}, checks...)})
	if err != nil {
		s.t.Fatal(err)
	}
	b := s.users[service]
	sub, err := b.NATS.Subscribe(bus.HealthSubject(service), func(m *nats.Msg) {
		if err := m.Respond(body); err != nil {
			s.t.Error(err)
		}
	})
	if err == nil {
		err = b.NATS.Flush()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return func() {
		if err := errors.Join(sub.Unsubscribe(), b.NATS.Flush()); err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestDoctorNamesWhatDisagrees(t *testing.T) {
	sink := func(text string) *pawlv1.Check {
		return &pawlv1.Check{Service: saga.SecretPublisher, Target: "dotenv:.env", Finding: text}
	}
	node := func(text string) *pawlv1.Check {
		return &pawlv1.Check{Service: saga.DBRotator, Target: "coordinator", Finding: text}
	}
	used := func(text string) *pawlv1.Check {
		return &pawlv1.Check{Service: saga.Verifier, Target: "coordinator", Finding: text}
	}
	sound := []*pawlv1.Check{sink("holds bbbbbbbbbbbb of app_b"), node(`role "app_b" may log in, with the password of generation 2 (rotation r-2)`), used(`api: 2 sessions as "app_b"`)}
	unsound := node(`role "app_b" may log in, with a password that Pawl does not know`)
	unsound.Refused = true
	s := newServer(t)
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", rotation)
	for _, name := range saga.Services {
		s.healthy(name)
	}
	for name, c := range map[string]struct {
		sink, node, used *pawlv1.Check
		code             int
		stdout           string
	}{
		"agree":         {sound[0], sound[1], sound[2], exitDone, "all agree"},
		"old sink":      {sink("holds aaaaaaaaaaaa of app"), sound[1], sound[2], exitFailed, "✗ secret-publisher  dotenv:.env  holds aaaaaaaaaaaa of app: not the current login"},
		"idle lookup":   {sink(`login "app" has aaaaaaaaaaaa`), sound[1], sound[2], exitDone, "all agree"},
		"sound lookup":  {sink(`login "app_b" has the nodes' verifier of bbbbbbbbbbbb`), sound[1], sound[2], exitDone, "all agree"},
		"old lookup":    {sink(`login "app_b" has a verifier that Pawl did not set`), sound[1], sound[2], exitFailed, "a verifier that Pawl did not set: not the"},
		"old password":  {sound[0], node(`role "app_b" may log in, with the password of generation 1 (rotation r-1)`), sound[2], exitFailed, "not the current password"},
		"old login":     {sound[0], sound[1], used(`api: 2 sessions as "app"`), exitFailed, `not the current login "app_b"`},
		"service's own": {sound[0], unsound, sound[2], exitFailed, "✗ db-rotator        coordinator  role"},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			s.play(saga.SecretPublisher, c.sink)
			s.play(saga.DBRotator, c.node)
			s.play(saga.Verifier, c.used)
			stdout, _ := s.want(c.code, "doctor", "app")
			if !strings.Contains(stdout, c.stdout) {
				t.Errorf("no %q in:\n%s", c.stdout, stdout)
			}
			if report := decode[[]render.Doctor](t, first(s.want(c.code, "doctor", "--json"))); report[0].Agrees != (c.code == exitDone) {
				t.Errorf("report %+v", report)
			}
		})
	}
}

func TestDoctorMissesAServiceAndDuringARotationExpectsOldAndNew(t *testing.T) {
	s := newServer(t)
	if stdout, stderr := s.want(exitFailed, "doctor", "app"); strings.Count(stdout, "is not running") != 3 || !strings.Contains(stderr, "disagreement: app") {
		t.Errorf("stdout %s\nstderr %s", stdout, stderr)
	}
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", rotation[:4])
	for _, name := range saga.Services {
		s.healthy(name)
	}
	s.play(saga.SecretPublisher, &pawlv1.Check{Service: saga.SecretPublisher, Target: "dotenv:.env", Finding: "holds bbbbbbbbbbbb of app_b"})
	s.play(saga.DBRotator)
	s.play(saga.Verifier, &pawlv1.Check{Service: saga.Verifier, Target: "coordinator", Finding: `api: 2 sessions as "app_b"`})
	if stdout, _ := s.want(exitDone, "doctor", "app"); !strings.Contains(stdout, "under way") {
		t.Errorf("stdout %s", stdout)
	}
}

package render

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/internal/terminal"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var update = flag.Bool("update", false, "rewrite testdata")

var noon = time.Date(2026, 7, 26, 12, 0, 0, 0, time.UTC)

func ms(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }

// story builds the log of one rotation.
type story struct {
	bus.Log
	at time.Time
}

func begin(id, flow string, action pawlv1.Action) *story {
	header := nats.Header{"traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}
	s := &story{Log: bus.Log{Credential: "ruvector-app", Rotation: id}, at: noon}
	return s.add(saga.Requested, header, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{
		Action: action, Flow: flow, Generation: 7, Basis: "20260626-120000-aaaaa", BasisUser: "dpg_cluster", BasisGeneration: 6, Role: "dpg_cluster",
		RequestedBy: "anna@laptop", Reason: "quarterly rotation", Keep: durationpb.New(time.Hour), Drain: durationpb.New(2 * time.Minute), DrainDeadline: durationpb.New(24 * time.Hour)}}})
}

func (s *story) add(e saga.Event, header nats.Header, body *pawlv1.Event) *story {
	s.Records = append(s.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(len(s.Records) + 1), At: s.at}, Header: header, Body: body})
	return s
}

// step waits, works and appends.
func (s *story) step(e saga.Event, wait, work time.Duration, attempt uint32, body *pawlv1.Event) *story {
	if body == nil {
		body = &pawlv1.Event{}
	}
	started := s.at.Add(wait)
	s.at = started.Add(work)
	body.StartedAt, body.Attempt, body.Instance = timestamppb.New(started), attempt, "node-1/42"
	for i, op := range body.Operations {
		share := work / time.Duration(len(body.Operations))
		op.StartedAt, op.Duration = timestamppb.New(started.Add(time.Duration(i)*share)), durationpb.New(share*9/10)
	}
	return s.add(e, nil, body)
}

func did(pairs ...string) *pawlv1.Event {
	e := &pawlv1.Event{}
	for i := 0; i < len(pairs); i += 2 {
		e.Operations = append(e.Operations, &pawlv1.Operation{Name: pairs[i], Target: pairs[i+1]})
	}
	return e
}

func failed(e *pawlv1.Event, step, reason string) *pawlv1.Event {
	if n := len(e.Operations); n > 0 {
		e.Operations[n-1].Error = reason
	}
	e.Detail = &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: step, Reason: reason}}
	return e
}

func staged() *pawlv1.Event {
	e := did("open envelope", "20260726-120000-k3q7x", "seal", "verifier", "alter role", "coordinator")
	e.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: "dpg_cluster_b", Fingerprint: "abcdefghijkl"}}
	return e
}

func note(s *story, at time.Duration, kind, step, text string, laggards ...string) bus.Entry {
	return bus.Entry{At: noon.Add(at), Credential: s.Credential, Rotation: s.Rotation, Service: saga.DBRotator,
		Note: &pawlv1.Note{Kind: kind, Credential: s.Credential, Rotation: s.Rotation, Step: step, Text: text, Laggards: laggards}}
}

func completed() *story {
	published := did("check sink", "dotenv:/srv/applications/ruvector/production/.env", "write sink", "dotenv:/srv/applications/ruvector/production/.env")
	published.Warnings = []string{"/srv/applications/ruvector/production/.env is tracked by git: take it out of the index with git rm --cached"}
	return begin("20260726-120000-k3q7x", saga.Alternating, pawlv1.Action_ACTION_ROTATE).
		step(saga.Staged, ms(3), ms(38), 1, staged()).
		step(saga.Published, ms(2), ms(21), 1, published).
		step(saga.Restarted, ms(2), ms(2310), 3, did("restart", "api", "health", "api", "restart", "worker", "health", "worker")).
		step(saga.Verified, ms(3), ms(140), 1, did("log in", "coordinator", "probe", "coordinator sql", "prove consumer", "api")).
		step(saga.Retired, 2*time.Minute, ms(18), 5, did("alter role", "coordinator")).
		step(saga.Confirmed, ms(1), ms(6), 1, did("read catalogue", "coordinator")).
		step(saga.Completed, ms(1), ms(1), 1, nil).
		step(saga.Erased, time.Hour, ms(12), 1, did("erase password", "coordinator", "purge", "20260626-120000-aaaaa"))
}

func rolledBack() *story {
	return begin("20260726-120000-f4n2p", saga.InPlace, pawlv1.Action_ACTION_ROTATE).
		step(saga.Staged, ms(3), ms(38), 1, staged()).
		step(saga.PublishFailed, ms(400), ms(9), 4, failed(did("check sink", "dotenv:/srv/.env", "write sink", "dotenv:/srv/.env"), "publish", "/srv/.env: open /srv/.pawl-1234: permission denied: let the user pawl write in /srv")).
		step(saga.Unstaged, ms(2), ms(20), 1, did("alter role", "coordinator")).
		step(saga.Restored, ms(2), ms(5), 1, did("read sink", "dotenv:/srv/.env")).
		step(saga.RolledBack, ms(2), ms(1), 1, nil)
}

func running() *story {
	return begin("20260726-120000-w8d3e", saga.Alternating, pawlv1.Action_ACTION_ROTATE).
		step(saga.Staged, ms(3), ms(38), 1, staged()).
		step(saga.Published, ms(2), ms(21), 1, did("write sink", "file:/run/dsn")).
		step(saga.Restarted, ms(2), ms(310), 1, nil).
		step(saga.Verified, ms(3), ms(140), 1, nil)
}

func inPlace() *story {
	proof := did("log in", "coordinator")
	proof.Detail = &pawlv1.Event_Proof{Proof: &pawlv1.Proof{Outage: durationpb.New(ms(312))}}
	return begin("20260726-120000-p6m4a", saga.InPlace, pawlv1.Action_ACTION_ROTATE).
		step(saga.Staged, ms(3), ms(38), 1, staged()).step(saga.Published, ms(2), ms(21), 1, nil).step(saga.Restarted, ms(2), ms(310), 1, nil).
		step(saga.Verified, ms(3), ms(40), 1, proof).step(saga.Retired, ms(1), ms(2), 1, nil).step(saga.Confirmed, ms(1), ms(2), 1, nil).
		step(saga.Completed, ms(1), ms(1), 1, nil)
}

func timedOut() *story {
	s := begin("20260726-120000-t5h9c", saga.Alternating, pawlv1.Action_ACTION_ROTATE).step(saga.Staged, ms(3), ms(38), 1, staged())
	s.at = s.at.Add(time.Minute)
	s.add(saga.TimedOut, nil, failed(&pawlv1.Event{}, "publish", `secret-publisher did not end "publish" within 1m0s`))
	return s.step(saga.Restored, ms(2), ms(30), 1, nil).step(saga.Unstaged, ms(2), ms(20), 1, nil).step(saga.RolledBack, ms(1), ms(1), 1, nil)
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (run with -update to accept):\n%s", path, got)
	}
}

func TestWaterfall(t *testing.T) {
	draining, now := running(), noon.Add(25*time.Hour)
	for name, c := range map[string]struct {
		story *story
		notes []bus.Entry
		now   time.Time
		style Style
	}{
		"completed":   {story: completed(), now: noon.Add(2 * time.Hour), notes: []bus.Entry{note(completed(), 30*time.Second, "waiting", "retire", "dpg_cluster is still in use", "api (2 sessions)"), note(rolledBack(), time.Second, "retrying", "x", "another rotation's")}},
		"kept":        {story: func() *story { s := completed(); s.Records = s.Records[:8]; return s }(), now: noon.Add(10 * time.Minute)},
		"rolled-back": {story: rolledBack(), now: noon.Add(time.Hour)},
		"in-place":    {story: inPlace(), now: noon.Add(time.Minute)},
		"timed-out":   {story: timedOut(), now: noon.Add(time.Hour)},
		"stalled": {story: draining, now: now, notes: []bus.Entry{
			note(draining, 2*time.Second, "waiting", "retire", "dpg_cluster is still in use", "api (2 sessions)", "psql (1 session)"),
			note(draining, 24*time.Hour, "stalled", "retire", `db-rotator has been trying "retire" since 2026-07-26T12:00:00Z and goes on; see docs/runbooks/stalled.md; on_call: devops-oncall@example.org`)}},
		"just-begun": {story: begin("20260726-120000-b2b2b", saga.Adopt, pawlv1.Action_ACTION_ADOPT), now: noon.Add(ms(40))},
		"colour":     {story: rolledBack(), now: noon.Add(time.Hour), style: Style{Color: true, Width: 80}},
	} {
		t.Run(name, func(t *testing.T) {
			timeline, err := chronicle.NewTimeline(c.story.Log, c.notes, "http://127.0.0.1:16686/", c.now)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := Waterfall(terminal.New(&out), timeline, c.style); err != nil {
				t.Fatal(err)
			}
			golden(t, "waterfall-"+name+".txt", out.Bytes())
			for line := range strings.Lines(out.String()) {
				if !c.style.Color && utf8.RuneCountInString(line) > 101 {
					t.Errorf("more than 100 columns: %s", line)
				}
			}
			if name == "completed" {
				out.Reset()
				if err := JSON(&out, timeline); err != nil {
					t.Fatal(err)
				}
				golden(t, "trace.json", out.Bytes())
			}
		})
	}
}

// Clocks of two machines differ: a bar must not begin before the axis does, nor
// a duration be negative.
func TestWaterfallSurvivesSkewedClocks(t *testing.T) {
	s := rolledBack()
	for i, r := range s.Records[1:] {
		skew := time.Duration(1-2*(i%2)) * time.Hour
		r.Body.StartedAt = timestamppb.New(r.Body.StartedAt.AsTime().Add(skew))
		for _, op := range r.Body.Operations {
			op.StartedAt = timestamppb.New(op.StartedAt.AsTime().Add(skew))
		}
	}
	steps, err := chronicle.Steps(s.Log)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		if step.Started != nil && (step.Started.Before(step.Due) || step.Started.After(*step.Ended)) {
			t.Errorf("%s: due %v, started %v, ended %v", step.Name, step.Due, step.Started, step.Ended)
		}
	}
	timeline, err := chronicle.NewTimeline(s.Log, nil, "", noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := Waterfall(&bytes.Buffer{}, timeline, Style{}); err != nil {
		t.Fatal(err)
	}
}

// Every log that the tables allow can be told, and none loses an event.
func TestEveryFlowCanBeTold(t *testing.T) {
	saga.Walk(func(entries []saga.Entry, s saga.State, _ *saga.Step) {
		told := begin("20260726-120000-aaaaa", s.Flow.Name, pawlv1.Action_ACTION_ROTATE)
		for _, e := range entries[1:] {
			told.step(e.Event, ms(1), ms(1), 1, nil)
		}
		steps, err := chronicle.Steps(told.Log)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range entries[1:] {
			if steps[i].Event != string(e.Event) {
				t.Errorf("%s: step %d ends with %q, not %q", s.Flow.Name, i, steps[i].Event, e.Event)
			}
		}
		timeline, err := chronicle.NewTimeline(told.Log, nil, "", told.at)
		if err != nil {
			t.Fatal(err)
		}
		if err := Waterfall(&bytes.Buffer{}, timeline, Style{}); err != nil {
			t.Fatal(err)
		}
	})
}

// locked is a lock with its first n events.
func locked(n int) *story {
	s := begin("20260726-120000-k3q7x", saga.Lock, pawlv1.Action_ACTION_LOCK)
	s.step(saga.Contained, 0, ms(100), 1, &pawlv1.Event{Detail: &pawlv1.Event_Contained{Contained: &pawlv1.Contained{Logins: []string{"dpg_cluster"}}}})
	s.step(saga.Completed, 0, ms(5), 1, nil)
	s.Records = s.Records[:n]
	return s
}

func TestStatusTable(t *testing.T) {
	credential := &inventory.Credential{Name: "ruvector-app", RotateEvery: 30 * 24 * time.Hour}
	made := func(string) (time.Time, error) { return noon.Add(-31 * 24 * time.Hour), nil }
	var all []chronicle.Status
	for _, c := range []struct {
		log bus.Log
		now time.Time
	}{
		{bus.Log{}, noon}, {running().Log, noon.Add(time.Minute)}, {running().Log, noon.Add(25 * time.Hour)},
		{bus.Log{Credential: "ruvector-app", Rotation: "20260726-120000-k3q7x", Records: completed().Records[:8]}, noon.Add(10 * time.Minute)},
		{completed().Log, noon.Add(2 * time.Hour)}, {rolledBack().Log, noon.Add(2 * time.Minute)},
		{locked(2).Log, noon.Add(time.Minute)}, {locked(3).Log, noon.Add(time.Hour)},
	} {
		s, err := chronicle.NewStatus(credential, c.log, made, c.now)
		if err != nil {
			t.Fatal(err)
		}
		s.Explain([]bus.Entry{note(running(), time.Second, "waiting", "retire", "dpg_cluster is still in use", "api (2 sessions)")})
		all = append(all, s)
	}
	var out bytes.Buffer
	if err := StatusTable(&out, all, Style{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.txt", out.Bytes())
	out.Reset()
	if err := JSON(&out, all); err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", out.Bytes())
}

func TestTables(t *testing.T) {
	var rotations []chronicle.Rotation
	for _, s := range []*story{completed(), rolledBack(), running()} {
		r, err := chronicle.NewRotation(s.Log, noon.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		rotations = append(rotations, r)
	}
	plan := NewPlan(&pawlv1.Answer{Credential: "ruvector-app", Outcome: pawlv1.Outcome_OUTCOME_REJECTED, Reason: "…", Plan: []*pawlv1.Check{
		{Service: saga.DBRotator, Target: "coordinator", Finding: "PostgreSQL 17, 88 free connection slots"},
		{Service: saga.DBRotator, Target: "coordinator", Finding: "warning: fsync is off"},
		{Service: saga.SecretPublisher, Target: "dotenv:/srv/.env", Finding: "cannot be written: let the user pawl write in /srv, or name another path", Refused: true},
		{Service: saga.DBRotator, Target: "stage", Finding: "step: give the idle login a new verifier"},
		{Service: saga.SecretPublisher, Target: "publish", Finding: "step: write the new login to every sink"}}})
	doctor := Doctor{Credential: "ruvector-app", Expected: "dpg_cluster_b of rotation 20260726-120000-k3q7x abcdefghijkl",
		Published: []Finding{{saga.SecretPublisher, "dotenv:/srv/.env", "holds abcdefghijkl of dpg_cluster_b", false}},
		Stored:    []Finding{{saga.DBRotator, "coordinator", `role "dpg_cluster_b" may log in, with a password that Pawl does not know`, true}}}
	for name, write := range map[string]func(*bytes.Buffer) error{
		"history.txt": func(b *bytes.Buffer) error { return History(b, rotations, Style{}) },
		"plan.txt":    func(b *bytes.Buffer) error { return PlanTable(b, plan, Style{}) },
		"doctor.txt":  func(b *bytes.Buffer) error { return DoctorTable(b, doctor, Style{}) },
		"lines.txt": func(b *bytes.Buffer) error {
			for _, r := range rolledBack().Records {
				b.WriteString(Line(chronicle.NewLine(bus.Entry{At: r.At, Credential: "ruvector-app", Service: saga.OwnerOf(r.Event), Event: &r}), Style{}) + "\n")
			}
			b.WriteString(Line(chronicle.NewLine(note(running(), time.Second, "waiting", "retire", "dpg_cluster is still in use", "api (2 sessions)")), Style{}) + "\n")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := write(&out); err != nil {
				t.Fatal(err)
			}
			golden(t, name, out.Bytes())
		})
	}
}

package posture

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/schedule"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func posture(credentials int) *Posture {
	inv := &inventory.Inventory{Credentials: map[string]*inventory.Credential{}}
	cluster := &inventory.Cluster{Name: "main", Environment: "production"}
	for i := range credentials {
		name := fmt.Sprintf("credential-%05d", i)
		inv.Credentials[name] = &inventory.Credential{Name: name, Cluster: cluster, Role: "app", Strategy: inventory.Alternating, RotateEvery: 90 * 24 * time.Hour}
	}
	return New(service.Dependencies{Inventory: inv, Log: slog.New(slog.DiscardHandler)})
}

// teller tells stories as the streams do.
type teller struct {
	*Posture
	seq uint64
}

func (t *teller) event(credential, rotation string, e saga.Event, body *pawlv1.Event) {
	t.seq++
	at := noon.Add(time.Duration(t.seq) * time.Millisecond)
	t.Posture.event(bus.Entry{At: at, Seq: t.seq, Credential: credential, Rotation: rotation, Service: saga.OwnerOf(e),
		Event: &bus.Record{Entry: saga.Entry{Event: e, Seq: t.seq, At: at}, Body: body}})
}

func (t *teller) note(service string, n *pawlv1.Note) {
	t.Posture.note(bus.Entry{At: noon, Credential: n.GetCredential(), Rotation: n.GetRotation(), Service: service, Note: n})
}

// rotate tells a whole rotation, whose effects are as long as they are in practice.
func (t *teller) rotate(credential, rotation, basis string, flow string) {
	begin := &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: flow, Generation: 2, Role: "app", Basis: basis, BasisUser: "app", Reason: "policy wants it turned every 90 days", RequestedBy: "schedule"}
	t.event(credential, rotation, saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: begin}})
	f, _ := saga.FlowByName(flow)
	for _, step := range f.Forward {
		body := work
		if step.Emits == saga.Staged || step.Emits == saga.Adopted {
			body = given
		}
		t.event(credential, rotation, step.Emits, body)
	}
}

var work, given = func() (*pawlv1.Event, *pawlv1.Event) {
	body := func() *pawlv1.Event {
		e := &pawlv1.Event{Summary: "did what there was to do, on every node of the cluster", Instance: "host/1"}
		for i := range 6 {
			e.Operations = append(e.Operations, &pawlv1.Operation{Name: "alter role", Target: fmt.Sprintf("node-%d", i), StartedAt: timestamppb.New(noon)})
		}
		return e
	}
	login := body()
	login.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: "app_b", Fingerprint: "abcdefghijkl"}}
	return body(), login
}()

func TestTenThousandCredentialsFitIntoMemory(t *testing.T) {
	const credentials = 10_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	p := &teller{Posture: posture(credentials)}
	before := heap()
	began := time.Now()
	for _, name := range p.names {
		p.rotate(name, "20260101-000000-aaaaa", "", saga.Adopt)
		for i := range 3 {
			p.rotate(name, fmt.Sprintf("2026010%d-000000-aaaaa", i+2), "20260101-000000-aaaaa", saga.Alternating)
		}
	}
	told := time.Since(began)
	began = time.Now()
	all := p.All(noon)
	looked := time.Since(began)
	grown := float64(heap()-before) / (1 << 20)
	t.Logf("%d credentials, %d events: %.1f MB more; told in %v, first looked at in %v", credentials, p.seq, grown, told, looked)
	if grown > 100 {
		t.Errorf("%.0f MB more", grown)
	}
	if len(all) != credentials || all[0].State != chronicle.Idle || all[0].Login != "app_b" {
		t.Errorf("%d, %+v", len(all), all[0].Status)
	}
	runtime.KeepAlive(p)
}

func TestDriftIsShownUntilItIsOverOrItsServiceBeginsAnew(t *testing.T) {
	p := &teller{Posture: posture(1)}
	const name = "credential-00000"
	drift := func() int { one, _ := p.One(name, noon); return len(one.Drift) }
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "drift", Credential: name, Text: "a: may not log in"})
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "drift", Credential: name, Text: "a: may not log in"}) // another replica's
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "drift", Credential: name, Text: "b: may not log in"})
	p.note(saga.SecretPublisher, &pawlv1.Note{Kind: "drift", Credential: name, Text: "dotenv:/.env holds another login"})
	if drift() != 3 {
		t.Fatalf("%d places", drift())
	}
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "drift over", Credential: name, Text: "a holds what it should again"})
	if drift() != 2 {
		t.Errorf("%d places, after one is over", drift())
	}
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "drift", Credential: name, Text: "b: carries another password"})
	if drift() != 2 {
		t.Errorf("%d places, after one has changed", drift())
	}
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "repaired", Credential: name, Text: "b had lost what was committed there: done again"})
	if drift() != 1 {
		t.Errorf("%d places, after one was repaired", drift())
	}
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "drift", Credential: name, Text: "b: may not log in"})
	if drift() != 2 {
		t.Errorf("%d places, after it came again", drift())
	}
	for _, kind := range []string{"configuration", "configuration changed"} {
		p.note(saga.DBRotator, &pawlv1.Note{Kind: "drift", Credential: name, Text: "b: may not log in"})
		p.note(saga.DBRotator, &pawlv1.Note{Kind: kind, Text: "loaded"})
		if drift() != 1 {
			t.Errorf("%d places, after the service of one has begun anew with %s", drift(), kind)
		}
	}
	p.note(saga.SecretPublisher, &pawlv1.Note{Kind: "drift over", Credential: name, Text: "dotenv:/.env holds what it should again"})
	if drift() != 0 {
		t.Errorf("%d places at the end", drift())
	}
}

func TestNotesAreOfTheRotationThatIsShown(t *testing.T) {
	p := &teller{Posture: posture(1)}
	const name = "credential-00000"
	p.rotate(name, "r-1", "", saga.Adopt)
	begin := &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Generation: 2, Role: "app", Basis: "r-1", BasisUser: "app"}}}
	p.event(name, "r-2", saga.Requested, begin)
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "waiting", Credential: name, Rotation: "r-1", Step: "stage", Text: "an old one"})
	p.note(saga.DBRotator, &pawlv1.Note{Kind: "waiting", Credential: name, Rotation: "r-2", Step: "stage", Text: "api is in the way"})
	one, _ := p.One(name, noon.Add(time.Second))
	if one.State != chronicle.Running || len(one.Notes) != 1 || one.Note == nil || one.Note.Text != "api is in the way" {
		t.Errorf("%s, notes %+v", one.State, one.Notes)
	}
	p.event(name, "r-3", saga.Requested, begin) // it superseded the other
	if one, _ := p.One(name, noon.Add(time.Second)); len(one.Notes) != 0 || one.Note != nil {
		t.Errorf("notes of another rotation: %+v", one.Notes)
	}
}

// The dashboard's forecast is that of `pawl schedule`: also of credentials whose
// rotations came to nothing, or were taken back.
func TestScheduleIsToldWhatCameToNothing(t *testing.T) {
	p := &teller{Posture: posture(1)}
	const name = "credential-00000"
	turned := func() schedule.Turned { past, _ := p.Turned(); return past[name] }
	begin := func(action pawlv1.Action, flow string, generation uint64) *pawlv1.Event {
		return &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: action, Flow: flow, Generation: generation, Role: "app",
			Basis: "r-2", BasisUser: "app_b", Restores: "r-1", RestoresUser: "app"}}}
	}
	if past, events := p.Turned(); len(past) != 0 || events != 0 {
		t.Errorf("%v of %d events", past, events)
	}
	p.rotate(name, "r-1", "", saga.Adopt)
	adopted := turned()
	if !adopted.Adopted || adopted.Failed != 0 || adopted.Running {
		t.Errorf("adopted: %+v", adopted)
	}
	p.rotate(name, "r-2", "r-1", saga.Alternating)
	made := turned()
	if made.Adopted || !made.Since.After(adopted.Since) || made.Failed != 0 {
		t.Errorf("turned: %+v", made)
	}
	for i, rotation := range []string{"r-3", "r-4"} {
		p.event(name, rotation, saga.Requested, begin(pawlv1.Action_ACTION_ROTATE, saga.Alternating, uint64(3+i)))
		if now := turned(); !now.Running || !now.Since.Equal(made.Since) {
			t.Errorf("%s: %+v", rotation, now)
		}
		p.event(name, rotation, saga.StageFailed, &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "stage"}}})
		p.event(name, rotation, saga.Unstaged, work)
		p.event(name, rotation, saga.RolledBack, work)
		if now := turned(); now.Failed != 1+i || now.Running || !now.Since.Equal(made.Since) || !now.Tried.After(now.Since) {
			t.Errorf("%s: %+v", rotation, now)
		}
	}
	p.event(name, "r-5", saga.Requested, begin(pawlv1.Action_ACTION_ROLLBACK, saga.RollbackAlternating, 5))
	for _, e := range []saga.Event{saga.Reinstated, saga.Restored, saga.Rerestarted, saga.Unstaged, saga.RolledBack} {
		p.event(name, "r-5", e, work)
	}
	if now := turned(); !now.Undone || now.Running || !now.Since.Equal(adopted.Since) {
		t.Errorf("taken back: %+v", now)
	}
	if p.Events() != p.seq {
		t.Errorf("%d of %d events", p.Events(), p.seq)
	}
}

// The log and the notes are read side by side: a note may be there first.
func TestNoteThatIsReadBeforeItsRotationIsShown(t *testing.T) {
	p := &teller{Posture: posture(1)}
	const name = "credential-00000"
	p.rotate(name, "r-1", "", saga.Adopt)
	for _, rotation := range []string{"r-1", "r-2"} {
		p.note(saga.DBRotator, &pawlv1.Note{Kind: "waiting", Credential: name, Rotation: rotation, Step: "stage", Text: "waits in " + rotation, At: timestamppb.New(noon)})
	}
	p.event(name, "r-2", saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: saga.Alternating, Generation: 2, Role: "app", Basis: "r-1", BasisUser: "app"}}})
	s, ok := p.One(name, noon)
	if !ok || len(s.Notes) != 1 || s.Notes[0].Text != "waits in r-2" {
		t.Errorf("%v, %+v", ok, s.Notes)
	}
}

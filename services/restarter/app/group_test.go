package app

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// group is three credentials of one application: all share api, b and c share
// jobs, c has one of its own.
type group struct {
	t         *testing.T
	file      string // to which each restart appends the consumer's name
	inventory *inventory.Inventory
	app       *app
	logs      map[string]bus.Log
	seq       uint64
}

func newGroup(t *testing.T) *group {
	dir := t.TempDir()
	g := &group{t: t, file: filepath.Join(dir, "turns"), logs: map[string]bus.Log{}}
	api, jobs, own := scripted(g.file, "api", ""), scripted(g.file, "jobs", ""), scripted(g.file, "own", "")
	g.inventory = &inventory.Inventory{File: filepath.Join(dir, "pawl.yaml"), Credentials: map[string]*inventory.Credential{
		"a": {Name: "a", Group: "shop", Consumers: []inventory.Consumer{api}},
		"b": {Name: "b", Group: "shop", Consumers: []inventory.Consumer{api, jobs}},
		"c": {Name: "c", Group: "shop", Consumers: []inventory.Consumer{own, jobs, api}},
	}}
	g.app = &app{dir: dir, inventory: g.inventory, read: func(_ context.Context, credential, _ string) (bus.Log, error) { return g.logs[credential], nil }}
	g.all(saga.Requested)
	return g
}

// happens appends events to a member's log.
func (g *group) happens(name string, events ...saga.Event) {
	for _, e := range events {
		g.seq++
		body := &pawlv1.Event{}
		switch e {
		case saga.Requested:
			body.Detail = &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Flow: saga.Alternating, Group: []string{"a", "b", "c"}}}
		case saga.StageFailed, saga.PublishFailed, saga.RestartFailed, saga.VerifyFailed, saga.TimedOut:
			body.Detail = &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: "its step", Reason: name + " had " + string(e)}}
		}
		log := g.logs[name]
		log.Credential, log.Rotation = name, "r1"
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: g.seq, At: time.Now()}, Body: body})
		g.logs[name] = log
	}
}

// ages moves all that has happened into the past.
func (g *group) ages(by time.Duration) {
	for _, log := range g.logs {
		for i := range log.Records {
			log.Records[i].At = log.Records[i].At.Add(-by)
		}
	}
}

// step does the member's step that is due, and appends what came of it.
func (g *group) step(name string) error {
	g.t.Helper()
	state, err := g.logs[name].Fold()
	if err != nil {
		g.t.Fatal(err)
	}
	step := state.Next()
	if step == nil || step.Owner != saga.Restarter {
		g.t.Fatalf("%v of %s is not ours", step, name)
	}
	r := &service.Rotation{ID: "r1", Credential: g.inventory.Credentials[name], State: state, Step: step, Deadline: time.Now().Add(time.Minute),
		Events: map[saga.Event]*pawlv1.Event{saga.Requested: g.logs[name].Records[0].Body}, StillDue: func(context.Context) error { return nil }}
	_, err = g.app.roll(g.t.Context(), r)
	switch {
	case err == nil:
		g.happens(name, step.Emits)
	case saga.IsPermanent(err):
		g.happens(name, step.Fails)
	}
	return err
}

func (g *group) steps(names ...string) {
	g.t.Helper()
	for _, name := range names {
		if err := g.step(name); err != nil {
			g.t.Fatalf("%s: %v", name, err)
		}
	}
}

// waits lets the members' steps be tried, which must not end yet.
func (g *group) waits(names ...string) {
	g.t.Helper()
	for _, name := range names {
		err := g.step(name)
		if waiting := (*saga.NotYet)(nil); !errors.As(err, &waiting) || waiting.Again <= 0 || waiting.Again > time.Second {
			g.t.Fatalf("%s does not wait: %v", name, err)
		}
	}
}

func (g *group) restarted(want string) {
	g.t.Helper()
	if got := restarted(g.t, g.file); got != want {
		g.t.Fatalf("restarted %q, want %q", got, want)
	}
}

var names = []string{"a", "b", "c"}

func (g *group) all(events ...saga.Event) {
	for _, name := range names {
		g.happens(name, events...)
	}
}

func TestSharedConsumersRestartOnceWhenAllArePublished(t *testing.T) {
	g := newGroup(t)
	g.happens("a", saga.Staged, saga.Published)
	g.happens("c", saga.Staged, saga.Published)
	g.waits("a", "c")
	g.happens("b", saga.Staged)
	g.waits("a", "c")
	g.happens("b", saga.Published)
	g.waits("c", "b") // a's restart comes first
	g.restarted("")
	g.steps("a")
	g.waits("c") // b restarts what it shares with c
	g.steps("b", "c")
	g.restarted("api jobs own")
}

func TestMemberWithoutALogYetIsWaitedFor(t *testing.T) {
	g := newGroup(t)
	g.all(saga.Staged, saga.Published)
	delete(g.logs, "b") // a follower's answer lags behind
	g.waits("a")
	g.restarted("")
}

func TestWhoFailsBeforeTheRestartTakesAllBackAndNothingRestarts(t *testing.T) {
	for _, failure := range []saga.Event{saga.StageFailed, saga.TimedOut, saga.PublishFailed} {
		g := newGroup(t)
		g.happens("a", saga.Staged, saga.Published)
		g.happens("c", saga.Staged, saga.Published)
		g.happens("b", failure)
		for _, name := range []string{"c", "a"} {
			// The root is named, not who followed it.
			if err := g.step(name); !saga.IsPermanent(err) || !strings.Contains(err.Error(), "b had "+string(failure)) {
				t.Fatalf("%s: %v", name, err)
			}
		}
		g.happens("a", saga.Restored)
		g.happens("c", saga.Restored)
		g.steps("a", "c")
		g.restarted("")
	}
}

func TestFailedRestartOfTheSharedConsumerTakesAllBack(t *testing.T) {
	g := newGroup(t)
	g.all(saga.Staged, saga.Published)
	g.happens("a", saga.RestartFailed)
	for _, name := range []string{"b", "c"} {
		if err := g.step(name); !saga.IsPermanent(err) || !strings.Contains(err.Error(), "a had restart-failed") {
			t.Fatalf("%s: %v", name, err)
		}
	}
	// Whether api was restarted nobody knows: it reads what is restored, once,
	// after the last of them is.
	g.happens("b", saga.Restored)
	g.waits("b")
	g.happens("c", saga.Restored)
	g.waits("b", "c")
	g.restarted("own jobs") // c is the last of those that have jobs
	g.happens("a", saga.Restored)
	g.waits("b", "c")
	g.steps("a")
	g.restarted("own jobs api")
	g.waits("b")
	g.steps("c", "b")
	g.restarted("own jobs api")
}

func TestWhoRollsBackAloneRestartsAtOnce(t *testing.T) {
	g := newGroup(t)
	g.all(saga.Staged, saga.Published)
	g.steps("a", "b", "c")
	g.restarted("api jobs own")
	g.happens("b", saga.VerifyFailed, saga.Restored)
	g.happens("a", saga.Verified)
	g.steps("b")
	g.restarted("api jobs own api jobs")
}

// TestOthersGoOnThoughOneHasTurnedRoundAfterItsRestart: from the restart on
// each goes its own way.
func TestOthersGoOnThoughOneHasTurnedRoundAfterItsRestart(t *testing.T) {
	g := newGroup(t)
	g.all(saga.Staged, saga.Published)
	g.steps("a")
	g.happens("a", saga.VerifyFailed, saga.Restored)
	g.steps("b", "c")
	g.steps("a")
	g.restarted("api jobs own api")
}

func TestNobodyWaitsForEverForWhoCannotRestore(t *testing.T) {
	g := newGroup(t)
	g.all(saga.Staged, saga.Published)
	g.happens("a", saga.RestartFailed) // and its sink cannot be written any more
	g.happens("b", saga.RestartFailed, saga.Restored)
	g.waits("b")
	g.ages(time.Minute)
	g.steps("b")
	g.restarted("api jobs")
}

func TestPeopleAreToldOfALongWaitAlone(t *testing.T) {
	g := newGroup(t)
	g.happens("a", saga.Staged, saga.Published)
	g.happens("b", saga.Staged)
	var waiting *saga.NotYet
	if err := g.step("a"); !errors.As(err, &waiting) || waiting.Why != "" {
		t.Errorf("at once: %v", err)
	}
	g.ages(time.Minute)
	if err := g.step("a"); !errors.As(err, &waiting) || !strings.Contains(waiting.Why, "a turns together") || strings.Join(waiting.Laggards, " ") != "b c" || waiting.Again != time.Second {
		t.Errorf("later: %+v", waiting)
	}
}

// A pgbouncer that the group shares is restarted once, and then must let go of
// the logins of all: some are left, of others the password has changed.
func TestSharedPoolerIsToldOfTheLoginsOfAll(t *testing.T) {
	g := newGroup(t)
	for name, logins := range map[string][2]string{"a": {"a", "a_b"}, "b": {"b_b", "b"}, "c": {"c", "c"}} {
		g.happens(name, saga.Staged)
		log := g.logs[name]
		log.Records[0].Body.GetRequested().BasisUser = logins[0]
		log.Records[1].Body.Detail = &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: logins[1]}}
	}
	a := g.logs["a"]
	r := &service.Rotation{ID: "r1", Credential: g.inventory.Credentials["a"], Step: &saga.Step{Name: "restart"},
		Events: map[saga.Event]*pawlv1.Event{saga.Requested: a.Records[0].Body, saga.Staged: a.Records[1].Body}}
	left, changed, err := g.app.moved(t.Context(), r, inventory.Consumer{Name: "api"})
	slices.Sort(left)
	if err != nil || !slices.Equal(left, []string{"a", "b_b"}) || !slices.Equal(changed, []string{"c"}) {
		t.Errorf("left %v, changed %v, %v", left, changed, err)
	}
	if left, changed, err = g.app.moved(t.Context(), r, inventory.Consumer{Name: "alone"}); err != nil || !slices.Equal(left, []string{"a"}) || len(changed) > 0 {
		t.Errorf("of a consumer that it does not share: left %v, changed %v, %v", left, changed, err)
	}
}

package agenda

import (
	"errors"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
)

// plantOf has these credentials, adopted, in one cluster.
func plantOf(t *testing.T, credentials ...*inventory.Credential) *plant {
	t.Helper()
	inv := &inventory.Inventory{Credentials: map[string]*inventory.Credential{}, Schedule: inventory.Schedule{PerCluster: 2, InAll: 5, Apart: time.Hour}}
	for _, c := range credentials {
		c.Role, c.Strategy, c.Cluster = c.Name, inventory.InPlace, &inventory.Cluster{Name: "main"}
		inv.Credentials[c.Name] = c
	}
	p := newPlant(t, inv, time.Hour)
	for _, c := range credentials {
		p.adopt(c.Name)
	}
	p.work()
	return p
}

func (p *plant) told(note string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notes[note]
}

// until waits for what is so in the end; it looks at what others do.
func (p *plant) until(what string, is func() bool) {
	p.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(2 * time.Minute); !is(); {
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatalf("never: %s", what)
		}
	}
}

func TestGroupTurnsAsOneAndTellsWho(t *testing.T) {
	p := plantOf(t, &inventory.Credential{Name: "a", Group: "shop", RotateEvery: 100 * time.Second}, &inventory.Credential{Name: "b", Group: "shop", RotateEvery: 365 * day})
	p.replica()
	p.replica()
	p.await(2)
	one, err := p.operator.ReadNewest(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	two, err := p.operator.ReadNewest(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	begin := one.Records[0].Body.GetRequested()
	if one.Rotation != two.Rotation || begin.GetRequestedBy() != "schedule" || len(begin.GetGroup()) != 2 || begin.GetReason() == "" {
		t.Errorf("%s and %s: %v", one.Rotation, two.Rotation, begin)
	}
}

func TestWhatPreflightRefusesIsNotedAndTriedAgain(t *testing.T) {
	p := plantOf(t, &inventory.Credential{Name: "a", RotateEvery: 50 * time.Second})
	p.refuse["a"] = true
	p.replica()
	p.until("a second refusal", func() bool { return p.told("schedule refused a") >= 2 })
	turns, _, err := onBus{d: depsOf(p)}.Turns(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(turns.GetTurns()) > 1 {
		t.Errorf("the budget still holds %v", turns.GetTurns())
	}
	p.mu.Lock()
	p.refuse["a"] = false
	p.mu.Unlock()
	p.await(1)
	if p.told("overdue a") != 1 {
		t.Errorf("told %d times that it is overdue", p.told("overdue a"))
	}
}

// A replica that dies between its entry in the budget and the beginning leaves a
// turn that no log tells of.
func TestPairIsKeptApartFromATurnThatHasNotBegunYet(t *testing.T) {
	y := newYear(t, 1)
	y.restart()
	room := func(name string) bool {
		for {
			free, err := y.replicas[0].take(t.Context(), turn{credential: name, rotation: "of-" + name, follows: map[string]string{name: ""}}, y.clock)
			if !errors.Is(err, errDied) {
				if err != nil {
					t.Error(err)
				}
				return free
			}
		}
	}
	for name, want := range map[string]bool{"c-0701": false, "c-0702": true} { // c-0700 and c-0701 are a pair
		if room("c-0700"); room(name) != want {
			t.Errorf("%s beside c-0700: there should be room: %v", name, want)
		}
	}
}

func TestProductionWaitsForStaging(t *testing.T) {
	p := plantOf(t, &inventory.Credential{Name: "app", RotateEvery: 100 * time.Second, Promotes: "staging", Within: day}, &inventory.Credential{Name: "staging", RotateEvery: 100 * time.Second})
	p.replica()
	if first := <-p.heard; first != "staging" {
		t.Errorf("%s turned first", first)
	}
	if second := <-p.heard; second != "app" {
		t.Errorf("%s turned second", second)
	}
}

// A timer that is heard again after its rotation has begun, as when its
// acknowledgement was lost, begins nothing.
func TestTimerHeardTwiceBeginsOneRotation(t *testing.T) {
	p := plantOf(t, &inventory.Credential{Name: "a", RotateEvery: 100 * time.Second})
	stop := p.replica()
	p.await(1)
	stop()
	log, err := p.operator.ReadNewest(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	a := newAgenda(later{onBus{d: depsOf(p)}, p.by, p.sooner}, p.inv, depsOf(p).Log, func() time.Time { return time.Now().Add(p.by) })
	due, _, err := onBus{d: depsOf(p)}.Armed(t.Context(), "a")
	if err != nil || due.GetBasis() == "" {
		t.Fatalf("%v %v", due, err)
	}
	due.Basis = "adoption"
	if again, err := a.fired(t.Context(), "a", due, turn{rotation: log.Rotation, asked: time.Now()}); again != 0 || err != nil {
		t.Errorf("%s, %v", again, err)
	}
	if now, err := p.operator.ReadNewest(t.Context(), "a"); err != nil || now.Rotation != log.Rotation {
		t.Errorf("%s after %s: %v", now.Rotation, log.Rotation, err)
	}
}

package clock

import (
	"math/rand/v2"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// pair is a wall clock and a monotonic one. Only the wall clock can be set.
type pair struct {
	*Clock
	wall    time.Time
	elapsed time.Duration
	steps   []Step
}

func newPair(t *testing.T) *pair {
	p := &pair{wall: noon}
	p.Clock = newClock(func() (time.Time, time.Duration) { return p.wall, p.elapsed })
	p.OnStep(t.Context(), func(s Step) { p.steps = append(p.steps, s) })
	return p
}

// pass lets time pass, seen each second.
func (p *pair) pass(d time.Duration) {
	for range d / time.Second {
		p.wall, p.elapsed = p.wall.Add(time.Second), p.elapsed+time.Second
		p.Observe(p.wall, 0)
	}
}

// unseen lets time pass that nobody looks at.
func (p *pair) unseen(d time.Duration) { p.wall, p.elapsed = p.wall.Add(d), p.elapsed+d }

var sizes = []time.Duration{time.Minute, time.Hour, 24 * time.Hour, -time.Minute, -time.Hour, -24 * time.Hour}

func TestWaitEndsNeitherEarlyNorLateWhenTheClockIsStepped(t *testing.T) {
	for _, by := range sizes {
		p := newPair(t)
		before := p.wall.Add(-time.Hour) // stored before this process began
		p.pass(10 * time.Second)
		stored := p.wall
		p.pass(20 * time.Second)
		p.unseen(300 * time.Millisecond)
		p.wall = p.wall.Add(by)
		unseen := p.wall // stored after the step, before anybody saw it
		p.unseen(400 * time.Millisecond)
		if since := p.Since(unseen); since > time.Second {
			t.Errorf("%v: a new event is %v old before the step is seen", by, since)
		}
		p.pass(5 * time.Second)
		for at, want := range map[time.Time]time.Duration{stored: 25700 * time.Millisecond, before: time.Hour + 35700*time.Millisecond, unseen: 5400 * time.Millisecond, p.wall: 0} {
			if since := p.Since(at); (since - want).Abs() > 10*time.Millisecond {
				t.Errorf("%v: %s was %v ago, not %v", by, at, since, want)
			}
		}
		if len(p.steps) != 1 || (p.steps[0].By-by).Abs() > time.Second {
			t.Errorf("%v: seen as %v", by, p.steps)
		}
		if got := p.Now(); !got.Equal(p.wall) {
			t.Errorf("%v: now is %s, not %s", by, got, p.wall)
		}
	}
}

func TestStepForwardAndBackLeavesEveryAgeAsItWas(t *testing.T) {
	p := newPair(t)
	stored := p.wall
	for _, by := range []time.Duration{time.Hour, -time.Hour, -24 * time.Hour, 24 * time.Hour} {
		p.pass(10 * time.Second)
		p.wall = p.wall.Add(by)
	}
	p.pass(10 * time.Second)
	// After a step back the clock may have shown the time twice: then the wait is
	// longer, never shorter.
	if since := p.Since(stored); since != 50*time.Second {
		t.Errorf("stored %v ago, not 50 s", since)
	}
}

func TestSlowCorrectionIsNoStep(t *testing.T) {
	p := newPair(t)
	for range 1000 {
		p.wall = p.wall.Add(500 * time.Millisecond)
		p.pass(time.Second)
	}
	if len(p.steps) > 0 {
		t.Errorf("seen as %v", p.steps[0])
	}
	if now := p.Now(); !now.Equal(p.wall) {
		t.Errorf("now is %s, not %s", now, p.wall)
	}
}

// TestAgeIsNeverTooGreat steps the clock at random: an age that is too great
// would end a wait that protects people.
func TestAgeIsNeverTooGreat(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		p := newPair(t)
		stored := map[time.Time]time.Duration{} // if the clock showed a time twice: the later one
		for range 40 {
			p.pass(time.Duration(random.IntN(30)) * time.Second)
			stored[p.wall] = p.elapsed
			if random.IntN(4) == 0 {
				p.wall = p.wall.Add(sizes[random.IntN(len(sizes))])
				p.pass(time.Second)
			}
		}
		for at, elapsed := range stored {
			if since, real := p.Since(at), p.elapsed-elapsed; since > real+time.Millisecond {
				t.Fatalf("seed %d: %v ago, really %v", seed, since, real)
			}
		}
	}
}

func TestClockOfAnotherMachineCounts(t *testing.T) {
	p := newPair(t)
	p.Start(noon.Add(-3 * time.Hour)) // ours is wrong
	p.unseen(time.Minute)
	if since := p.Since(noon.Add(-3 * time.Hour)); since != time.Minute {
		t.Errorf("stored %v ago, not a minute", since)
	}
	if now := p.Now(); !now.Equal(noon.Add(-3*time.Hour + time.Minute)) {
		t.Errorf("now is %s", now)
	}
}

func TestNoClockIsTheMachines(t *testing.T) {
	var none *Clock
	if since := none.Since(time.Now().Add(-time.Minute)); since.Round(time.Second) != time.Minute {
		t.Errorf("a minute ago was %v ago", since)
	}
	if now := none.Now(); time.Since(now) > time.Second {
		t.Errorf("now is %s", now)
	}
	if since := New().Since(time.Now()); since > time.Second {
		t.Errorf("now is %v ago", since)
	}
}

// Package clock measures how much time really passed. The wall clock alone cannot
// tell: a person or NTP sets it, and it runs on while a machine sleeps. A Clock
// compares the wall clock with the monotonic clock of the process. It knows each
// step that it has seen, so that no wait ends early after a step forward, and none
// lasts longer after a step back.
//
// The wall clock that counts is the bus's, since it stamps every stored event. So
// a machine with a wrong clock works right all the same.
package clock

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Tolerance is how far two clocks may differ before Pawl takes notice. NTP corrects
// less than this without a step.
const Tolerance = 3 * time.Second

// maxEras bounds what is remembered: a clock that is set all the time is wrong
// whatever is remembered.
const maxEras = 32

// Step is one move of the wall clock that is no passing of time.
type Step struct {
	At time.Time     // what the clock showed before
	By time.Duration // forward, or below 0: back
}

func (s Step) String() string {
	if s.By < 0 {
		return fmt.Sprintf("back by %v", (-s.By).Round(time.Second))
	}
	return fmt.Sprintf("forward by %v", s.By.Round(time.Second))
}

// Clock is one wall clock as a process has seen it. A nil *Clock is the wall clock
// of the machine, and sees no steps. Safe for concurrent use.
type Clock struct {
	// read reads this machine's two clocks at one moment. The monotonic one stands
	// still while the machine sleeps.
	read func() (wall time.Time, elapsed time.Duration)

	mu    sync.Mutex
	other bool  // the clock is another machine's, which only Observe can read
	eras  []era // at least one, the newest last
	heard map[*func(Step)]struct{}
}

// era is the time between two steps, in which the wall clock ran as it should.
type era struct {
	from  time.Time     // what the wall clock showed when the era began; zero: always
	until time.Time     // and when it ended; the newest has not
	blind time.Duration // how long before from the era may have begun unseen
	wall  time.Time     // the last reading
	read  time.Duration // elapsed then
}

// at is what elapsed was, or will be, when the wall clock showed a time.
func (e era) at(wall time.Time) time.Duration { return e.read + wall.Sub(e.wall) }

// New returns a clock that shows what the machine's does until it is told more.
func New() *Clock {
	began := time.Now()
	return newClock(func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(began)
	})
}

func newClock(read func() (time.Time, time.Duration)) *Clock {
	wall, elapsed := read()
	return &Clock{read: read, eras: []era{{wall: wall, read: elapsed}}, heard: map[*func(Step)]struct{}{}}
}

// look reads the clocks and returns the monotonic one. Where the machine's own clock
// counts, it observes that too: so each answer knows a step of the same moment.
func (c *Clock) look() (elapsed time.Duration) {
	wall, elapsed := c.read()
	c.mu.Lock()
	other := c.other
	c.mu.Unlock()
	if !other {
		c.observe(wall, elapsed, 0)
	}
	return elapsed
}

// Now is the time by the clock. It has no monotonic part.
func (c *Clock) Now() time.Time {
	if c == nil {
		return time.Now().Round(0)
	}
	elapsed := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now(elapsed)
}

func (c *Clock) now(elapsed time.Duration) time.Time {
	e := c.eras[len(c.eras)-1]
	return e.wall.Add(elapsed - e.read)
}

// Since returns how much time really passed since the clock showed at: the
// difference, without the steps that this process has seen since. If the clock
// showed that time twice, since it was set back, the later one counts. A time that
// is yet to come has passed 0 ago.
func (c *Clock) Since(at time.Time) time.Duration {
	if c == nil {
		return max(0, time.Since(at))
	}
	elapsed := c.look()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.eras) - 1; i >= 0; i-- {
		if e := c.eras[i]; !at.Before(e.from.Add(-e.blind)) && !at.After(c.end(i, elapsed)) {
			return max(0, elapsed-e.at(at))
		}
	}
	for i := len(c.eras) - 1; i >= 0; i-- { // a time that a step forward left out, or one of another clock
		if end := c.end(i, elapsed); at.After(end) {
			return max(0, elapsed-c.eras[i].at(end))
		}
	}
	return 0
}

func (c *Clock) end(i int, elapsed time.Duration) time.Time {
	if i == len(c.eras)-1 {
		return c.now(elapsed)
	}
	return c.eras[i].until
}

// Observe takes a reading of the wall clock, which is exact to within. It tells
// those who asked for it if the reading shows a step.
func (c *Clock) Observe(reading time.Time, within time.Duration) {
	_, elapsed := c.read()
	c.observe(reading.Round(0), elapsed, within)
}

func (c *Clock) observe(reading time.Time, elapsed, within time.Duration) {
	c.mu.Lock()
	e, expected := &c.eras[len(c.eras)-1], c.now(elapsed)
	if elapsed < e.read {
		c.mu.Unlock()
		return // another goroutine has read the clock since, and was first
	}
	step := Step{At: expected, By: reading.Sub(expected)}
	if step.By.Abs() <= Tolerance+within {
		e.wall, e.read = reading, elapsed // what is left is drift
		c.mu.Unlock()
		return
	}
	e.until = expected
	c.eras = append(c.eras, era{from: reading, blind: elapsed - e.read, wall: reading, read: elapsed})
	if len(c.eras) > maxEras {
		c.eras = c.eras[1:]
		c.eras[0].from, c.eras[0].blind = time.Time{}, 0
	}
	var heard []func(Step)
	for tell := range c.heard {
		heard = append(heard, *tell)
	}
	c.mu.Unlock()
	for _, tell := range heard {
		tell(step)
	}
}

// Start takes the first reading of another machine's clock, which counts from now
// on. It is no step, however far that clock is from ours.
func (c *Clock) Start(reading time.Time) {
	_, elapsed := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.other = true
	c.eras = []era{{wall: reading.Round(0), read: elapsed}}
}

// OnStep has tell called for each step from now on, until ctx ends. tell must not
// block.
func (c *Clock) OnStep(ctx context.Context, tell func(Step)) {
	if c == nil {
		return
	}
	c.mu.Lock()
	c.heard[&tell] = struct{}{}
	c.mu.Unlock()
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.heard, &tell)
	})
}

// Follow observes the machine's own clock each second until ctx ends.
func (c *Clock) Follow(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.look()
		}
	}
}

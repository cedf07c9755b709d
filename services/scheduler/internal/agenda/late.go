package agenda

import (
	"context"
	"time"
)

// grace is how long the bus has to fire a timer before this process does.
const grace = 1500 * time.Millisecond

// watch notes when a credential's timer fires, or when to look when it does.
func (a *Agenda) watch(lead string, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.armed[lead] = at
}

// FireLate makes due what the bus should have made due: after a step of its clock
// forward, it does so only after as long as it had planned before. Call it each
// second. That a timer fires twice is harmless: see fired.
func (a *Agenda) FireLate(ctx context.Context) {
	before := a.now().Add(-grace)
	a.mu.Lock()
	var late []string
	for lead, at := range a.armed {
		if !at.After(before) {
			late = append(late, lead)
			delete(a.armed, lead)
		}
	}
	a.mu.Unlock()
	for _, lead := range late {
		at, err := a.world.Fire(ctx, lead, before)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.log.Warn("late due date not fired; again soon", "credential", lead, "error", err)
			at = a.now().Add(time.Minute)
		}
		if !at.IsZero() {
			a.watch(lead, at)
		}
	}
}

// Stepped is told that the clock was stepped: what was full until a time of before
// may not be, and timers may be late.
func (a *Agenda) Stepped() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.full)
}

package timekeeper

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/rotation"
)

const (
	// keepEvery is how often the waits are looked at, and grace how long the bus has
	// to do it first: mostly it does, and then there is nothing to do.
	keepEvery = time.Second
	grace     = 1500 * time.Millisecond
)

// waits are what this process waits for, in time that really passes: by credential,
// when to look at it next. It looks at whatever it holds each second, which for
// 10,000 credentials takes a fraction of a millisecond.
type waits struct {
	mu   sync.Mutex
	next map[string]time.Time
}

// until has the credential looked at after a wait.
func (w *waits) until(credential string, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == nil {
		w.next = map[string]time.Time{}
	}
	w.next[credential] = time.Now().Add(max(0, wait) + grace)
}

// over returns the credentials that need a look, and forgets them.
func (w *waits) over(now time.Time) (credentials []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for credential, next := range w.next {
		if now.After(next) {
			credentials = append(credentials, credential)
			delete(w.next, credential)
		}
	}
	return credentials
}

// keepWaits does what is due until ctx ends. Doing it beside the bus is harmless:
// a wake-up has the log folded, and a step times out by compare-and-set.
func (c *Clock) keepWaits(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var all errgroup.Group
		all.SetLimit(atOnce)
		for _, credential := range c.waits.over(time.Now()) {
			all.Go(func() error {
				if err := c.look(ctx, credential, true); err != nil && ctx.Err() == nil {
					c.d.Log.Warn("wait not ended; the sweep does it within a minute", "credential", credential, "error", err)
				}
				return nil
			})
		}
		_ = all.Wait() // each has told of its own
		c.agenda.FireLate(ctx)
	}
}

// isSettled reports whether the log is as it was when it needed nothing. So a
// sweep costs one read for each credential that rests.
func (c *Clock) isSettled(credential string, seq uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.settled[credential]
	return ok && s.seq == seq && (s.until.IsZero() || time.Now().Before(s.until))
}

func (c *Clock) settle(credential string, s standing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settled[credential] = s
}

// note clears the gauge of a stall that has ended.
func (c *Clock) note(newest rotation.Rotation) {
	if newest.Empty() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	step := newest.Next()
	if said, ok := c.stalled[newest.Credential]; ok && (step == nil || said != stall{newest.Rotation, step.Name}) {
		c.d.Metrics.Stalled(newest.Credential, said.step, false)
		delete(c.stalled, newest.Credential)
	}
}

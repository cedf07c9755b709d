package rotator

import (
	"context"
	"sync"
	"time"

	"pawl.dev/internal/inventory"
)

// How many do one kind of work on a server at a time. All share the few sessions that
// Pawl has there: where a thousand emergencies began at once, each would wait for a
// session until its patience is over, and none would get anything done.
const containing = 4 // emergencies by themselves: each takes a session to refuse logins, another to end sessions

// A server on which no session can be had is not waited for by each emergency anew.
const (
	awayFor      = 5 * time.Second
	awayPatience = patience / 10
)

// lanes let some in at a time, by server and kind of work.
type lanes struct {
	mu   sync.Mutex
	by   map[string]chan struct{}
	away map[string]time.Time // when a server was last waited for in vain
}

func serverOf(c *inventory.Credential, node string) string { return c.Cluster.Name + "/" + node }

// enter waits until one of the lanes is free; call leave then.
func (l *lanes) enter(ctx context.Context, name string, most int) (leave func(), err error) {
	l.mu.Lock()
	if l.by == nil {
		l.by, l.away = map[string]chan struct{}{}, map[string]time.Time{}
	}
	lane := l.by[name]
	if lane == nil {
		lane = make(chan struct{}, most)
		l.by[name] = lane
	}
	l.mu.Unlock()
	select {
	case lane <- struct{}{}:
		return func() { <-lane }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// patience is how long the server is waited for.
func (l *lanes) patience(name string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.away[name]) < awayFor {
		return awayPatience
	}
	return patience
}

// found remembers whether the server was reached.
func (l *lanes) found(name string, reached bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if delete(l.away, name); !reached {
		l.away[name] = time.Now()
	}
}

package app

import (
	"sync"

	"pawl.dev/internal/service"
)

// progress remembers which consumers were restarted since the event that made
// the step due, so that one broken consumer does not have the sound ones
// restarted at each retry. It only saves work: losing it restarts them once more.
type progress struct {
	mu           sync.Mutex
	byCredential map[string]turns
}

type turns struct {
	since uint64            // sequence of the event, unique in the log's stream
	done  map[string]string // by consumer, what showed it
}

func (p *progress) has(r *service.Rotation, consumer string) (shown string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.byCredential[r.Credential.Name]
	if t.since != r.State.Last.Seq {
		return "", false
	}
	shown, ok = t.done[consumer]
	return shown, ok
}

func (p *progress) add(r *service.Rotation, consumer, shown string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.byCredential[r.Credential.Name]
	if t.since != r.State.Last.Seq || t.done == nil {
		t = turns{since: r.State.Last.Seq, done: map[string]string{}}
	}
	t.done[consumer] = shown
	if p.byCredential == nil {
		p.byCredential = map[string]turns{}
	}
	p.byCredential[r.Credential.Name] = t
}

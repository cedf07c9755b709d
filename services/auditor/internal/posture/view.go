package posture

import (
	"slices"
	"strings"
	"time"

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/schedule"
)

// Standing is where one credential stands, as looked at at one time.
type Standing struct {
	chronicle.Status
	Config  *inventory.Credential
	Drift   []chronicle.Note // what nodes and files hold, and should not
	Notes   []chronicle.Note // of the newest rotation
	Trouble string           // why its log cannot be understood; empty: it can
}

// Soon is how long before its date a credential is called due, where pawl.yaml
// says nothing of it.
const Soon = 7 * 24 * time.Hour

// Due reports whether it is to be turned soon.
func (s Standing) Due() bool {
	return s.NextDue != nil && s.State != chronicle.Locked && s.Overdue() == 0 && s.NextDue.Sub(s.Now) < min(Soon, s.Config.RotateEvery/4)
}

// Emergency reports whether its newest rotation is an emergency, or a lock.
func (s Standing) Emergency() bool {
	return s.Last != nil && saga.FlowLike(s.Last.Flow).Urgent
}

// Open reports whether a rotation is under way.
func (s Standing) Open() bool { return s.State == chronicle.Running || s.State == chronicle.Stalled }

// All tells of every credential of pawl.yaml, in the order of names.
func (p *Posture) All(now time.Time) []Standing {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Standing, 0, len(p.names))
	for _, name := range p.names {
		all = append(all, p.credentials[name].standing(now))
	}
	return all
}

// One tells of one; ok is false where pawl.yaml does not know it.
func (p *Posture) One(name string, now time.Time) (s Standing, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.credentials[name]
	if !ok {
		return Standing{}, false
	}
	return c.standing(now), true
}

func (c *credential) standing(now time.Time) Standing {
	s := Standing{Status: c.at(now), Config: c.config, Drift: slices.Clone(c.drift), Trouble: c.failed}
	if c.noted != "" && c.noted == c.log.Rotation {
		s.Notes = slices.Clone(c.notes)
	}
	for _, n := range s.Notes {
		if s.Since != nil && n.Step == s.Step && n.Kind != "resumed" {
			s.Note = &n
		}
	}
	return s
}

// Recent are the newest events and notes, newest first.
func (p *Posture) Recent(most int) []chronicle.Line {
	p.mu.Lock()
	all := slices.Concat(p.events.all(), p.notes.all())
	p.mu.Unlock()
	all = slices.DeleteFunc(all, func(l chronicle.Line) bool { return strings.HasPrefix(l.Note, "opened") })
	slices.SortStableFunc(all, func(x, y chronicle.Line) int { return y.At.Compare(x.At) })
	return all[:min(most, len(all))]
}

// Reading is how far the reading has come.
type Reading struct {
	CaughtUp bool   // everything that was stored before has been read
	Failing  string // why nothing new is read; empty: it is
}

// Reading tells it.
func (p *Posture) Reading() Reading {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Reading{p.caughtUp.log && p.caughtUp.notes, p.failing}
}

// Turned is what the schedule has to know of every credential that was adopted,
// and how many events that was read from.
func (p *Posture) Turned() (past map[string]schedule.Turned, events uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	past = map[string]schedule.Turned{}
	for name, c := range p.credentials {
		if len(c.log.Records) == 0 {
			continue
		}
		// What cannot be understood is told where the credential is shown.
		if t, adopted, err := schedule.PastOf(c.log, c.madeBy); err == nil && adopted {
			past[name] = t
		}
	}
	return past, p.read
}

// Events is how many were read so far.
func (p *Posture) Events() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read
}

// watcher hears of changes.
type watcher struct {
	credential string // empty: of any
	heard      chan struct{}
}

// Watch returns what is signalled when something has changed about the
// credential, or, where that is empty, about any. Call stop in the end.
func (p *Posture) Watch(credential string) (heard <-chan struct{}, stop func()) {
	w := &watcher{credential, make(chan struct{}, 1)}
	p.mu.Lock()
	p.watchers[w] = struct{}{}
	p.mu.Unlock()
	return w.heard, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watchers, w)
	}
}

// changed tells the watchers; empty: of everything.
func (p *Posture) changed(credential string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.watchers {
		if w.credential != "" && credential != "" && w.credential != credential {
			continue
		}
		select {
		case w.heard <- struct{}{}:
		default:
		}
	}
}

package admission

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// What users other than the operator may cost, each by itself. Rates are a second's.
const (
	asksRate, asksAtOnce = 100, 2000 // requests that are decided upon
	keptRate, keptAtOnce = 1, 60     // answers to what began nothing that are kept, each with a note
)

// summaryEvery is how often the trail is told what was refused and not kept.
const summaryEvery = time.Minute

// limits bound what a flood of requests costs: what is noted is kept for good.
type limits struct {
	mu    sync.Mutex
	users map[string]*spending
}

// spending is what one user has cost lately.
type spending struct {
	asks, kept *rate.Limiter
	unkept     int    // answers since the last summary
	last       string // what the last of them said
}

func newLimits() *limits { return &limits{users: map[string]*spending{}} }

func (l *limits) of(user string) *spending {
	s := l.users[user]
	if s == nil {
		s = &spending{asks: rate.NewLimiter(asksRate, asksAtOnce), kept: rate.NewLimiter(keptRate, keptAtOnce)}
		l.users[user] = s
	}
	return s
}

// mayAsk returns the refusal of a request that is too many.
func (l *limits) mayAsk(user string) *pawlv1.Answer {
	if user == bus.Operator {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of(user).asks.Allow() {
		return nil
	}
	return rejected(fmt.Sprintf("too many requests of %s: at most %d at once, and %d a second: ask again later", user, asksAtOnce, asksRate))
}

// keeps reports whether the answer to what began nothing is kept. If not, it is counted.
func (l *limits) keeps(user, why string) bool {
	if user == bus.Operator {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.of(user)
	if s.kept.Allow() {
		return true
	}
	s.unkept, s.last = s.unkept+1, why
	return false
}

// spent reports whether the next answer of the user's would not be kept.
func (l *limits) spent(user string) bool {
	if user == bus.Operator {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of(user).kept.Tokens() < 1
}

// summary is what was answered of one user's and not kept.
type summary struct {
	user string
	spending
}

func (s summary) note() *pawlv1.Note {
	return &pawlv1.Note{Kind: "requests summed up", Actor: s.user,
		Text: fmt.Sprintf("%d requests of %s began nothing, beside those that are noted one by one; the last: %s", s.unkept, s.user, s.last)}
}

// summaries takes what was counted.
func (l *limits) summaries() (all []summary) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for user, s := range l.users {
		if s.unkept > 0 {
			all = append(all, summary{user, spending{unkept: s.unkept, last: s.last}})
			s.unkept, s.last = 0, ""
		}
	}
	return all
}

// giveBack counts a summary again that was not stored.
func (l *limits) giveBack(s summary) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.of(s.user)
	of.unkept, of.last = of.unkept+s.unkept, cmp.Or(of.last, s.last)
}

// summarise tells the trail every minute, and once more at the end of ctx.
func (c *Clerk) summarise(ctx context.Context) {
	tick := time.NewTicker(summaryEvery)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		for _, s := range c.limits.summaries() {
			if err := c.d.Bus.Publish(context.WithoutCancel(ctx), bus.NoteSubject(saga.Scheduler), s.note(), telemetry.Inject(ctx)); err != nil {
				c.limits.giveBack(s)
				c.d.Log.Warn("requests not summed up; again soon", "user", s.user, "requests", s.unkept, "error", err)
			}
		}
	}
}

package alarm

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"pawl.dev/internal/inventory"
)

// What a source may have stored of alerts that are held back: at once, and then one in
// ten seconds. Decisions are kept for 90 days, so a source that floods takes at most a
// half of what their stream holds.
const (
	atOnce       = 1000
	atOnceShared = 60 // of whoever holds requester.nk
	refill       = rate.Limit(0.1)
)

// summaryEvery is how often the trail is told what was held back and not stored.
const summaryEvery = time.Minute

// budget bounds what a flood of alerts costs. The zero budget is ready to use. It
// holds back no alert that fires.
type budget struct {
	mu      sync.Mutex
	sources map[string]*rate.Limiter
	unkept  map[string]int
	told    time.Time
}

// allows reports whether what was decided about an alert of the source is stored. If
// not, it is counted.
func (b *budget) allows(source string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sources == nil {
		b.sources, b.unkept, b.told = map[string]*rate.Limiter{}, map[string]int{}, time.Now()
	}
	l := b.sources[source]
	if l == nil {
		most := atOnce
		if source == inventory.SharedSource {
			most = atOnceShared
		}
		l = rate.NewLimiter(refill, most)
		b.sources[source] = l
	}
	if l.Allow() {
		return true
	}
	b.unkept[source]++
	return false
}

// summary takes, once a minute, what was counted of each source.
func (b *budget) summary(now time.Time) map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.unkept) == 0 || now.Sub(b.told) < summaryEvery {
		return nil
	}
	all := b.unkept
	b.unkept, b.told = map[string]int{}, now
	return all
}

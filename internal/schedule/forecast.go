package schedule

import (
	"container/heap"
	"time"

	"pawl.dev/internal/inventory"
)

// Forecast returns what schedules will turn from one time to another, in order,
// if nothing else is turned and nothing fails: the same credential several
// times where its interval is short, and once each that is blocked. since is
// what the log tells of each credential that was adopted. The budget is not
// reckoned with: where more is due than it lets through, it comes later.
func Forecast(inv *inventory.Inventory, since map[string]Turned, from, to time.Time) []Due {
	b := New(inv)
	past := make(map[string]Turned, len(since))
	for name, t := range since {
		past[name] = t
	}
	facts := func(name string) (Turned, bool) { t, ok := past[name]; return t, ok }
	var waiting dues
	stands := map[string]int{} // by lead: which of its entries counts
	var out []Due
	look := func(lead string, now time.Time) {
		stands[lead]++
		due, ok := b.Next(lead, facts, now)
		if !ok || due.At.After(to) {
			return
		}
		heap.Push(&waiting, entry{due, stands[lead]})
	}
	for _, lead := range b.leads {
		look(lead, from)
	}
	blocked := map[string]bool{}
	for waiting.Len() > 0 {
		next := heap.Pop(&waiting).(entry)
		if next.version != stands[next.Credential] {
			continue // another turn has changed it
		}
		if next.Blocked != "" {
			if !blocked[next.Credential] {
				blocked[next.Credential] = true
				out = append(out, next.Due)
			}
			continue
		}
		out = append(out, next.Due)
		for _, name := range next.Members() {
			past[name] = Turned{Since: next.At, Tried: next.At}
		}
		delete(blocked, next.Credential)
		look(next.Credential, next.At)
		for _, lead := range b.Related(next.Credential) {
			look(lead, next.At)
		}
	}
	return out
}

type entry struct {
	Due
	version int
}

// dues is a heap by time, and by name where that is the same.
type dues []entry

func (d dues) Len() int { return len(d) }
func (d dues) Less(i, j int) bool {
	if !d[i].At.Equal(d[j].At) {
		return d[i].At.Before(d[j].At)
	}
	return d[i].Credential < d[j].Credential
}
func (d dues) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *dues) Push(x any)   { *d = append(*d, x.(entry)) }
func (d *dues) Pop() any {
	old := *d
	last := old[len(old)-1]
	*d = old[:len(old)-1]
	return last
}

package agenda

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/calendar"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/schedule"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const day = 24 * time.Hour

// year is a model of the bus, the clerk and the rotations, in which a year takes
// seconds. Replicas die at any call, forget everything at restarts, hear timers
// twice and late, and their clocks differ.
type year struct {
	t      *testing.T
	random *rand.Rand
	inv    *inventory.Inventory
	clock  time.Time
	queue  events
	serial int

	past    map[string]schedule.Turned
	newest  map[string]string
	tainted map[string]bool // something has failed since its last turn: it may be late
	armed   map[string]message
	fired   map[string]message
	turns   *pawlv1.Turns
	seq     uint64
	running map[string][]string // members by rotation

	replicas []*Agenda
	down     bool
	jump     time.Duration // of the replicas' clocks, not of the bus's
	jumped   bool          // to ahead: what it decides meanwhile may be out of time
	turned   map[string]int
	notes    map[string]int
	late     int
	refused  int
	failed   int
}

type message struct {
	due *pawlv1.Due
	id  int
}

type event struct {
	at time.Time
	n  int
	do func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func (y *year) at(when time.Time, do func()) {
	y.serial++
	heap.Push(&y.queue, event{when, y.serial, do})
}

func (y *year) in(wait time.Duration, do func()) { y.at(y.clock.Add(wait), do) }

var errDied = errors.New("the replica died")

// dies now and then, before or after the effect.
func (y *year) dies() bool { return y.random.IntN(400) == 0 }

func (y *year) Past(_ context.Context, name string) (schedule.Turned, string, bool, error) {
	t, ok := y.past[name]
	return t, y.newest[name], ok, nil
}

// Fire finds nothing: in a model every timer fires in time.
func (y *year) Fire(context.Context, string, time.Time) (at time.Time, err error) { return at, nil }

func (y *year) Armed(_ context.Context, name string) (*pawlv1.Due, uint64, error) {
	for _, from := range []map[string]message{y.armed, y.fired} {
		if m, ok := from[name]; ok {
			return proto.CloneOf(m.due), uint64(y.armed[name].id), nil
		}
	}
	return nil, 0, nil
}

func (y *year) Arm(_ context.Context, name string, at time.Time, due *pawlv1.Due, seq uint64) error {
	if y.dies() {
		return errDied
	}
	if seq != overAny && seq != uint64(y.armed[name].id) {
		return bus.ErrConflict
	}
	y.serial++
	m := message{proto.CloneOf(due), y.serial}
	y.armed[name] = m
	if at.Before(y.clock) {
		at = y.clock.Add(250 * time.Millisecond)
	}
	y.at(at, func() {
		if y.armed[name].id != m.id {
			return // replaced
		}
		delete(y.armed, name)
		y.fired[name] = m
		y.deliver(name, m, y.clock, 1)
	})
	if y.dies() {
		return errDied
	}
	return nil
}

func (y *year) Turns(context.Context) (*pawlv1.Turns, uint64, error) {
	return proto.CloneOf(y.turns), y.seq, nil
}

func (y *year) SetTurns(_ context.Context, turns *pawlv1.Turns, seq uint64) error {
	if y.dies() {
		return errDied
	}
	if seq != y.seq {
		return bus.ErrConflict
	}
	y.turns, y.seq = proto.CloneOf(turns), y.seq+1
	if y.dies() {
		return errDied
	}
	return nil
}

func (y *year) Ended(_ context.Context, t *pawlv1.Turn, now time.Time) (bool, error) {
	if _, began := y.running[t.GetRotation()]; began {
		return false, nil
	}
	if y.newest[t.GetCredential()] == t.GetRotation() {
		return true, nil
	}
	return now.Sub(t.GetBegun().AsTime()) > beginWithin, nil
}

func (y *year) Note(_ context.Context, n *pawlv1.Note) { y.notes[n.GetKind()]++ }

// Begin is the clerk: all members or none, and only if none was turned meanwhile.
func (y *year) Begin(_ context.Context, t turn) (refusal string, again time.Duration, err error) {
	if y.dies() {
		return "", 0, errDied
	}
	var names []string
	for name, newest := range t.follows {
		if y.newest[name] == t.rotation {
			return "", 0, nil // begun before
		}
		if y.newest[name] != newest || y.past[name].Running {
			return name + " was turned meanwhile", 0, nil
		}
		names = append(names, name)
	}
	slices.Sort(names)
	if y.random.IntN(50) == 0 {
		y.refused++
		for _, name := range names {
			y.tainted[name] = true
		}
		return "a node is down", 0, nil
	}
	y.check(names)
	y.running[t.rotation] = names
	for _, name := range names {
		y.newest[name] = t.rotation
		p := y.past[name]
		p.Running = true
		y.past[name] = p
	}
	y.budget()
	y.in(time.Minute+time.Duration(y.random.IntN(240))*time.Second, func() { y.end(t.rotation, names) })
	if y.dies() {
		return "", 0, errDied
	}
	return "", 0, nil
}

// check is what policy promises of each turn.
func (y *year) check(names []string) {
	for _, name := range names {
		c, p := y.inv.Credentials[name], y.past[name]
		if !y.jumped && !y.inv.CalendarOf(c).Open(y.clock) {
			y.t.Errorf("%s turns at %s, outside %s or in %s", name, y.clock, c.Windows, c.Blackouts)
		}
		if c.Promotes != "" {
			if twin := y.past[c.Promotes]; twin.Adopted || y.clock.Sub(twin.Since) > c.Within+time.Minute {
				y.t.Errorf("%s turns at %s, and %s did at %s", name, y.clock, c.Promotes, twin.Since)
			}
		}
		for _, other := range c.Apart {
			if o := y.past[other]; o.Running || !o.Adopted && y.clock.Sub(o.Since) < y.inv.Schedule.Apart-time.Minute {
				y.t.Errorf("%s turns at %s, and %s did at %s (running %v)", name, y.clock, other, o.Since, o.Running)
			}
		}
		if p.Failed == 0 && y.clock.Sub(p.Since) < c.RotateEvery/4 && len(names) == 1 && name[0] != 's' { // staging turns for others, too
			y.t.Errorf("%s turns twice: at %s and %s", name, p.Since, y.clock)
		}
	}
}

func (y *year) budget() {
	if len(y.running) > y.inv.Schedule.InAll {
		y.t.Errorf("at %s %d turn at once", y.clock, len(y.running))
	}
	in := map[string]int{}
	for _, names := range y.running {
		in[y.inv.Credentials[names[0]].Cluster.Name]++
	}
	for cluster, n := range in {
		if n > y.inv.Schedule.PerCluster {
			y.t.Errorf("at %s %d turn at once in %s", y.clock, n, cluster)
		}
	}
}

func (y *year) end(rotation string, names []string) {
	delete(y.running, rotation)
	failed := y.random.IntN(50) == 0
	for _, name := range names {
		p := y.past[name]
		if failed {
			p.Failed, p.Tried, p.Running = p.Failed+1, y.clock, false
			y.tainted[name] = true
			y.failed++
		} else {
			if age := y.clock.Sub(p.Since); age > y.inv.Credentials[name].RotateEvery {
				if y.late++; !y.tainted[name] && !y.jumped {
					y.t.Errorf("%s was %s old at %s, and nothing had gone wrong", name, age, y.clock)
				}
			}
			p = schedule.Turned{Since: y.clock, Tried: y.clock}
			y.turned[name]++
			delete(y.tainted, name)
		}
		y.past[name] = p
	}
	if y.down {
		return // the next start looks at all
	}
	for _, name := range names {
		a := y.replica()
		if a.Look(context.Background(), name) != nil || a.LookAround(context.Background(), name) != nil {
			y.in(time.Minute, func() { y.sweepOne(name) })
		}
	}
}

// sweepOne is the sweep of a minute later.
func (y *year) sweepOne(name string) {
	a := y.replica()
	if a.Look(context.Background(), name) != nil || a.LookAround(context.Background(), name) != nil {
		y.in(time.Minute, func() { y.sweepOne(name) })
	}
}

func (y *year) deliver(name string, m message, firedAt time.Time, n uint64) {
	if y.fired[name].id != m.id {
		return // replaced by a newer one
	}
	if y.down {
		y.in(time.Minute, func() { y.deliver(name, m, firedAt, n+1) })
		return
	}
	again, err := y.replica().fired(context.Background(), name, proto.CloneOf(m.due), turn{rotation: fmt.Sprintf("r-%d", m.id), asked: firedAt, delivered: n})
	if err != nil {
		again = 10 * time.Second // nobody acknowledges
	} else if y.random.IntN(100) == 0 {
		again = max(again, time.Second) // the acknowledgement was lost
	}
	if again > 0 {
		y.in(again, func() { y.deliver(name, m, firedAt, n+1) })
	}
}

func (y *year) replica() *Agenda { return y.replicas[y.random.IntN(len(y.replicas))] }

// restart forgets what is in memory, and looks at every credential.
func (y *year) restart() {
	y.replicas = nil
	for i := range 2 {
		skew := time.Duration(i) * 300 * time.Millisecond
		y.replicas = append(y.replicas, newAgenda(y, y.inv, slog.New(slog.DiscardHandler), func() time.Time { return y.clock.Add(y.jump - skew) }))
	}
	for _, lead := range slices.Sorted(maps.Keys(y.inv.Credentials)) {
		if y.replicas[0].book.Lead(lead) == lead && y.replicas[0].Look(context.Background(), lead) != nil {
			y.in(time.Minute, func() { y.sweepOne(lead) })
		}
	}
}

func parsed[T any](t *testing.T, parse func(string) (T, error), texts ...string) (out []T) {
	t.Helper()
	for _, text := range texts {
		v, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// newYear has 1,000 credentials under policies of every kind.
func newYear(t *testing.T, seed uint64) *year {
	y := &year{t: t, random: rand.New(rand.NewPCG(seed, 1)), past: map[string]schedule.Turned{}, newest: map[string]string{}, tainted: map[string]bool{},
		armed: map[string]message{}, fired: map[string]message{}, turns: &pawlv1.Turns{}, running: map[string][]string{}, turned: map[string]int{}, notes: map[string]int{}}
	y.clock = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	y.inv = &inventory.Inventory{Credentials: map[string]*inventory.Credential{}, Schedule: inventory.Schedule{PerCluster: 2, InAll: 10, Jitter: 0.1, Apart: day}}
	holidays := parsed(t, calendar.ParseBlackout, "2026-12-20..2027-01-05 Europe/Berlin", "2026-11-23..2026-11-30 America/New_York")
	policies := []struct {
		windows   []string
		blackouts []calendar.Blackout
		every     time.Duration
	}{
		{[]string{"Sun 02:00-05:00 Europe/Berlin"}, nil, 90 * day},
		{[]string{"Sun 02:00-05:00 Europe/Berlin"}, holidays, 90 * day},
		{[]string{"Sat 22:00-02:00 America/New_York", "Wed 22:00-02:00 America/New_York"}, holidays, 30 * day},
		{[]string{"Sun 02:15-02:45 Europe/Berlin"}, nil, 60 * day}, // left out on 2026-03-29, twice on 2026-10-25
		{nil, nil, 30 * day},
		{nil, holidays, 180 * day},
	}
	for i := range 1000 {
		p := policies[i%len(policies)]
		c := &inventory.Credential{Name: fmt.Sprintf("c-%04d", i), Cluster: &inventory.Cluster{Name: fmt.Sprintf("cluster-%d", i%10)}, RotateEvery: p.every, Drain: 2 * time.Minute,
			Policy: inventory.Policy{Windows: parsed(t, calendar.ParseWindow, p.windows...), Blackouts: p.blackouts, Remind: 7 * day}}
		switch {
		case i >= 600 && i < 690: // groups of three
			c.Group, c.Cluster = fmt.Sprintf("g-%d", (i-600)/3), &inventory.Cluster{Name: fmt.Sprintf("cluster-%d", i/3%10)}
			c.RotateEvery, c.Policy = 90*day, inventory.Policy{Windows: parsed(t, calendar.ParseWindow, "Sun 01:00-06:00 Europe/Berlin"), Remind: 7 * day}
		case i >= 700 && i < 720: // pairs
			c.Apart = []string{fmt.Sprintf("c-%04d", i^1)}
		case i >= 800 && i < 820: // staging and production
			if i%2 == 0 {
				c.Name = fmt.Sprintf("s-%04d", i)
			} else {
				c.Promotes, c.Within = fmt.Sprintf("s-%04d", i-1), 8*day
			}
			c.RotateEvery = 90 * day
		}
		y.inv.Credentials[c.Name] = c
		// Turned some time ago; a hundredth was never looked after.
		age := time.Duration(y.random.Int64N(int64(c.RotateEvery * 8 / 10)))
		if y.random.IntN(100) == 0 {
			age, y.tainted[c.Name] = c.RotateEvery*2, true
		}
		y.past[c.Name], y.newest[c.Name] = schedule.Turned{Since: y.clock.Add(-age), Adopted: c.Name[0] == 's'}, "before"
	}
	for name, c := range y.inv.Credentials { // a group was turned together
		if c.Group != "" {
			delete(y.tainted, name)
			y.past[name] = schedule.Turned{Since: y.clock.Add(-time.Duration(len(c.Group)) * day)}
		}
	}
	return y
}

// jumps sets the replicas' clocks wrong for two days.
func (y *year) jumps(from time.Time, by time.Duration) {
	y.at(from, func() { y.jump, y.jumped = by, by > 0 })
	y.at(from.Add(2*day), func() {
		if y.jumped {
			for name := range y.inv.Credentials { // a window may be missed by it
				y.tainted[name] = true
			}
		}
		y.jump, y.jumped = 0, false
	})
}

// A year with restarts, an outage of half a day, clocks that are a day wrong, dead
// replicas and refused and failing rotations: every credential is turned within its policy unless
// something went wrong with it, in its windows, within the budget, and none twice.
func TestAYearOfEveryPolicy(t *testing.T) {
	y := newYear(t, 7)
	y.restart()
	for n := range 70 {
		y.in(time.Duration(n+1)*5*day+3*time.Hour, y.restart)
	}
	tuesday := time.Date(2026, 6, 16, 12, 0, 0, 0, time.UTC) // and it is back before any window
	y.at(tuesday, func() { y.down = true })
	y.at(tuesday.Add(14*time.Hour), func() { y.down = false; y.restart() })
	y.jumps(time.Date(2026, 5, 3, 0, 30, 0, 0, time.UTC), -day) // a Sunday, before most windows
	y.jumps(time.Date(2026, 8, 2, 0, 30, 0, 0, time.UTC), day)
	until := y.clock.Add(366 * day)
	for y.queue.Len() > 0 && !y.queue[0].at.After(until) && !t.Failed() {
		e := heap.Pop(&y.queue).(event)
		y.clock = e.at
		e.do()
	}
	total := 0
	for name, c := range y.inv.Credentials {
		total += y.turned[name]
		if least := int(366*day/c.RotateEvery) - 1; y.turned[name] < least {
			t.Errorf("%s turned %d times, every %s: at least %d", name, y.turned[name], c.RotateEvery, least)
		}
		if most := int(366*day/(c.RotateEvery*3/4)) + 2; y.turned[name] > most && c.Name[0] != 's' {
			t.Errorf("%s turned %d times, every %s: at most %d", name, y.turned[name], c.RotateEvery, most)
		}
		if age := y.clock.Sub(y.past[name].Since); age > c.RotateEvery && !y.tainted[name] {
			t.Errorf("%s is %s old", name, age)
		}
	}
	t.Logf("%d turns, %d late, %d refused, %d failed, notes %v", total, y.late, y.refused, y.failed, y.notes)
	if total < 5000 || y.refused == 0 || y.failed == 0 || y.notes["overdue"] == 0 {
		t.Error("not tried")
	}
}

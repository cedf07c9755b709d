// Package schedule says when each credential is due by policy: a pure function
// of pawl.yaml and of what the log tells of the past, so that every replica and
// every restart comes to the same date.
//
// A credential is due some time before its policy's deadline, by a share of the
// interval that its name and its last turn decide (jitter), in a window of its
// environment. Where no window begins between that and the deadline, the last
// window before is taken; where there is none before either, the first after.
// Credentials of one group are due together, when the first of them is.
package schedule

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pawl.dev/internal/calendar"
	"pawl.dev/internal/inventory"
)

// Turned is what the log tells of a credential. Of one that was never adopted
// there is none.
type Turned struct {
	Since   time.Time // when the rotation or adoption ended under which the current password was made
	Adopted bool      // it was an adoption: no schedule or person has turned it yet
	Tried   time.Time // when the newest rotation ended, however it did
	Failed  int       // how many rotations since then came to nothing
	Undone  bool      // the newest was a rollback that a person asked for
	Running bool      // a rotation is under way
	Locked  bool      // by an emergency
}

// Due is when a credential is to be turned by schedule.
type Due struct {
	Credential string    // of a group the first by name
	Together   []string  // the whole group; empty: it turns alone
	Deadline   time.Time // by which policy wants it to have been turned
	Planned    time.Time // when it is due; it never changes while nothing is turned
	From       time.Time // before which it is not tried: Planned, or later after rotations that came to nothing
	At         time.Time // when to try next: From, or later where that was missed
	Why        string    // why then, in a few words
	Blocked    string    // what keeps it from being turned, whenever that is; empty: nothing

	open calendar.Calendar // its windows, and apart from others
}

// Overdue reports whether the deadline has passed.
func (d Due) Overdue(now time.Time) bool { return now.After(d.Deadline) }

// Members are the credentials that turn.
func (d Due) Members() []string {
	if len(d.Together) == 0 {
		return []string{d.Credential}
	}
	return d.Together
}

// Facts tell of one credential; ok is false where it was never adopted.
type Facts func(credential string) (turned Turned, ok bool)

// Book is the policy of a whole pawl.yaml, prepared.
type Book struct {
	inv   *inventory.Inventory
	units map[string]*unit // by member
	leads []string         // the first of each unit, in the order of names
}

// unit is what turns together.
type unit struct {
	name    string // the group's or the credential's: all members have the same jitter
	members []*inventory.Credential
	open    calendar.Calendar
	apart   []*unit
	proves  []*inventory.Credential // those that are turned only after one of this unit was
}

// lead names the unit.
func (u *unit) lead() string { return u.members[0].Name }

// New prepares the policy.
func New(inv *inventory.Inventory) *Book {
	b := &Book{inv: inv, units: map[string]*unit{}}
	groups := map[string]*unit{}
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		c := inv.Credentials[name]
		u := groups[c.Group]
		if u == nil || c.Group == "" {
			u = &unit{name: c.Name}
			if c.Group != "" {
				u.name, groups[c.Group] = "group "+c.Group, u
			}
			b.leads = append(b.leads, c.Name)
		}
		u.members, u.open = append(u.members, c), u.open.And(c.Calendar())
		b.units[c.Name] = u
	}
	for _, u := range b.units {
		for _, c := range u.members {
			for _, other := range c.Apart {
				if o := b.units[other]; o != nil && o != u && !slices.Contains(u.apart, o) {
					u.apart = append(u.apart, o)
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		c := inv.Credentials[name]
		if u := b.units[c.Promotes]; u != nil {
			u.proves = append(u.proves, c)
		}
	}
	return b
}

// Lead returns the one that stands for the credential's group, and itself where
// it has none; empty where pawl.yaml does not know it.
func (b *Book) Lead(credential string) string {
	if u := b.units[credential]; u != nil {
		return u.lead()
	}
	return ""
}

// Related names the leads whose due dates change when the credential is turned:
// those kept apart from it, and those that it promotes or that promote it.
func (b *Book) Related(credential string) []string {
	u := b.units[credential]
	if u == nil {
		return nil
	}
	var leads []string
	add := func(other *unit) {
		if other != nil && other != u && !slices.Contains(leads, other.lead()) {
			leads = append(leads, other.lead())
		}
	}
	for _, o := range u.apart {
		add(o)
	}
	for _, c := range u.proves {
		add(b.units[c.Name])
	}
	for _, c := range u.members {
		add(b.units[c.Promotes])
	}
	return leads
}

// Members names those that turn with the credential, itself among them.
func (b *Book) Members(credential string) (names []string) {
	for _, c := range b.units[credential].members {
		names = append(names, c.Name)
	}
	return names
}

// Apart names the leads that the credential's group is kept apart from.
func (b *Book) Apart(credential string) (leads []string) {
	for _, o := range b.units[credential].apart {
		leads = append(leads, o.lead())
	}
	return leads
}

// Next says when the credential is due next, together with its group. ok is
// false where no schedule turns it: policy has no interval, or it is unknown.
// Blocked and the past of others are as of now.
func (b *Book) Next(credential string, facts Facts, now time.Time) (due Due, ok bool) {
	u := b.units[credential]
	if u == nil {
		return Due{}, false
	}
	due, ok = b.plan(u, facts, map[*unit]Due{})
	if !ok {
		return due, false
	}
	due.From, due.At = due.Planned, due.Planned
	if due.Blocked == "" {
		b.postpone(u, &due, facts, now)
		due.Blocked = b.blocked(u, facts, due.At)
	}
	return due, true
}

// Ready reports whether a due that Next returned may be turned at that time.
func (b *Book) Ready(due Due, now time.Time) bool {
	return due.Blocked == "" && !now.Before(due.From) && due.open.Open(now)
}

// Remind is from when on people are told that it will be due.
func (b *Book) Remind(due Due) time.Time {
	var before time.Duration
	for _, c := range b.units[due.Credential].members {
		before = max(before, c.Remind)
	}
	return due.Planned.Add(-before)
}

// plan fills in what does not depend on the present. planned remembers what was
// worked out of others on the way.
func (b *Book) plan(u *unit, facts Facts, planned map[*unit]Due) (due Due, ok bool) {
	if known, done := planned[u]; done {
		return known, !known.Deadline.IsZero() || known.Blocked != ""
	}
	planned[u] = Due{} // whoever asks of it on the way, in a circle, goes on without
	defer func() { planned[u] = due }()
	due.Credential, due.open = u.lead(), u.open
	if len(u.members) > 1 {
		for _, c := range u.members {
			due.Together = append(due.Together, c.Name)
		}
	}
	var first Turned
	var by *inventory.Credential
	for _, c := range u.members {
		t, adopted := facts(c.Name)
		switch {
		case !adopted:
			due.Blocked = c.Name + " is not adopted"
			continue
		case t.Locked:
			due.Blocked = c.Name + " is locked"
		case t.Running:
			due.Blocked = "a rotation of " + c.Name + " is under way"
		}
		if c.RotateEvery > 0 && (by == nil || t.Since.Add(c.RotateEvery).Before(due.Deadline)) {
			first, by, due.Deadline = t, c, t.Since.Add(c.RotateEvery)
		}
	}
	if by == nil {
		return due, due.Blocked != "" && slices.ContainsFunc(u.members, func(c *inventory.Credential) bool { return c.RotateEvery > 0 })
	}
	if due.Blocked != "" {
		due.Planned = due.Deadline
		return due, true
	}
	due.open = u.open.Without(append(b.kept(u, facts, planned), b.unprovable(u)...)...)
	latest := due.Deadline.Add(-margin(by))
	s := slot{open: due.open, since: first.Since, first: first.Since.Add(by.RotateEvery / 4), latest: latest, early: time.Duration(b.inv.Schedule.Jitter * float64(by.RotateEvery)), seed: u.name}
	due.Planned, due.Why = s.choose()
	if len(u.members) > 1 {
		due.Why = strings.TrimPrefix(due.Why+", as "+by.Name+" is", ", ")
	}
	b.prove(u, &due, latest, facts, planned)
	return due, true
}

// margin is what a rotation may take, and a little more: it is begun so long
// before the deadline.
func margin(c *inventory.Credential) time.Duration {
	return min(c.RotateEvery/4, c.Drain+15*time.Minute)
}

// kept returns when the unit must not turn because others have turned, or are
// about to. Of two that are due, the first by name goes ahead.
func (b *Book) kept(u *unit, facts Facts, planned map[*unit]Due) (closed []calendar.Span) {
	apart := b.inv.Schedule.Apart
	for _, o := range u.apart {
		for _, c := range o.members {
			if t, ok := facts(c.Name); ok && !t.Adopted {
				closed = append(closed, calendar.Span{Begin: t.Since.Add(-apart), End: t.Since.Add(apart)})
			}
		}
		if o.lead() < u.lead() {
			if other, ok := b.plan(o, facts, planned); ok && other.Blocked == "" {
				closed = append(closed, calendar.Span{Begin: other.Planned.Add(-apart), End: other.Planned.Add(apart)})
			}
		}
	}
	return closed
}

// unprovable returns when the unit cannot be turned because a blackout keeps
// what it promotes from being turned in time before.
func (b *Book) unprovable(u *unit) (closed []calendar.Span) {
	for _, c := range u.members {
		twin := b.units[c.Promotes]
		if twin == nil {
			continue
		}
		for _, member := range twin.members {
			for _, black := range member.Blackouts {
				before, some := twin.open.Last(black.Begin.Add(-c.Within), black.Begin)
				after, more := twin.open.Next(black.End)
				if !some || !more {
					continue
				}
				if expires := before.End.Add(c.Within); expires.Before(after.Begin) {
					closed = append(closed, calendar.Span{Begin: expires, End: after.Begin})
				}
			}
		}
	}
	return closed
}

// prove has the unit turn before those that it promotes, unless its own deadline
// comes first.
func (b *Book) prove(u *unit, due *Due, latest time.Time, facts Facts, planned map[*unit]Due) {
	for _, c := range u.proves {
		after, ok := b.plan(b.units[c.Name], facts, planned)
		if !ok || after.Blocked != "" {
			continue
		}
		begin, end := after.Planned.Add(-c.Within), after.Planned
		if t, turned := lastTurn(c.Promotes, facts); turned && !t.Before(begin) {
			begin = t.Add(c.Within) // proven; anew, where the other is not turned by then
			end = begin.Add(c.Within)
		}
		// Not as early as may be, so that the other may be held up a little.
		span, ok := due.open.Next(begin.Add(c.Within / 4))
		if !ok || !span.Begin.Before(end) {
			span, ok = due.open.Next(begin)
		}
		if !ok {
			continue
		}
		at := span.Begin.Add(part(seed(u.name, begin, "before"), min(span.Length(), max(0, end.Sub(span.Begin)))/2))
		if !at.After(latest) || at.Before(due.Planned) {
			due.Planned, due.Why = at, "before "+c.Name+", which it promotes"
			latest = at
		}
	}
}

// lastTurn is when a rotation of the credential last completed; an adoption
// proves nothing.
func lastTurn(credential string, facts Facts) (time.Time, bool) {
	t, ok := facts(credential)
	return t.Since, ok && !t.Adopted
}

// postpone sets At where Planned has passed, or where it has failed before.
func (b *Book) postpone(u *unit, due *Due, facts Facts, now time.Time) {
	from, why := now, "missed "+due.Planned.UTC().Format("2006-01-02 15:04")+"Z: in the next window"
	if !u.open.Bounded() {
		why = "missed " + due.Planned.UTC().Format("2006-01-02 15:04") + "Z"
	}
	for _, c := range u.members {
		t, _ := facts(c.Name)
		if wait := backoff(c, t); wait > 0 && t.Tried.Add(wait).After(from) {
			from = t.Tried.Add(wait)
			why = fmt.Sprintf("again after %d that came to nothing", t.Failed)
		}
	}
	if !from.After(due.Planned) {
		return
	}
	if from.After(now) {
		due.From = from
	}
	due.Why = strings.TrimPrefix(due.Why+"; "+why, "; ")
	due.At = b.Retry(*due, from)
}

// Retry is when to try again, from that time on, what is late: spread, so that a
// backlog does not come all at once.
func (b *Book) Retry(due Due, from time.Time) time.Time {
	u := b.units[due.Credential]
	span, ok := due.open.Next(from)
	if !ok {
		return from.Add(366 * 24 * time.Hour)
	}
	over := min(time.Hour, span.Length()/2)
	for _, c := range u.members {
		if c.RotateEvery > 0 {
			over = min(over, c.RotateEvery/10)
		}
	}
	return span.Begin.Add(part(seed(u.name, span.End, "late"), over))
}

// backoff is how long a credential rests after rotations that came to nothing:
// an hour, then twice as long each time, up to a week, and a day after a person
// rolled one back; never more than a quarter of its interval.
func backoff(c *inventory.Credential, t Turned) time.Duration {
	if t.Failed == 0 {
		return 0
	}
	wait := min(time.Hour<<min(t.Failed-1, 8), 7*24*time.Hour)
	if t.Undone {
		wait = max(wait, 24*time.Hour)
	}
	if c.RotateEvery > 0 {
		wait = min(wait, c.RotateEvery/4)
	}
	return wait
}

// blocked says what keeps the unit from being turned at that time.
func (b *Book) blocked(u *unit, facts Facts, at time.Time) string {
	for _, c := range u.members {
		if why := b.Unproven(c.Name, facts, at); why != "" {
			return why
		}
	}
	for _, o := range u.apart {
		for _, c := range o.members {
			t, _ := facts(c.Name)
			if t.Running {
				return "kept apart from " + c.Name + ", which is turning"
			}
		}
	}
	return ""
}

// Unproven says why the credential's staging twin does not vouch for it at that
// time; empty where it does, or where there is none.
func (b *Book) Unproven(credential string, facts Facts, at time.Time) string {
	c := b.inv.Credentials[credential]
	if c == nil || c.Promotes == "" {
		return ""
	}
	twin, ok := facts(c.Promotes)
	switch {
	case !ok:
		return fmt.Sprintf("%s, which must be turned before %s, is not adopted", c.Promotes, c.Name)
	case twin.Adopted:
		return fmt.Sprintf("%s, which must be turned within %s before %s, was not turned yet", c.Promotes, inventory.FormatDuration(c.Within), c.Name)
	case at.Sub(twin.Since) > c.Within:
		return fmt.Sprintf("%s must be turned within %s before %s, and was last on %s", c.Promotes, inventory.FormatDuration(c.Within), c.Name, twin.Since.UTC().Format(time.DateOnly))
	}
	return ""
}

// seed makes a number of what identifies a turn, the same everywhere.
func seed(name string, since time.Time, what string) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%d\n%s", name, since.UnixNano(), what))
	return binary.BigEndian.Uint64(sum[:])
}

// part is a part of a length of time, by a seed.
func part(seed uint64, of time.Duration) time.Duration {
	return time.Duration(float64(seed>>11) / (1 << 53) * float64(of))
}

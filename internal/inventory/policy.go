package inventory

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"pawl.dev/internal/calendar"
	"pawl.dev/internal/secret"
)

// Policy is what an environment says of its credentials, and each of them may
// say otherwise.
type Policy struct {
	Windows   []calendar.Window   // in which schedules may turn it; none: at any time
	Blackouts []calendar.Blackout // in which they may not
	Remind    time.Duration       // how long before it is due people are told; default 7d, at most a quarter of rotate_every
}

// Schedule is what bounds all schedules together.
type Schedule struct {
	PerCluster int           // how many rotations a schedule may have under way in one cluster; default 2
	InAll      int           // and in all; default 5
	Jitter     float64       // by up to which share of rotate_every it turns earlier; default 0.1, from 0 to 0.5
	Apart      time.Duration // the distance between credentials kept apart; default 1d
}

// Calendar is when a schedule may turn the credential.
func (p Policy) Calendar() calendar.Calendar { return calendar.New(p.Windows, p.Blackouts) }

var policyKeys = []string{"rotate_every", "windows", "blackouts", "remind", "password_length", "password_alphabet"}

// policy reads what the object says of its own; the rest is as in policy.
func (o object) policy(policy Policy) Policy {
	if at := o.at("windows"); at.node != nil {
		policy.Windows = nil
		for _, item := range at.list() {
			w, err := calendar.ParseWindow(item.text())
			if err != nil {
				item.fault("%v", err)
				continue
			}
			policy.Windows = append(policy.Windows, w)
		}
	}
	if at := o.at("blackouts"); at.node != nil {
		policy.Blackouts = nil
		for _, item := range at.list() {
			b, err := calendar.ParseBlackout(item.text())
			if err != nil {
				item.fault("%v", err)
				continue
			}
			policy.Blackouts = append(policy.Blackouts, b)
		}
	}
	policy.Remind = o.at("remind").duration(policy.Remind, 0, 365*day)
	return policy
}

// passwords reads what new passwords are made of; of what the object does not
// say, the environment's length and alphabet hold.
func (o object) passwords(length int, alphabet string) (int, string) {
	if at := o.at("password_alphabet"); at.node != nil {
		name := at.choice("", slices.Sorted(maps.Keys(secret.Alphabets))...)
		alphabet, length = secret.Alphabets[name], 0 // another alphabet's length says nothing of this one's
	}
	if alphabet == "" {
		alphabet = secret.Base62
	}
	if length == 0 {
		length = secret.FullLength(alphabet)
	}
	return o.at("password_length").integer(length, secret.LeastLength(alphabet), 128), alphabet
}

// schedule runs once all credentials are read: it reads what bounds them
// together, and refuses what no schedule could keep.
func (d *document) schedule(v value, inv *Inventory) Schedule {
	o := v.object("per_cluster", "in_all", "jitter", "apart")
	s := Schedule{
		PerCluster: o.at("per_cluster").integer(2, 1, 200),
		InAll:      o.at("in_all").integer(5, 1, 200),
		Jitter:     o.at("jitter").share(0.1, 0.5),
		Apart:      o.at("apart").duration(day, time.Minute, 90*day),
	}
	if o.at("in_all").node == nil {
		s.InAll = max(s.InAll, s.PerCluster)
	}
	if s.InAll < s.PerCluster {
		o.at("in_all").fault("%d is less than per_cluster, %d, which could never be reached: raise in_all, or lower per_cluster", s.InAll, s.PerCluster)
	}
	if len(d.faults) > 0 {
		return s // what follows would only repeat them
	}
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		c := inv.Credentials[name]
		if c.Remind == 0 && d.policies[name].at("remind").node == nil && c.RotateEvery > 0 {
			c.Remind = min(7*day, c.RotateEvery/4)
		}
		d.readApart(c, inv)
		d.readPromotion(c, inv)
	}
	if len(d.faults) > 0 {
		return s
	}
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		d.checkPolicy(inv.Credentials[name], inv, s)
	}
	return s
}

// share is a percentage.
func (v value) share(fallback, most float64) float64 {
	if v.node == nil {
		return fallback
	}
	text := v.text()
	digits, isShare := strings.CutSuffix(text, "%")
	n, err := strconv.ParseFloat(digits, 64)
	if text != "" && (!isShare || err != nil || math.IsNaN(n) || n < 0 || n/100 > most) {
		v.fault("%.60q must be a share from 0%% to %.0f%%, such as 10%%", text, most*100)
		return fallback
	}
	return n / 100
}

// readApart makes the distance mutual.
func (d *document) readApart(c *Credential, inv *Inventory) {
	for _, item := range d.policies[c.Name].at("apart").list() {
		name := item.text()
		other, known := inv.Credentials[name]
		switch {
		case !known:
			item.reference("credential", slices.Collect(maps.Keys(inv.Credentials)))
		case other == c:
			item.fault("is this credential itself: name another")
		case c.Group != "" && c.Group == other.Group:
			item.fault("%s is of the same group, %s, which turns together: take one of the two out of it, or delete this", name, c.Group)
		default:
			c.keepFrom(name)
			other.keepFrom(c.Name)
		}
	}
}

func (c *Credential) keepFrom(name string) {
	if !slices.Contains(c.Apart, name) {
		c.Apart = append(c.Apart, name)
		slices.Sort(c.Apart)
	}
}

func (d *document) readPromotion(c *Credential, inv *Inventory) {
	o := d.policies[c.Name]
	at := o.at("promotes")
	c.Promotes = at.text()
	if c.Promotes == "" {
		if o.at("within").node != nil {
			o.at("within").fault("stands without promotes: add promotes: CREDENTIAL, the one that must be turned before, or delete the line")
		}
		return
	}
	c.Within = o.at("within").duration(7*day, time.Minute, 365*day)
	at.reference("credential", slices.Collect(maps.Keys(inv.Credentials)))
}

// checkPolicy refuses what contradicts itself.
func (d *document) checkPolicy(c *Credential, inv *Inventory, s Schedule) {
	o := d.policies[c.Name]
	if twin := inv.Credentials[c.Promotes]; twin != nil {
		checkPromotion(o.at("promotes"), c, twin, inv, s.Apart)
	}
	if c.RotateEvery == 0 {
		return
	}
	at := o.at("rotate_every") // or the line of the credential
	if n := len(c.Apart); n > 0 && s.Apart*time.Duration(n+1) > c.RotateEvery {
		o.at("apart").fault("%s apart from %s does not fit into rotate_every, %s: lower schedule.apart, or name fewer", FormatDuration(s.Apart), strings.Join(c.Apart, ", "), FormatDuration(c.RotateEvery))
	}
	if c.Remind >= c.RotateEvery {
		o.at("remind").fault("remind (%s) must be shorter than rotate_every (%s)", FormatDuration(c.Remind), FormatDuration(c.RotateEvery))
	}
	open := inv.CalendarOf(c)
	gap, meet := open.Gap(someTime)
	switch {
	case !meet:
		o.at("group").fault("the windows of %s never meet, and it turns together: give all of them a window that is the same", strings.Join(inv.Together(c), ", "))
	case gap > c.RotateEvery/10*7: // what was turned by hand between two windows needs one in time, too
		at.fault("rotate_every (%s) is too short for windows that are up to %s apart, it would be late now and then: add windows, or turn it less often", FormatDuration(c.RotateEvery), roughly(gap))
	}
	for _, b := range c.Blackouts {
		if b.Length() > c.RotateEvery {
			at.fault("rotate_every (%s) is shorter than the blackout %s: it would be late whatever happens: shorten the blackout, or turn it less often", FormatDuration(c.RotateEvery), b)
		}
	}
}

// roughly leaves out the hour by which weeks differ.
func roughly(gap time.Duration) string {
	if gap > day {
		gap = gap.Truncate(day)
	}
	return FormatDuration(gap)
}

// someTime begins the year that windows are tried in; which year does not matter.
var someTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func checkPromotion(v value, c, twin *Credential, inv *Inventory, apart time.Duration) {
	for seen, next := []string{c.Name}, twin; next != nil; next = inv.Credentials[next.Promotes] {
		if slices.Contains(seen, next.Name) {
			v.fault("leads round in a circle (%s): one of them must be turned first, without promotes", strings.Join(append(seen, next.Name), " after "))
			return
		}
		seen = append(seen, next.Name)
	}
	switch {
	case c.Group != "" && c.Group == twin.Group:
		v.fault("%s is of the same group, %s, which turns together: it cannot be turned before: take one of the two out of it", twin.Name, c.Group)
	case c.RotateEvery > 0 && twin.RotateEvery == 0:
		v.fault("%s has no rotate_every, and nothing would turn it before: give its environment one", twin.Name)
	case slices.Contains(c.Apart, twin.Name) && apart >= c.Within:
		v.fault("%s must be turned within %s before, and is kept %s apart: lower schedule.apart", twin.Name, FormatDuration(c.Within), FormatDuration(apart))
	}
	gap, _ := inv.CalendarOf(twin).Gap(someTime)
	if gap > c.Within {
		v.fault("%s has windows %s apart, and must be turned within %s before: lengthen within, or add windows", twin.Name, roughly(gap), FormatDuration(c.Within))
	}
}

// CalendarOf is when schedules may turn the credential: when its whole group may.
func (i *Inventory) CalendarOf(c *Credential) calendar.Calendar {
	open := c.Calendar()
	if c.Group == "" {
		return open
	}
	for _, name := range i.Together(c) {
		if name != c.Name {
			open = open.And(i.Credentials[name].Calendar())
		}
	}
	return open
}

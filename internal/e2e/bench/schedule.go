package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/schedule"
)

// sizes are the numbers of credentials that a due date's cost is compared at; the
// last is that of the storm.
var sizes = []int{100, 1000, 10_000}

const (
	probes       = 40               // credentials that come due while the others rest
	probed       = 25 * time.Second // for how long
	overdueOf    = 3000             // of the storm
	stormLasts   = 30 * time.Second // from the scheduler's start on
	stormHold    = 2 * time.Second  // how long each rotation of the storm takes
	forecastDays = 90
)

// schedules is what the scheduler takes, as a process of its own: with NATS in
// this one, and the other services played.
type schedules struct {
	Dues     []dueDates // by size
	Storm    storm
	Forecast struct {
		Took  time.Duration
		Turns int
	}
}

// dueDates is the cost of one, from the timer to the next timer armed.
type dueDates struct {
	Credentials int
	begun       cell    // from the due date to the request being stored
	Stored      float64 // messages, each
}

func (d dueDates) P50() float64 { return d.begun.quantile(.5) }
func (d dueDates) Max() float64 { return d.begun.quantile(1) }
func (d dueDates) CPU() float64 { return d.begun.each(d.begun.cpu.pawl) }

// storm is a start with many overdue.
type storm struct {
	Credentials, Overdue    int
	Begun                   int // while it lasted
	AtOnce, InCluster       int // most
	Memory                  resident
	CPU                     time.Duration
	Warnings                int
	PerCluster, InAll, Most int
}

// ratio is what the most credentials cost beside the fewest.
func (s *schedules) ratio(figure func(dueDates) float64) float64 {
	return figure(s.Dues[len(s.Dues)-1]) / figure(s.Dues[0])
}

func (s *schedules) RatioP50() float64 { return s.ratio(dueDates.P50) }
func (s *schedules) RatioCPU() float64 { return s.ratio(dueDates.CPU) }

func measureSchedule(p *part) {
	progress("schedule: building the scheduler")
	binary := filepath.Join(p.dir, "scheduler")
	must(command(p, "", "go", "build", "-o", binary, "pawl.dev/services/scheduler"))
	var towns []*town
	for _, n := range sizes {
		progress("schedule: setting up %d credentials", n)
		towns = append(towns, p.newTown(filepath.Join(p.dir, fmt.Sprint(n)), n))
	}
	s := &schedules{Dues: p.dues(binary, towns)}
	for _, t := range towns {
		check(t.stopScheduler())
	}
	last := towns[len(towns)-1]
	s.Storm = last.storm(p, binary)
	s.forecast(last.inventory)
	p.schedule = s
}

// dues has the probes of all sizes come due, when no scheduler has anything else to
// do.
func (p *part) dues(binary string, towns []*town) []dueDates {
	progress("schedule: starting a scheduler for each")
	began := time.Now()
	for _, t := range towns {
		t.start(binary)
	}
	for _, t := range towns {
		t.untilArmed(p)
	}
	// A minute after its start, and each minute from then on, a scheduler looks at
	// every credential: not while this is measured.
	at := began.Add(18 * time.Second)
	for n := 0; at.Before(time.Now()); n++ {
		at = began.Add(50*time.Second + time.Duration(n)*time.Minute)
	}
	check(waitUntil(p, at))
	progress("schedule: %d due dates in each", probes)
	var all errgroup.Group
	dues := make([]dueDates, len(towns))
	for i, t := range towns {
		all.Go(func() (err error) { dues[i], err = t.probe(p); return err })
	}
	check(all.Wait())
	return dues
}

// probe has the probes adopted, and turned as often as comes.
func (t *town) probe(ctx context.Context) (d dueDates, err error) {
	d.Credentials = t.n
	book, since := schedule.New(t.inventory), map[string]schedule.Turned{}
	names := t.names(true)
	for _, name := range names {
		since[name] = schedule.Turned{Since: time.Now()} // about: the log says when to the nanosecond
	}
	if err := t.played.adopt(ctx, names); err != nil {
		return d, err
	}
	for _, name := range names {
		if since[name], _, _, err = schedule.Past(ctx, t.played.reader, name); err != nil {
			return d, err
		}
	}
	if err := waitUntil(ctx, time.Now().Add(14*time.Second)); err != nil { // the first is due after a quarter of the minute
		return d, err
	}
	stored, err := t.stored(ctx)
	if err != nil {
		return d, err
	}
	before, err := used(t.scheduler.Process.Pid)
	if err != nil {
		return d, err
	}
	ended := time.After(probed)
	for during := true; during; {
		select {
		case turned := <-t.played.turned:
			due, ok := book.Next(turned.credential, func(name string) (schedule.Turned, bool) { past, known := since[name]; return past, known }, turned.begun)
			if !ok || turned.begun.Before(due.Planned) {
				return d, fmt.Errorf("%s was turned at %s: it was not due", turned.credential, turned.begun)
			}
			d.begun.took = append(d.begun.took, turned.begun.Sub(due.Planned))
			since[turned.credential] = schedule.Turned{Since: turned.ended}
		case err := <-t.played.failed:
			return d, err
		case <-ctx.Done():
			return d, ctx.Err()
		case <-ended:
			during = false
		}
	}
	if len(d.begun.took) < probes/4 {
		return d, fmt.Errorf("of %d credentials, %d came due %d times: the machine has too much to do", t.n, probes, len(d.begun.took))
	}
	after, err := used(t.scheduler.Process.Pid)
	if err != nil {
		return d, err
	}
	now, err := t.stored(ctx)
	d.Stored, d.begun.cpu.pawl = float64(now-stored)/float64(len(d.begun.took)), after-before
	slices.Sort(d.begun.took)
	progress("schedule: %d credentials: %d turned, from due to begun p50 %.1f ms, at most %.1f ms, CPU %.1f ms each, %.1f messages", t.n, len(d.begun.took), d.P50(), d.Max(), d.CPU(), d.Stored)
	return d, err
}

// storm starts the scheduler anew after a change of policy, by which many are
// overdue.
func (t *town) storm(ctx context.Context, binary string) storm {
	s := storm{Credentials: len(t.inventory.Credentials), Overdue: overdueOf, PerCluster: 2, InAll: 5}
	s.Most = s.InAll * int(stormLasts/stormHold+1)
	t.configure(overdueOf, s.PerCluster, s.InAll)
	t.played.hold.Store(int64(stormHold))
	t.played.forget()
	progress("schedule: starting with %d of %d overdue", s.Overdue, s.Credentials)
	began := time.Now()
	t.start(binary)
	check(waitUntil(ctx, began.Add(stormLasts)))
	s.Begun, s.AtOnce, s.InCluster = t.played.most()
	s.Memory, s.CPU, s.Warnings = must(residentOf(t.scheduler.Process.Pid)), must(used(t.scheduler.Process.Pid)), t.warnings()
	if s.AtOnce > s.InAll || s.InCluster > s.PerCluster {
		check(fmt.Errorf("%d turned at once, %d of them in one cluster: the budget is %d and %d", s.AtOnce, s.InCluster, s.InAll, s.PerCluster))
	}
	return s
}

// forecast is what `pawl schedule` and the dashboard work out.
func (s *schedules) forecast(inv *inventory.Inventory) {
	now, past := time.Now(), map[string]schedule.Turned{}
	for i, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		c := *inv.Credentials[name]
		c.RotateEvery = time.Duration([]int{30, 90, 90, 180}[i%4]) * 24 * time.Hour
		inv.Credentials[name] = &c
		past[name] = schedule.Turned{Since: now.Add(-c.RotateEvery * time.Duration(i) / time.Duration(len(inv.Credentials)))}
	}
	progress("schedule: forecast of %d days", forecastDays)
	began := time.Now()
	s.Forecast.Turns = len(schedule.Forecast(inv, past, now, now.AddDate(0, 0, forecastDays)))
	s.Forecast.Took = time.Since(began)
}

func waitUntil(ctx context.Context, at time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(at)):
		return nil
	}
}

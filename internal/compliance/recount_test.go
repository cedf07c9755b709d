package compliance

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// The recount reads the messages themselves, walks them again for each question,
// and shares no code with the report.

// recounted is one rotation.
type recounted struct {
	credential, id       string
	begin                *pawlv1.Requested
	requested            time.Time
	ended                time.Time // zero: not before the end of the period
	outcome              string
	contained, recovered time.Duration // -1: never
}

func recountRotations(log []raw, p Period) []recounted {
	var all []recounted
	for _, m := range log {
		if m.stream != "PAWL_ROTATION" || m.name != "requested" || !m.at.Before(p.To) {
			continue
		}
		r := recounted{credential: m.credential, id: m.rotation, begin: m.event.GetRequested(), requested: m.at, outcome: "running", contained: -1, recovered: -1}
		for _, o := range log {
			if o.stream != "PAWL_ROTATION" || o.credential != r.credential || !o.at.Before(p.To) {
				continue
			}
			switch {
			case o.rotation == r.id && (o.name == "completed" || o.name == "rolled-back"):
				r.ended, r.outcome = o.at, o.name
			case o.event.GetRequested().GetSupersedes() == r.id:
				r.ended, r.outcome = o.at, "superseded"
			case o.rotation == r.id && o.name == "contained":
				r.contained = o.at.Sub(r.requested)
			case o.rotation == r.id && o.name == "verified":
				r.recovered = o.at.Sub(r.requested)
			}
		}
		all = append(all, r)
	}
	return all
}

func (r recounted) within(p Period) bool { return r.ended.IsZero() || !r.ended.Before(p.From) }

func (r recounted) kind() string {
	switch r.begin.GetAction() {
	case pawlv1.Action_ACTION_ADOPT:
		return "adoption"
	case pawlv1.Action_ACTION_ROLLBACK:
		return "rollback"
	case pawlv1.Action_ACTION_CONTAIN, pawlv1.Action_ACTION_UNLOCK:
		return "emergency"
	case pawlv1.Action_ACTION_LOCK:
		return "lock"
	}
	return "rotation"
}

// inForce returns since when the password in force was so, after every message
// that was stored until then.
func inForce(log []raw, credential string, stored func(time.Time) bool) (made time.Time, ok bool) {
	current := ""
	begun, completed := map[string]*pawlv1.Requested{}, map[string]time.Time{}
	for _, m := range log {
		if m.stream != "PAWL_ROTATION" || m.credential != credential || !stored(m.at) {
			continue
		}
		switch m.name {
		case "requested":
			begun[m.rotation] = m.event.GetRequested()
		case "contained":
			current = ""
		case "completed":
			if completed[m.rotation] = m.at; begun[m.rotation].GetAction() != pawlv1.Action_ACTION_LOCK {
				current = m.rotation
			}
		case "rolled-back":
			if begun[m.rotation].GetAction() == pawlv1.Action_ACTION_ROLLBACK {
				current = begun[m.rotation].GetRestores()
			}
		}
	}
	made, ok = completed[current]
	return made, ok
}

// numbers are what a report and a recount must agree on, by name.
type numbers map[string]int

func recount(inv *inventory.Inventory, log []raw, p Period) numbers {
	n := numbers{}
	for _, r := range recountRotations(log, p) {
		if !r.within(p) {
			continue
		}
		if !r.requested.Before(p.From) {
			n["requested"]++
		} else {
			n["running before"]++
		}
		if r.ended.IsZero() {
			n["running at the end"]++
			n["exception still running"]++
		} else {
			n["ended "+r.kind()+" "+r.outcome]++
		}
		switch {
		case r.outcome == "superseded":
			n["exception superseded"]++
		case r.outcome == "rolled-back" && r.kind() == "rollback":
			n["exception rolled back by request"]++
		case r.outcome == "rolled-back":
			n["exception rolled back"]++
		}
		if _, ok := inv.Credentials[r.credential]; !ok {
			n["exception not in pawl.yaml"]++
		}
		if k := r.kind(); k == "emergency" || k == "lock" {
			n["emergencies"]++
			n["contain "+r.credential+r.id] = int(r.contained)
			n["recover "+r.credential+r.id] = int(r.recovered)
		}
	}
	for name, c := range inv.Credentials {
		made, ok := inForce(log, name, func(at time.Time) bool { return at.Before(p.To) })
		ever := false
		for _, m := range log {
			ever = ever || m.credential == name && m.name == "contained" && m.at.Before(p.To)
		}
		switch {
		case !ok && ever:
			n["state not in force"]++
		case !ok:
			n["state not adopted"]++
		case c.RotateEvery == 0:
			n["state no interval configured"]++
		case p.To.Sub(made) > c.RotateEvery:
			n["state overdue"]++
		default:
			n["state in time"]++
		}
		if ok {
			n["age "+name] = int(p.To.Sub(made))
		}
	}
	for _, m := range log {
		if m.at.Before(p.From) || !m.at.Before(p.To) {
			continue
		}
		n["record "+m.stream+" "+m.service+" "+m.name]++
		what := map[string]string{"stalled": "stalled", "refused": "request refused", "drift": "drift", "undecodable": "could not be decoded"}[m.name]
		if what != "" {
			n["exception "+what]++
		}
		if m.name == "opened" {
			n["opened "+m.credential+" "+m.service]++
		}
	}
	return n
}

// read takes the same numbers from a report.
func read(r *Report) numbers {
	n := numbers{}
	put := func(name string, value int) {
		if value != 0 {
			n[name] += value
		}
	}
	t := r.Totals
	put("requested", t.Requested)
	put("running before", t.RunningBefore)
	put("running at the end", t.RunningAtEnd)
	put("emergencies", t.Emergencies)
	put("state in time", t.InTime)
	put("state overdue", t.Overdue)
	put("state no interval configured", t.NoInterval)
	put("state not in force", t.NotInForce)
	put("state not adopted", t.NotAdopted)
	for _, e := range t.Ended {
		put("ended "+e.Kind+" "+e.Outcome, e.Count)
	}
	for _, c := range r.Coverage {
		if c.Since != nil {
			n["age "+c.Credential] = int(c.Age)
		}
	}
	for _, e := range r.Emergencies {
		for what, took := range map[string]*time.Duration{"contain ": e.ToContain, "recover ": e.ToRecover} {
			n[what+e.Credential+e.ID] = -1
			if took != nil {
				n[what+e.Credential+e.ID] = int(*took)
			}
		}
	}
	for _, e := range r.Exceptions {
		switch e.What {
		case "older than its policy", StateOverdue, StateNotAdopted, StateNotInForce, StateNoInterval, "age counted from adoption", "longer interval, as configured":
		default:
			put("exception "+e.What, e.Times)
		}
	}
	for _, k := range r.Records {
		put("record "+k.Stream+" "+k.Service+" "+k.Event, k.Count)
	}
	for _, a := range r.Recipients {
		put("opened "+a.Credential+" "+a.Service, a.Times)
	}
	return n
}

// report makes one, from records in an order of its own.
func report(inv *inventory.Inventory, trail []Record, p Period, r *rand.Rand) *Report {
	b := NewBuilder(inv, p)
	for _, i := range r.Perm(len(trail)) {
		b.Add(trail[i])
	}
	return b.Report(Frameworks[0], Trail{}, nil)
}

// instants are moments at which something may change, or just not.
func instants(r *rand.Rand, inv *inventory.Inventory, log []raw, p Period) []time.Time {
	all := []time.Time{p.From, p.To.Add(-1)}
	for _, m := range log {
		for _, at := range []time.Time{m.at, m.at.Add(30 * day), m.at.Add(90 * day), m.at.Add(365 * day)} {
			all = append(all, at.Add(-1), at, at.Add(1))
		}
	}
	all = slices.DeleteFunc(all, func(t time.Time) bool { return !p.holds(t) })
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(len(all), 60)]
}

// periods are some whose ends are anywhere, and some whose ends are just where
// something happened.
func periods(r *rand.Rand, log []raw) []Period {
	span := log[len(log)-1].at.Sub(begin)
	anywhere := func() time.Time { return begin.Add(time.Duration(r.Int64N(int64(span)))) }
	just := func() time.Time { return log[r.IntN(len(log))].at.Add(time.Duration(r.IntN(3) - 1)) }
	var all []Period
	for _, ends := range [][2]time.Time{{anywhere(), anywhere()}, {just(), just()}, {just(), anywhere()}, {anywhere(), just()}, {begin, log[len(log)-1].at.Add(1)}} {
		slices.SortFunc(ends[:], time.Time.Compare)
		if ends[0].Before(ends[1]) {
			all = append(all, Period{ends[0], ends[1]})
		}
	}
	return all
}

// seeds is how many histories are recounted: each a few hundred rotations.
const seeds = 60

func TestReportIsWhatAnIndependentRecountFinds(t *testing.T) {
	met := numbers{} // over all seeds: what was never met was never compared
	for seed := range uint64(seeds) {
		inv, log := world(seed)
		if len(log) == 0 {
			continue
		}
		r, trail := rand.New(rand.NewPCG(seed, 1)), records(log)
		for _, p := range periods(r, log) {
			got := report(inv, trail, p, r)
			found, want := read(got), recount(inv, log, p)
			for name := range mergedKeys(found, want) {
				if found[name] != want[name] {
					t.Errorf("seed %d, %v to %v: %s is %d in the report, %d by the recount", seed, p.From, p.To, name, found[name], want[name])
				}
			}
			for name := range want {
				met[name]++
			}
			compareSpans(t, fmt.Sprintf("seed %d", seed), inv, log, got, instants(r, inv, log, p))
			for _, rotation := range got.Rotations {
				for _, e := range rotation.Evidence {
					if m := log[e.Index]; m.stream != e.Stream || m.seq != e.Sequence || m.credential != rotation.Credential {
						t.Errorf("seed %d: evidence %s of %s is %s:%d of %s", seed, e, rotation.ID, m.stream, m.seq, m.credential)
					}
				}
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d is the first", seed)
		}
	}
	for _, name := range []string{"ended rotation completed", "ended rotation rolled-back", "ended rotation superseded", "ended rollback rolled-back", "ended adoption rolled-back",
		"ended emergency completed", "ended emergency superseded", "ended lock completed", "exception stalled", "exception could not be decoded", "exception not in pawl.yaml",
		"running before", "running at the end", "state overdue", "state not in force", "state not adopted", "state in time", "state no interval configured"} {
		if met[name] == 0 {
			t.Errorf("no seed has any %s", name)
		}
	}
}

func mergedKeys(a, b numbers) map[string]bool {
	all := map[string]bool{}
	for _, n := range []numbers{a, b} {
		for name := range maps.Keys(n) {
			all[name] = true
		}
	}
	return all
}

// compareSpans asks, moment by moment, whether a password was too old.
func compareSpans(t *testing.T, where string, inv *inventory.Inventory, log []raw, r *Report, at []time.Time) {
	t.Helper()
	for _, c := range r.Coverage {
		for _, moment := range at {
			told := slices.ContainsFunc(c.Exceeded, func(s Span) bool { return !moment.Before(s.Begin) && moment.Before(s.End) })
			made, ok := inForce(log, c.Credential, func(at time.Time) bool { return !at.After(moment) })
			interval := inv.Credentials[c.Credential].RotateEvery
			if is := ok && interval > 0 && moment.Sub(made) >= interval; is != told {
				t.Errorf("%s: %s at %v is too old: %v in the report, %v by the recount", where, c.Credential, moment, told, is)
			}
		}
	}
	for _, s := range r.Coverage {
		for i, x := range s.Exceeded {
			if !r.Period.holds(x.Begin) || x.End.After(r.Period.To) || !x.Begin.Before(x.End) || i > 0 && x.Begin.Before(s.Exceeded[i-1].End) {
				t.Errorf("%s: %s has the span %v to %v in a period of %v to %v", where, s.Credential, x.Begin, x.End, r.Period.From, r.Period.To)
			}
		}
	}
}

func TestTheSameTrailMakesTheSameReport(t *testing.T) {
	inv, log := world(7)
	p := Period{begin, begin.Add(365 * day)}
	var first string
	for i := range uint64(5) {
		text := rendered(t, report(inv, records(log), p, rand.New(rand.NewPCG(i, 2))))
		if i == 0 {
			first = text
		} else if text != first {
			t.Fatal("the order of the records shows in the report")
		}
	}
}

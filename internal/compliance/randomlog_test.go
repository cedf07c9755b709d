package compliance

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// raw is one message as its stream has it.
type raw struct {
	stream     string
	seq        uint64
	at         time.Time
	credential string
	rotation   string
	name       string // event, or kind of note
	service    string
	event      *pawlv1.Event // of the log
	note       *pawlv1.Note
}

// records are what the auditor makes of all.
func records(log []raw) []Record {
	begun := map[[2]string]*pawlv1.Requested{}
	for _, m := range log {
		if m.name == string(saga.Requested) {
			begun[[2]string{m.credential, m.rotation}] = m.event.GetRequested()
		}
	}
	var all []Record
	for i, m := range log {
		r := &pawlv1.AuditRecord{Stream: m.stream, Sequence: m.seq, At: timestamppb.New(m.at), Service: m.service, Event: m.name, Credential: m.credential, Rotation: m.rotation}
		if m.note != nil {
			r.Actor, r.Summary = m.note.GetActor(), m.note.GetText()
		} else {
			r.Summary = m.event.GetSummary()
			if f := m.event.GetFailure(); f != nil {
				r.Summary = f.GetStep() + ": " + f.GetReason()
			}
			begin := begun[[2]string{m.credential, m.rotation}]
			r.Flow, r.Actor, r.Reason = begin.GetFlow(), begin.GetRequestedBy(), begin.GetReason()
		}
		all = append(all, Record{Index: int64(i), AuditRecord: r})
	}
	return all
}

// author makes up what happens to one credential.
type author struct {
	*rand.Rand
	c        *inventory.Credential
	at       time.Time
	end      time.Time
	rotation int
	newest   string // rotation
	open     bool
	locked   bool
	current  string // rotation whose password is in force; empty: none
	before   string // what was current before the newest rotation completed
	undoable bool
	log      []raw
}

// begin is where histories begin.
var begin = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

func (a *author) wait(most time.Duration) {
	a.at = a.at.Add(time.Millisecond + a.N(most)).Truncate(time.Millisecond)
}

// N is a duration below most.
func (a *author) N(most time.Duration) time.Duration {
	return time.Duration(a.Int64N(int64(most)))
}

func (a *author) append(e saga.Event, body *pawlv1.Event) {
	a.log = append(a.log, raw{stream: bus.StreamLog, at: a.at, credential: a.c.Name, rotation: a.newest, name: string(e), service: saga.OwnerOf(e), event: body})
}

// live has requests come until the end of time, or until one stays open.
func (a *author) live() {
	for a.wait(40 * day); a.at.Before(a.end); a.wait(time.Duration(1+a.IntN(5)) * 30 * day) {
		switch n := a.IntN(20); {
		case a.locked:
			a.walk(&pawlv1.Requested{Action: pawlv1.Action_ACTION_UNLOCK, Flow: saga.Emergency})
		case n == 0:
			a.walk(&pawlv1.Requested{Action: pawlv1.Action_ACTION_LOCK, Flow: saga.Lock})
		case n <= 2:
			a.walk(&pawlv1.Requested{Action: pawlv1.Action_ACTION_CONTAIN, Flow: saga.Emergency})
		case a.open: // only an emergency gets past it
		case a.current == "" || n == 3:
			a.walk(&pawlv1.Requested{Action: pawlv1.Action_ACTION_ADOPT, Flow: saga.Adopt})
		case n <= 7 && a.undoable:
			flow := saga.RollbackAlternating
			if a.c.Strategy == inventory.InPlace {
				flow = saga.RollbackInPlace
			}
			a.walk(&pawlv1.Requested{Action: pawlv1.Action_ACTION_ROLLBACK, Flow: flow, Restores: a.before})
		default:
			a.walk(&pawlv1.Requested{Action: pawlv1.Action_ACTION_ROTATE, Flow: a.c.Strategy})
		}
	}
}

// walk tells one rotation by its table, and now and then not to the end.
func (a *author) walk(r *pawlv1.Requested) {
	if a.open {
		r.Supersedes = a.newest
	}
	a.rotation++
	a.newest, a.open, a.undoable = fmt.Sprintf("r-%03d", a.rotation), true, false
	r.Basis, r.RequestedBy, r.Reason = a.current, "anna@laptop", fmt.Sprintf("reason %d", a.rotation)
	a.append(saga.Requested, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: r}})
	log := []saga.Entry{{Event: saga.Requested}}
	sticks := a.IntN(8) == 0 // the next one that comes is an emergency, or none
	for {
		state, err := saga.Fold(r.GetFlow(), log)
		if err != nil {
			panic(err)
		}
		step := state.Next()
		if step == nil || sticks && a.IntN(3) == 0 {
			return
		}
		a.wait([]time.Duration{time.Second, time.Minute, time.Hour, 20 * day}[min(a.IntN(8), 3)])
		e, body := step.Emits, &pawlv1.Event{Summary: "did " + step.Name}
		if !step.Retriable() && a.IntN(8) == 0 {
			e = []saga.Event{step.Fails, saga.TimedOut, saga.Cancelled}[a.IntN(3)]
			body = &pawlv1.Event{Detail: &pawlv1.Event_Failure{Failure: &pawlv1.Failure{Step: step.Name, Reason: "it broke"}}}
		}
		a.append(e, body)
		log = append(log, saga.Entry{Event: e})
		a.note(r, e)
	}
}

// note keeps what the author must know to go on.
func (a *author) note(r *pawlv1.Requested, e saga.Event) {
	switch {
	case e == saga.Contained:
		a.current, a.locked = "", r.GetFlow() == saga.Lock
	case e == saga.RolledBack && r.GetAction() == pawlv1.Action_ACTION_ROLLBACK:
		a.open, a.current = false, r.GetRestores()
	case e == saga.RolledBack:
		a.open = false
	case e == saga.Completed && r.GetFlow() == saga.Lock:
		a.open = false
	case e == saga.Completed:
		a.open, a.undoable = false, r.GetAction() == pawlv1.Action_ACTION_ROTATE && a.current != ""
		a.before, a.current = a.current, a.newest
	}
}

// notes makes up some of each kind.
func notes(r *rand.Rand, names []string, end time.Time) []raw {
	var all []raw
	for _, kind := range []struct{ stream, service, name string }{
		{bus.StreamNote, saga.Scheduler, "stalled"}, {bus.StreamNote, saga.Scheduler, "refused"}, {bus.StreamNote, saga.DBRotator, "drift"},
		{bus.StreamNote, saga.Verifier, noteOpened}, {bus.StreamNote, saga.DBRotator, noteOpened}, {bus.StreamNote, saga.Auditor, "configuration"},
		{bus.StreamNote, saga.Restarter, "waiting"}, {bus.StreamDead, saga.Scheduler, "undecodable"},
	} {
		for range r.IntN(20) {
			name := names[r.IntN(len(names))]
			at := begin.Add(time.Duration(r.Int64N(int64(end.Sub(begin))))).Truncate(time.Millisecond)
			text := fmt.Sprintf("it was so (%d)", r.IntN(3))
			all = append(all, raw{stream: kind.stream, at: at, credential: name, name: kind.name, service: kind.service,
				note: &pawlv1.Note{Kind: kind.name, Credential: name, Text: text, Actor: "anna@laptop"}})
		}
	}
	return all
}

// world is an inventory and all that its streams hold.
func world(seed uint64) (*inventory.Inventory, []raw) {
	r := rand.New(rand.NewPCG(seed, 0))
	end := begin.Add(time.Duration(200+r.IntN(500)) * day)
	inv := &inventory.Inventory{Credentials: map[string]*inventory.Credential{}, Environments: map[string]inventory.Environment{"production": {RotateEvery: 90 * day}}}
	cluster := &inventory.Cluster{Name: "main", Environment: "production"}
	var all []raw
	var names []string
	for i := range 2 + r.IntN(6) {
		c := &inventory.Credential{Name: fmt.Sprintf("app-%d", i), Cluster: cluster, Role: "app", Strategy: []string{inventory.Alternating, inventory.InPlace}[r.IntN(2)],
			RotateEvery: []time.Duration{0, 30 * day, 90 * day, 365 * day}[r.IntN(4)]}
		names = append(names, c.Name)
		if r.IntN(8) > 0 { // else it is in the trail alone
			inv.Credentials[c.Name] = c
		}
		a := &author{Rand: r, c: c, at: begin, end: end}
		if r.IntN(8) > 0 { // else it never was anything
			a.live()
		}
		all = append(all, a.log...)
	}
	all = append(all, notes(r, names, end)...)
	slices.SortStableFunc(all, func(x, y raw) int { return cmp.Or(x.at.Compare(y.at), cmp.Compare(x.credential, y.credential)) })
	next := map[string]uint64{}
	for i := range all {
		next[all[i].stream]++
		all[i].seq = next[all[i].stream]
	}
	return inv, all
}

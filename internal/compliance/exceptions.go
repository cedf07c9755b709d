package compliance

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
)

// Exception is what an auditor will want explained.
type Exception struct {
	At         *time.Time `json:"at,omitempty"` // absent: it is so at the end of the period
	Credential string     `json:"credential,omitempty"`
	Rotation   string     `json:"rotation,omitempty"`
	What       string     `json:"what"`
	Why        string     `json:"why"`
	Actor      string     `json:"actor,omitempty"`
	Times      int        `json:"times"` // that the same was noted
	Evidence   []Evidence `json:"evidence"`
}

// noted are the kinds of notes that are exceptions, and what a report calls them.
var noted = map[string]string{
	"stalled": "stalled", "resumed": "resumed by hand",
	"refused": "request refused", "requests summed up": "more requests than are noted each", "alerts summed up": "more alerts than are noted each", "trail broken": "trail broken",
	"drift": "drift", "drift over": "drift over", "repaired": "lost write repaired", "history changed": "server's history changed",
	"overdue": "overdue, as told", "schedule refused": "scheduled turn refused", "schedule blocked": "scheduled turn blocked",
	"alert held back": "alert held back", "alert fired in vain": "alert without effect", "alerts truncated": "alerts truncated by their source",
	"webhook refused": "webhook refused", "webhooks not taken": "webhooks not taken",
	"clock stepped": "clock stepped", "clock": "clock of a machine wrong",
	"restored": "restored from a backup", string(restored.Held): "held after a restore", string(restored.Undone): "rolled back after a restore",
	"foreign login replaced": "login that was not Pawl's replaced in an emergency",
	"not guarded":            "login not guarded during an emergency", "glass broken": "contained without Pawl", "undecodable": "could not be decoded",
}

// elsewhere are the kinds of notes that are none: what happens every day, or what
// another section tells. All are counted among the records.
var elsewhere = []string{
	"configuration", "configuration changed", noteOpened, // sections of their own
	"alert fired", "evidence", "emergency of several", // of emergencies, which are listed
	"started", "stopped", "waiting", "retrying", "due soon", string(restored.Agrees),
	"request accepted", "request scheduled", "request unspecified",
	"live", // a sign of life, which is no note of the trail
}

// recommended are the guide's intervals, in days, by the name of the environment.
var recommended = map[string]int{"production": 90, "staging": 180, "development": 365}

// exceptions lists what is so at the end of the period, by credential, and then
// what happened, by time.
func exceptions(inv *inventory.Inventory, r *Report, notes []Record) []Exception {
	standing := standing(r)
	var happened []Exception
	for _, o := range r.Rotations {
		if e, ok := o.exception(r.Period); ok {
			happened = append(happened, e)
		}
		if _, ok := inv.Credentials[o.Credential]; !ok {
			standing = append(standing, Exception{Credential: o.Credential, Rotation: o.ID, What: "not in pawl.yaml", Times: 1, Evidence: o.Evidence,
				Why: "it was rotated, and the configuration of this report does not have it"})
		}
	}
	for _, c := range r.Coverage {
		for _, s := range c.Exceeded {
			happened = append(happened, Exception{At: &s.Begin, Credential: c.Credential, Rotation: s.By, What: "older than its policy", Times: 1, Evidence: []Evidence{s.Evidence},
				Why: fmt.Sprintf("from %s to %s; %s are configured, it was due at %s", r.Period.text(s.Begin), r.Period.text(s.End), span(c.Interval), r.Period.text(s.Due))})
		}
	}
	happened = append(happened, fromNotes(notes)...)
	slices.SortStableFunc(happened, func(a, b Exception) int {
		return cmp.Or(a.At.Compare(*b.At), cmp.Compare(a.Credential, b.Credential), cmp.Compare(a.What, b.What))
	})
	return append(standing, happened...)
}

// standing lists what is so at the end of the period.
func standing(r *Report) []Exception {
	all := []Exception{}
	add := func(c Coverage, what, format string, args ...any) {
		all = append(all, Exception{Credential: c.Credential, Rotation: c.By, What: what, Why: fmt.Sprintf(format, args...), Times: 1, Evidence: c.Evidence})
	}
	for _, c := range r.Coverage {
		switch c.State {
		case StateNotAdopted:
			add(c, StateNotAdopted, "it is in pawl.yaml, and the trail has no completed adoption of it: Pawl does not rotate it")
		case StateNotInForce:
			add(c, StateNotInForce, "every login was refused by %s %s, and no new password was completed", c.Kind, c.By)
		case StateOverdue:
			add(c, StateOverdue, "since %s: %s are configured, and it is %s old", r.Period.text(*c.Due), span(c.Interval), span(c.Age))
		}
		days, known := recommended[c.Environment]
		switch {
		case c.Interval == 0:
			add(c, StateNoInterval, "neither the credential nor its environment has rotate_every")
		case known && c.Interval > time.Duration(days)*day:
			add(c, "longer interval, as configured", "%s are configured; the guide that Pawl follows recommends %d days for %s", span(c.Interval), days, c.Environment)
		}
		if c.Kind == KindAdoption {
			add(c, "age counted from adoption", "Pawl took over a password that existed: how old that was then is not recorded")
		}
	}
	return all
}

// exception returns what is one about a rotation, if that was within the period.
func (o Rotation) exception(p Period) (Exception, bool) {
	e := Exception{Credential: o.Credential, Rotation: o.ID, Actor: o.RequestedBy, Times: 1, Evidence: o.Evidence}
	if o.Ended == nil {
		e.What, e.Why = "still running", "it was requested at "+p.text(o.Requested)+" and had not ended when the period did"
		at := later(o.Requested, p.From)
		e.At = &at
		if o.Failure != "" {
			e.Why += "; " + o.Failure
		}
		return e, true
	}
	e.At = o.Ended
	switch {
	case o.Kind == KindUnknown:
		e.What, e.Why = "of another version", fmt.Sprintf("flow %q is not known to this version of Pawl: nothing is concluded from it", o.Flow)
	case o.Outcome == OutcomeSuperseded:
		e.What, e.Why = "superseded", "an emergency ended it"
	case o.Kind == KindRollback && o.Outcome == string(saga.RolledBack):
		e.What, e.Why = "rolled back by request", cmp.Or(o.Reason, "no reason given")
	case o.Outcome == string(saga.RolledBack):
		e.What, e.Why = "rolled back", cmp.Or(o.Failure, "the trail has no failure of it")
	default:
		return e, false
	}
	return e, true
}

// fromNotes lists the notes that are exceptions; the same one again is counted.
func fromNotes(notes []Record) []Exception {
	var all []Exception
	type sameness struct{ credential, rotation, what, why, actor string }
	index := map[sameness]int{}
	for _, n := range notes {
		what, ok := noted[n.GetEvent()]
		if n.GetStream() == bus.StreamDead {
			what, ok = "could not be decoded", true
		}
		switch {
		case ok:
		case slices.Contains(elsewhere, n.GetEvent()):
			continue
		default:
			what = "noted, of a kind that is not known to this version of Pawl: " + n.GetEvent()
		}
		at := n.at()
		e := Exception{Credential: n.GetCredential(), Rotation: n.GetRotation(), What: what, Why: cmp.Or(n.GetSummary(), n.GetReason()), Actor: n.GetActor()}
		key := sameness{e.Credential, e.Rotation, e.What, e.Why, e.Actor}
		if i, again := index[key]; again {
			all[i].Times++
			all[i].Evidence = append(all[i].Evidence, n.evidence())
			continue
		}
		index[key] = len(all)
		e.At, e.Times, e.Evidence = &at, 1, []Evidence{n.evidence()}
		all = append(all, e)
	}
	return all
}

package compliance

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// Kinds of rotations, by flow.
const (
	KindRotation  = "rotation"
	KindAdoption  = "adoption"
	KindRollback  = "rollback"
	KindEmergency = "emergency"
	KindLock      = "lock"
	// KindUnknown is of another version's flow: nothing is concluded from it.
	KindUnknown = "unknown"
)

var kinds = map[string]string{
	saga.Alternating: KindRotation, saga.InPlace: KindRotation, saga.Adopt: KindAdoption,
	saga.RollbackAlternating: KindRollback, saga.RollbackInPlace: KindRollback,
	saga.Emergency: KindEmergency, saga.Lock: KindLock,
}

// Outcomes beside the events that end a rotation, completed and rolled-back.
const (
	OutcomeRunning    = "running"    // at the end of the period
	OutcomeSuperseded = "superseded" // an emergency has ended it
)

// failures are the events that turn a rotation round.
var failures = []saga.Event{saga.StageFailed, saga.PublishFailed, saga.RestartFailed, saga.VerifyFailed, saga.TimedOut, saga.Cancelled}

// isEvent tells records of the saga log from those of notes.
func isEvent(r Record) bool { return r.GetStream() == bus.StreamLog }

// story is one rotation, as recorded.
type story struct {
	credential, id string
	kind           string
	first          Record // requested, or what the trail has in its place
	events         map[saga.Event]Record
	ended          *Record // completed, rolled-back, or the requested event of the emergency that superseded it
	outcome        string
}

// ledger collects stories, by credential and rotation.
type ledger map[[2]string]*story

func (l ledger) add(r Record) {
	key := [2]string{r.GetCredential(), r.GetRotation()}
	s := l[key]
	if s == nil {
		s = &story{credential: key[0], id: key[1], first: r, events: map[saga.Event]Record{}}
		l[key] = s
	}
	if r.GetSequence() < s.first.GetSequence() {
		s.first = r
	}
	s.events[saga.Event(r.GetEvent())] = r
}

// history is what the trail has of one credential.
type history struct {
	credential string
	stories    []*story // in the order of the log
	reigns     []reign  // in the order of time
}

// reign is a time during which one password was in force.
type reign struct {
	by    *story    // that made or adopted it
	made  time.Time // when that was completed
	begin time.Time // later than made where a rollback brought it back
	end   time.Time // zero: it still is
	why   Record    // what began it
}

// histories returns one history per credential of the trail.
func (l ledger) histories() map[string]*history {
	all := map[string]*history{}
	for s := range maps.Values(l) {
		h := all[s.credential]
		if h == nil {
			h = &history{credential: s.credential}
			all[s.credential] = h
		}
		h.stories = append(h.stories, s)
	}
	for _, h := range all {
		slices.SortFunc(h.stories, func(a, b *story) int { return cmp.Compare(a.first.GetSequence(), b.first.GetSequence()) })
		for i, s := range h.stories {
			s.fold(h.stories[i+1:])
		}
		h.rule()
	}
	return all
}

func (s *story) fold(later []*story) {
	s.kind, s.outcome = cmp.Or(kinds[saga.Kind(s.first.GetFlow())], KindUnknown), OutcomeRunning
	for _, e := range []saga.Event{saga.Completed, saga.RolledBack} {
		if end, ok := s.events[e]; ok {
			s.ended, s.outcome = &end, string(e)
			return
		}
	}
	if len(later) > 0 && later[0].urgent() { // nothing else begins while a rotation runs
		s.ended, s.outcome = &later[0].first, OutcomeSuperseded
	}
}

func (s *story) urgent() bool {
	flow, ok := saga.FlowByName(s.first.GetFlow())
	return ok && flow.Urgent
}

// failure returns what turned the rotation round.
func (s *story) failure() (Record, bool) {
	for _, e := range failures {
		if r, ok := s.events[e]; ok {
			return r, true
		}
	}
	return Record{}, false
}

// overlaps reports whether any of the rotation lies within the period.
func (s *story) overlaps(p Period) bool { return s.ended == nil || !s.ended.at().Before(p.From) }

// rule derives which password was in force when.
func (h *history) rule() {
	type turn struct {
		at Record
		by *story
	}
	var turns []turn
	for _, s := range h.stories {
		if contained, ok := s.events[saga.Contained]; ok {
			turns = append(turns, turn{contained, s})
		}
		if s.ended != nil && s.outcome != OutcomeSuperseded {
			turns = append(turns, turn{*s.ended, s})
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Compare(a.at.GetSequence(), b.at.GetSequence()) })
	for _, t := range turns {
		event := saga.Event(t.at.GetEvent())
		switch {
		case event == saga.Contained:
			h.end(t.at.at())
		case event == saga.Completed && (t.by.kind == KindRotation || t.by.kind == KindAdoption || t.by.kind == KindEmergency):
			h.end(t.at.at())
			h.reigns = append(h.reigns, reign{by: t.by, made: t.at.at(), begin: t.at.at(), why: t.at})
		case event == saga.RolledBack && t.by.kind == KindRollback && len(h.reigns) > 1:
			// Only the newest completed rotation can be taken back.
			h.end(t.at.at())
			before := h.reigns[len(h.reigns)-2]
			h.reigns = append(h.reigns, reign{by: before.by, made: before.made, begin: t.at.at(), why: t.at})
		}
	}
}

func (h *history) end(at time.Time) {
	if n := len(h.reigns); n > 0 && h.reigns[n-1].end.IsZero() {
		h.reigns[n-1].end = at
	}
}

// byTime orders records by when what they record was stored.
func byTime(a, b Record) int {
	return cmp.Or(a.at().Compare(b.at()), cmp.Compare(a.GetStream(), b.GetStream()), cmp.Compare(a.GetSequence(), b.GetSequence()))
}

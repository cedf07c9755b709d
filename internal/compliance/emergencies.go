package compliance

import (
	"slices"
	"time"

	"pawl.dev/internal/saga"
)

// Emergency is an emergency or a lock, any part of which lies within the period.
// Times are between what the bus stored: of requested, of contained, of verified.
type Emergency struct {
	Rotation
	Contained *time.Time `json:"contained,omitempty"`
	// ToContain is until every login in doubt was refused, and its sessions ended,
	// on every node that could be reached.
	ToContain *time.Duration `json:"to_contain_ns,omitempty"`
	// ToRecover is until the application was seen on a new password; absent for a
	// lock.
	ToRecover *time.Duration `json:"to_recover_ns,omitempty"`
	// ToRelease is until the nodes that could not be reached were contained, too.
	ToRelease *time.Duration `json:"to_release_ns,omitempty"`
	Did       string         `json:"did,omitempty"` // what containing it did, in the db-rotator's words
}

func emergencies(histories map[string]*history, p Period) []Emergency {
	all := []Emergency{}
	for _, h := range histories {
		for _, s := range h.stories {
			if s.urgent() && s.overlaps(p) {
				all = append(all, s.emergency())
			}
		}
	}
	slices.SortFunc(all, func(a, b Emergency) int { return byRequest(a.Rotation, b.Rotation) })
	return all
}

func (s *story) emergency() Emergency {
	e := Emergency{Rotation: s.rotation()}
	for event, took := range map[saga.Event]**time.Duration{saga.Contained: &e.ToContain, saga.Verified: &e.ToRecover, saga.Released: &e.ToRelease} {
		if r, ok := s.events[event]; ok {
			t := r.at().Sub(e.Requested)
			*took = &t
		}
	}
	if r, ok := s.events[saga.Contained]; ok {
		at := r.at()
		e.Contained, e.Did = &at, r.GetSummary()
		e.Evidence = slices.Insert(e.Evidence, 1, r.evidence())
	}
	return e
}

package compliance

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// States of a credential at the end of the period.
const (
	StateInTime     = "in time"
	StateOverdue    = "overdue"
	StateNoInterval = "no interval configured"
	StateNotInForce = "not in force" // locked, or contained and not back yet
	StateNotAdopted = "not adopted"
)

// Coverage is one credential of the configuration, measured against its policy.
type Coverage struct {
	Credential  string        `json:"credential"`
	Environment string        `json:"environment"`
	Cluster     string        `json:"cluster"`
	Role        string        `json:"role"`
	Strategy    string        `json:"strategy"`
	Interval    time.Duration `json:"interval_ns"` // 0: none
	Policy      string        `json:"policy"`      // where the interval comes from
	State       string        `json:"state"`
	// Since is when the password in force was completed or adopted; Age is from
	// then to the end of the period.
	Since    *time.Time    `json:"since,omitempty"`
	Age      time.Duration `json:"age_ns,omitempty"`
	By       string        `json:"by,omitempty"` // the rotation that made it
	Kind     string        `json:"kind,omitempty"`
	Due      *time.Time    `json:"due,omitempty"`
	Evidence []Evidence    `json:"evidence"`
	// Exceeded are the times within the period during which the password in force
	// was older than the policy allows, also where all is well at its end.
	Exceeded []Span `json:"exceeded"`
}

// Span is a time within the period: Begin is in it, End is not.
type Span struct {
	Begin time.Time `json:"begin"`
	End   time.Time `json:"end"`
	// Due is when the password should have been replaced: before Begin, where the
	// period began later.
	Due      time.Time `json:"due"`
	By       string    `json:"by"` // the rotation that made that password
	Evidence Evidence  `json:"evidence"`
}

// coverage measures every credential, by name.
func coverage(inv *inventory.Inventory, histories map[string]*history, p Period) []Coverage {
	all := make([]Coverage, 0, len(inv.Credentials))
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		known := inv.Credentials[name]
		c := Coverage{
			Credential: name, Environment: known.Cluster.Environment, Cluster: known.Cluster.Name, Role: known.Role, Strategy: known.Strategy,
			Interval: known.RotateEvery, Policy: policy(inv, known), Evidence: []Evidence{}, Exceeded: []Span{},
		}
		h := histories[name]
		if h == nil {
			h = &history{}
		}
		c.measure(h, p)
		all = append(all, c)
	}
	return all
}

// policy says where the interval comes from.
func policy(inv *inventory.Inventory, c *inventory.Credential) string {
	environment, ok := inv.Environments[c.Cluster.Environment]
	switch {
	case c.RotateEvery == 0:
		return "none"
	case ok && environment.RotateEvery == c.RotateEvery:
		return "as environment " + c.Cluster.Environment
	case ok && environment.RotateEvery > 0:
		return "its own; environment " + c.Cluster.Environment + " has " + span(environment.RotateEvery)
	}
	return "its own"
}

func (c *Coverage) measure(h *history, p Period) {
	for _, r := range h.reigns {
		due := r.made.Add(c.Interval)
		begin, end := later(due, r.begin, p.From), p.To
		if !r.end.IsZero() && r.end.Before(end) {
			end = r.end
		}
		if c.Interval > 0 && begin.Before(end) {
			c.Exceeded = append(c.Exceeded, Span{begin, end, due, r.by.id, r.why.evidence()})
		}
	}
	if n := len(h.reigns); n > 0 && h.reigns[n-1].end.IsZero() {
		c.inForce(h.reigns[n-1], p)
		return
	}
	c.State = StateNotAdopted
	for _, s := range h.stories {
		if contained, ok := s.events[saga.Contained]; ok {
			c.State, c.By, c.Kind, c.Evidence = StateNotInForce, s.id, s.kind, []Evidence{contained.evidence()}
		}
	}
}

func (c *Coverage) inForce(r reign, p Period) {
	c.Since, c.Age, c.By, c.Kind = &r.made, p.To.Sub(r.made), r.by.id, r.by.kind
	c.Evidence = []Evidence{r.by.ended.evidence()}
	if r.why.evidence() != c.Evidence[0] {
		c.Evidence = append(c.Evidence, r.why.evidence())
	}
	if c.Interval == 0 {
		c.State = StateNoInterval
		return
	}
	due := r.made.Add(c.Interval)
	c.Due, c.State = &due, StateInTime
	if due.Before(p.To) {
		c.State = StateOverdue
	}
}

func later(times ...time.Time) time.Time {
	return slices.MaxFunc(times, func(a, b time.Time) int { return a.Compare(b) })
}

// Rotation is one rotation of any kind, any part of which lies within the period.
type Rotation struct {
	Credential      string         `json:"credential"`
	ID              string         `json:"rotation"`
	Kind            string         `json:"kind"`
	Flow            string         `json:"flow"`
	Requested       time.Time      `json:"requested"`
	RequestedBy     string         `json:"requested_by,omitempty"` // as claimed
	AuthenticatedAs string         `json:"authenticated_as,omitempty"`
	Reason          string         `json:"reason,omitempty"`
	Outcome         string         `json:"outcome"`
	Ended           *time.Time     `json:"ended,omitempty"`
	Took            *time.Duration `json:"took_ns,omitempty"`
	Failure         string         `json:"failure,omitempty"` // the step, and why
	TraceID         string         `json:"trace_id,omitempty"`
	Evidence        []Evidence     `json:"evidence"` // what began it, what turned it round, what ended it
}

func rotations(histories map[string]*history, p Period) []Rotation {
	all := []Rotation{}
	for _, h := range histories {
		for _, s := range h.stories {
			if s.overlaps(p) {
				all = append(all, s.rotation())
			}
		}
	}
	slices.SortFunc(all, byRequest)
	return all
}

func byRequest(a, b Rotation) int {
	return cmp.Or(a.Requested.Compare(b.Requested), cmp.Compare(a.Credential, b.Credential), cmp.Compare(a.ID, b.ID))
}

func (s *story) rotation() Rotation {
	r := Rotation{
		Credential: s.credential, ID: s.id, Kind: s.kind, Flow: s.first.GetFlow(), Requested: s.first.at(), RequestedBy: s.first.GetActor(),
		AuthenticatedAs: s.first.GetAuthenticatedAs(), Reason: s.first.GetReason(), Outcome: s.outcome, TraceID: s.first.GetTraceId(),
		Evidence: []Evidence{s.first.evidence()},
	}
	if failed, ok := s.failure(); ok {
		r.Failure, r.Evidence = failed.GetSummary(), append(r.Evidence, failed.evidence())
	}
	if s.ended != nil {
		at := s.ended.at()
		took := at.Sub(r.Requested)
		r.Ended, r.Took, r.Evidence = &at, &took, append(r.Evidence, s.ended.evidence())
	}
	return r
}

// totals counts what the report lists.
func totals(r *Report) Totals {
	t := Totals{Configured: len(r.Coverage), Emergencies: len(r.Emergencies)}
	for _, c := range r.Coverage {
		*map[string]*int{StateInTime: &t.InTime, StateOverdue: &t.Overdue, StateNoInterval: &t.NoInterval, StateNotInForce: &t.NotInForce, StateNotAdopted: &t.NotAdopted}[c.State]++
		if len(c.Exceeded) > 0 {
			t.Exceeded++
		}
	}
	ended := map[Ended]int{}
	for _, o := range r.Rotations {
		if r.Period.holds(o.Requested) {
			t.Requested++
		} else {
			t.RunningBefore++
		}
		if o.Ended == nil {
			t.RunningAtEnd++
		} else {
			ended[Ended{Kind: o.Kind, Outcome: o.Outcome}]++
		}
	}
	t.Ended = []Ended{}
	for e, n := range ended {
		e.Count = n
		t.Ended = append(t.Ended, e)
	}
	slices.SortFunc(t.Ended, func(a, b Ended) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Outcome, b.Outcome)) })
	return t
}

// counted sorts the kinds of records.
func counted(kinds map[RecordedKind]int) []RecordedKind {
	all := []RecordedKind{}
	for k, n := range kinds {
		k.Count = n
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b RecordedKind) int {
		return cmp.Or(cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Event, b.Event))
	})
	return all
}

// Package compliance makes reports from the audit trail: which credentials there
// are and how old under which policy, what was rotated by whom and why, what
// went wrong, who has access, and where each of these stands in the trail. It
// reads records and a configuration, does no I/O, and says what was configured
// and what was recorded, never that a framework is complied with.
//
// A report of the same records, configuration and period is the same, byte for
// byte, but for what Now holds.
package compliance

import (
	"fmt"
	"slices"
	"time"

	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Record is one record of the trail, and its place there.
type Record struct {
	Index int64 // of its leaf in the trail's tree, from 0
	*pawlv1.AuditRecord
}

func (r Record) at() time.Time { return r.GetAt().AsTime() }

func (r Record) evidence() Evidence {
	return Evidence{Stream: r.GetStream(), Sequence: r.GetSequence(), Index: r.Index}
}

// Evidence says where in the trail a row of a report stands.
type Evidence struct {
	Stream   string `json:"stream"` // and place of the message that is recorded
	Sequence uint64 `json:"sequence"`
	Index    int64  `json:"index"` // of the record in the trail, from 0
}

// String is what `pawl audit verify --record` takes, and the record's index.
func (e Evidence) String() string { return fmt.Sprintf("%s:%d #%d", e.Stream, e.Sequence, e.Index) }

// Trail is what is known of the trail that a report was made from.
type Trail struct {
	// Fault says why the trail does not verify; empty: it does.
	Fault string `json:"fault,omitempty"`
	// Origin, Size and Root are those of the newest signed checkpoint; Key is the
	// name and hash of the key that signed it.
	Origin string `json:"origin,omitempty"`
	Size   int64  `json:"size"`
	Root   string `json:"root,omitempty"`
	Key    string `json:"key,omitempty"`
	// Records that were read; those beyond Size are under no signature yet.
	Records int64 `json:"records"`
	// Newest is when what the newest record records was stored; zero without one.
	Newest time.Time `json:"newest"`
}

// Now is what was asked of the running system, beside the trail.
type Now struct {
	At       time.Time `json:"at"`
	Settings []Finding `json:"settings"` // of the servers
	Members  []Finding `json:"members"`  // who may use the credentials' roles
	Silent   []Finding `json:"silent"`   // who could not be asked, and why
}

// Finding is one line of an answer.
type Finding struct {
	Credential string `json:"credential"`
	Node       string `json:"node"`
	Text       string `json:"text"`
}

// Report is the numbers, the rows, and where each stands in the trail.
type Report struct {
	Framework     Framework      `json:"framework"`
	Period        Period         `json:"period"`
	Trail         Trail          `json:"trail"`
	Configuration Configuration  `json:"configuration"`
	Totals        Totals         `json:"totals"`
	Coverage      []Coverage     `json:"coverage"`
	Rotations     []Rotation     `json:"rotations"`
	Exceptions    []Exception    `json:"exceptions"`
	Emergencies   []Emergency    `json:"emergencies"`
	Users         []User         `json:"users"`
	Recipients    []Access       `json:"recipients"`
	Records       []RecordedKind `json:"records"`
	Now           *Now           `json:"now,omitempty"`
}

// Configuration is the pawl.yaml that a report measures against.
type Configuration struct {
	Digest string   `json:"digest"` // as inventory.Digest
	Loaded []Loaded `json:"loaded"`
}

// Loaded is a note of a service, within the period, about the configuration
// that it read.
type Loaded struct {
	At       time.Time `json:"at"`
	Service  string    `json:"service"`
	Text     string    `json:"text"`
	Evidence Evidence  `json:"evidence"`
}

// Totals count credentials at the end of the period, and rotations within it:
// Running before + Requested = the sum of Ended + Running at the end.
type Totals struct {
	Configured  int `json:"configured"`
	InTime      int `json:"in_time"`
	Overdue     int `json:"overdue"`
	NoInterval  int `json:"no_interval"`
	NotInForce  int `json:"not_in_force"` // locked, or contained and not back yet
	NotAdopted  int `json:"not_adopted"`
	Exceeded    int `json:"exceeded"` // credentials that were overdue at any time of the period
	Emergencies int `json:"emergencies"`

	RunningBefore int     `json:"running_before"`
	Requested     int     `json:"requested"`
	RunningAtEnd  int     `json:"running_at_end"`
	Ended         []Ended `json:"ended"`
}

// Ended counts the rotations of one kind that ended within the period in one way.
type Ended struct {
	Kind    string `json:"kind"`
	Outcome string `json:"outcome"`
	Count   int    `json:"count"`
}

// RecordedKind counts the records of the period of one kind.
type RecordedKind struct {
	Stream  string `json:"stream"`
	Service string `json:"service"`
	Event   string `json:"event"`
	Count   int    `json:"count"`
}

// Builder takes the records of a trail, one after the other, in any order.
type Builder struct {
	inventory *inventory.Inventory
	period    Period
	ledger    ledger
	notes     []Record // within the period
	kinds     map[RecordedKind]int
}

// NewBuilder returns one for a period, which must not end in the future of the
// trail's own clock.
func NewBuilder(inv *inventory.Inventory, period Period) *Builder {
	return &Builder{inventory: inv, period: period, ledger: ledger{}, kinds: map[RecordedKind]int{}}
}

// Add takes a record. What is not before the period's end is left out: the
// report tells what was known then.
func (b *Builder) Add(r Record) {
	if !r.at().Before(b.period.To) {
		return
	}
	if isEvent(r) {
		b.ledger.add(r)
	}
	if r.at().Before(b.period.From) {
		return
	}
	b.kinds[RecordedKind{Stream: r.GetStream(), Service: r.GetService(), Event: r.GetEvent()}]++
	if !isEvent(r) {
		b.notes = append(b.notes, r)
	}
}

// Report makes the report. now may be nil.
func (b *Builder) Report(framework Framework, trail Trail, now *Now) *Report {
	slices.SortFunc(b.notes, byTime)
	histories := b.ledger.histories()
	r := &Report{
		Framework: framework, Period: b.period, Trail: trail, Now: now,
		Configuration: Configuration{Digest: b.inventory.Digest(), Loaded: loaded(b.notes)},
		Coverage:      coverage(b.inventory, histories, b.period),
		Rotations:     rotations(histories, b.period),
		Emergencies:   emergencies(histories, b.period),
		Users:         users(b.inventory),
		Recipients:    accesses(b.notes),
		Records:       counted(b.kinds),
	}
	r.Exceptions = exceptions(b.inventory, r, b.notes)
	r.Totals = totals(r)
	return r
}

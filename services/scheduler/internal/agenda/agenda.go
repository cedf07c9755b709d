// Package agenda turns credentials when policy wants it. For each that nothing is
// under way of, one timer on the bus says when to look next: to remind people,
// to begin, or to tell that it is overdue. Whoever hears it decides anew from the
// log; so it does not matter which replica that is, how often it is heard, or
// whose clock has jumped. How many are under way at once is kept in one message,
// written with compare-and-set before a turn begins.
package agenda

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/schedule"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// world is what the agenda sees and does: the bus, or a model of it where a year
// has to pass within a second.
type world interface {
	// Past is schedule.Past.
	Past(ctx context.Context, credential string) (t schedule.Turned, newest string, adopted bool, err error)
	// Armed returns the due that is armed, and its place, or the last that has
	// fired; nil for neither.
	Armed(ctx context.Context, credential string) (due *pawlv1.Due, seq uint64, err error)
	// Arm replaces what is armed if that is still at seq (0: nothing is), else it
	// returns bus.ErrConflict. With overAny as seq, Arm replaces whichever due is armed.
	Arm(ctx context.Context, credential string, at time.Time, due *pawlv1.Due, seq uint64) error
	// Turns returns what is under way, and its place; SetTurns replaces it if it
	// is still there, else it returns bus.ErrConflict.
	Turns(ctx context.Context) (*pawlv1.Turns, uint64, error)
	SetTurns(ctx context.Context, turns *pawlv1.Turns, seq uint64) error
	// Ended reports whether a turn's rotation has, or cannot begin any more.
	Ended(ctx context.Context, turn *pawlv1.Turn, now time.Time) (bool, error)
	// Begin asks for the rotation. again above 0: ask again then. A refusal says why.
	Begin(ctx context.Context, t turn) (refusal string, again time.Duration, err error)
	// Fire makes due what is armed and should have fired before. Else it returns when
	// that fires: zero if nothing is armed.
	Fire(ctx context.Context, credential string, before time.Time) (at time.Time, err error)
	Note(ctx context.Context, n *pawlv1.Note)
}

// overAny is the seq with which Arm expects no particular due.
const overAny = math.MaxUint64

// turn is a rotation to begin.
type turn struct {
	credential string
	rotation   string            // the id it gets: the same each time the same timer is heard
	follows    map[string]string // each member's newest rotation: where there is another by now, nothing begins
	asked      time.Time
	delivered  uint64
	request    string
	reason     string
}

// Agenda decides. It keeps nothing that must not be lost.
type Agenda struct {
	world world
	inv   *inventory.Inventory
	book  *schedule.Book
	log   *slog.Logger
	now   func() time.Time
	count func(outcome string)
	// wait is how long a turn waits for another to end, at most, and at least half
	// of it; fullFor how long a full budget is taken to be full.
	wait, fullFor time.Duration

	mu    sync.Mutex
	armed map[string]time.Time // by lead: when its timer fires, of those that this process has seen
	full  map[string]time.Time // by cluster, "" for all: until when there is no use in looking
	shown map[string]shown     // by lead, for metrics
}

// shown is what the metrics tell of a unit.
type shown struct {
	due  schedule.Due
	past map[string]schedule.Turned
}

// beginWithin is how long after its entry in the budget a turn may take to begin:
// after that it counts as given up.
const beginWithin = 10 * time.Minute

func newAgenda(w world, inv *inventory.Inventory, log *slog.Logger, now func() time.Time) *Agenda {
	return &Agenda{world: w, inv: inv, book: schedule.New(inv), log: log, now: now, count: func(string) {}, wait: 20 * time.Second, fullFor: 2 * time.Second,
		armed: map[string]time.Time{}, full: map[string]time.Time{}, shown: map[string]shown{}}
}

// view is what is known of a unit at one moment.
type view struct {
	due   schedule.Due
	basis string // the newest rotation of each member
	past  map[string]schedule.Turned
	newer map[string]string // by member: its newest rotation
	facts schedule.Facts
}

// view reads what the log tells of a unit, and of whoever its date depends on.
// ok is false where no schedule turns it.
func (a *Agenda) view(ctx context.Context, lead string, now time.Time) (v view, ok bool, err error) {
	v = view{past: map[string]schedule.Turned{}, newer: map[string]string{}}
	var failed error
	read := map[string]bool{}
	v.facts = func(name string) (schedule.Turned, bool) {
		if !read[name] && failed == nil {
			t, newest, adopted, err := a.world.Past(ctx, name)
			if err != nil {
				failed = err
			} else if read[name], v.newer[name] = true, newest; adopted {
				v.past[name] = t
			}
		}
		t, adopted := v.past[name]
		return t, adopted
	}
	var basis []string
	members := a.book.Members(lead)
	for _, name := range members {
		v.facts(name)
		basis = append(basis, v.newer[name])
	}
	v.basis = strings.Join(slices.Compact(basis), " ") // they mostly share it
	v.due, ok = a.book.Next(lead, v.facts, now)
	if failed != nil {
		return v, false, failed
	}
	past := map[string]schedule.Turned{}
	for _, name := range members {
		if t, adopted := v.past[name]; adopted {
			past[name] = t
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shown[lead] = shown{v.due, past}
	return v, ok, nil
}

// waits reports whether the unit's date has to wait for an end that everybody
// will hear: that of a rotation, or of an adoption.
func (v view) waits() bool {
	for _, name := range v.due.Members() {
		if t, adopted := v.past[name]; !adopted || t.Running || t.Locked {
			return true
		}
	}
	return false
}

// Look arms the timer of a credential's unit, unless the right one is armed.
// Idempotent; call it when a rotation has ended, and now and then.
func (a *Agenda) Look(ctx context.Context, credential string) error {
	lead := a.book.Lead(credential)
	if lead == "" {
		return nil
	}
	now := a.now()
	v, ok, err := a.view(ctx, lead, now)
	if err != nil || !ok || v.waits() {
		return err
	}
	due := &pawlv1.Due{Basis: v.basis}
	armed, seq, err := a.world.Armed(ctx, lead)
	if err != nil {
		return err
	}
	if armed.GetBasis() == v.basis {
		if armed.GetPlanned().AsTime().Equal(v.due.Planned) && armed.GetDeadline().AsTime().Equal(v.due.Deadline) {
			a.watch(lead, now) // Fire knows when
			return nil
		}
		due = armed // pawl.yaml says otherwise now, or another was turned; what was told stays told
	}
	if err := a.arm(ctx, v, due, a.nextLook(v, due, v.due.At, now), seq); !errors.Is(err, bus.ErrConflict) {
		return err
	}
	return nil // another looks at the same time, or has heard it by now and told
}

// LookAround is Look for those whose dates change with the credential's.
func (a *Agenda) LookAround(ctx context.Context, credential string) error {
	var failed error
	for _, lead := range a.book.Related(credential) {
		failed = errors.Join(failed, a.Look(ctx, lead))
	}
	return failed
}

func (a *Agenda) arm(ctx context.Context, v view, due *pawlv1.Due, at time.Time, seq uint64) error {
	due = proto.CloneOf(due)
	due.Basis, due.Planned, due.Deadline = v.basis, timestamppb.New(v.due.Planned), timestamppb.New(v.due.Deadline)
	a.watch(v.due.Credential, at)
	return a.world.Arm(ctx, v.due.Credential, at, due, seq)
}

// nextLook is when there is something to tell, at the latest when to try.
func (a *Agenda) nextLook(v view, told *pawlv1.Due, at, now time.Time) time.Time {
	for _, tell := range []struct {
		at   time.Time
		told bool
	}{{a.book.Remind(v.due), told.GetReminded()}, {v.due.Deadline, told.GetOverdue()}} {
		if !tell.told && tell.at.After(now) && tell.at.Before(at) {
			at = tell.at
		}
	}
	return at
}

// fired handles a timer. It returns when to hear it again; 0: it has served.
func (a *Agenda) fired(ctx context.Context, lead string, due *pawlv1.Due, t turn) (again time.Duration, err error) {
	now := a.now()
	if t.asked.After(now) { // the bus's clock is ahead of ours: its timers would fire at once, for ever
		now = t.asked
	}
	v, ok, err := a.view(ctx, lead, now)
	switch {
	case err != nil:
		return 0, err
	case !ok || v.waits():
		return 0, nil
	case v.basis != due.GetBasis():
		return 0, a.Look(ctx, lead) // of before the last turn
	}
	told := proto.CloneOf(due) // and then what was told
	news := a.news(v, told, now)
	if len(news) > 0 {
		if newest, seq, err := a.world.Armed(ctx, lead); err != nil || seq > 0 || !proto.Equal(newest, due) {
			return 0, err // while this one lay about, another has heard it, told, and armed the next
		}
	}
	for _, n := range news {
		a.world.Note(ctx, n)
	}
	switch ready := a.book.Ready(v.due, now); {
	case !ready:
		try := v.due.At
		if v.due.Blocked != "" {
			try = a.later(v, now, 15*time.Minute)
		}
		return 0, a.arm(ctx, v, told, a.nextLook(v, told, try, now), overAny)
	case len(news) > 0: // kept before anything else, or it would be told each time
		return 0, a.arm(ctx, v, told, now, overAny)
	}
	t.credential, t.follows = lead, map[string]string{}
	for _, name := range v.due.Members() {
		t.follows[name] = v.newer[name]
	}
	free, err := a.take(ctx, t, now)
	if err != nil {
		return 0, err
	}
	if !free {
		return a.wait/2 + rand.N(a.wait/2), nil
	}
	t.request = "schedule-" + v.due.Planned.UTC().Format("20060102-150405")
	t.reason = fmt.Sprintf("by policy due until %s; %s", v.due.Deadline.UTC().Format(time.RFC3339), v.due.Why)
	refusal, again, err := a.world.Begin(ctx, t)
	if err != nil || again > 0 {
		return max(again, 250*time.Millisecond), err
	}
	if refusal == "" {
		a.count("begun")
		return 0, nil
	}
	a.count("refused")
	if err := a.giveBack(ctx, t); err != nil {
		return time.Second, err
	}
	at := a.later(v, now, min(24*time.Hour, 5*time.Minute<<min(told.GetRefused(), 9)))
	told.Refused++
	a.world.Note(ctx, &pawlv1.Note{Kind: "schedule refused", Credential: lead, Text: fmt.Sprintf("%s; tried again at %s", refusal, at.UTC().Format(time.RFC3339))})
	return 0, a.arm(ctx, v, told, a.nextLook(v, told, at, now), overAny)
}

// later is when to try again after a rest, which is never longer than a tenth of
// the interval.
func (a *Agenda) later(v view, now time.Time, rest time.Duration) time.Time {
	for _, name := range v.due.Members() {
		if every := a.inv.Credentials[name].RotateEvery; every > 0 {
			rest = min(rest, every/10)
		}
	}
	return a.book.Retry(v.due, now.Add(rest))
}

// news is what people should know and were not told. It enters it as told.
func (a *Agenda) news(v view, told *pawlv1.Due, now time.Time) (news []*pawlv1.Note) {
	names := strings.Join(v.due.Members(), ", ")
	note := func(kind, text string) {
		news = append(news, &pawlv1.Note{Kind: kind, Credential: v.due.Credential, Text: text})
	}
	if !told.Reminded && !now.Before(a.book.Remind(v.due)) {
		told.Reminded = true
		if now.Before(v.due.Planned) {
			note("due soon", fmt.Sprintf("%s will be turned on %s (%s); policy wants it by %s", names, v.due.At.UTC().Format(time.RFC3339), v.due.Why, v.due.Deadline.UTC().Format(time.RFC3339)))
		}
	}
	if !told.Overdue && v.due.Overdue(now) {
		told.Overdue = true
		note("overdue", fmt.Sprintf("%s should have been turned by %s; tried next at %s; see docs/runbooks/overdue.md%s", names, v.due.Deadline.UTC().Format(time.RFC3339), v.due.At.UTC().Format(time.RFC3339), a.inv.ContactText()))
	}
	if told.Blocked != v.due.Blocked && !now.Before(v.due.Planned) {
		told.Blocked = v.due.Blocked
		if v.due.Blocked != "" {
			note("schedule blocked", names+": "+v.due.Blocked)
		}
	}
	return news
}

package command

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"pawl.dev/cmd/pawl/internal/terminal"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/words"
)

// part is one credential of several that are awaited.
type part struct {
	Credential string   `json:"credential"`
	Rotation   string   `json:"rotation,omitempty"`
	Outcome    string   `json:"outcome"` // requested, contained, published, verified, completed, rolled-back, stalled, rejected
	Reason     string   `json:"reason,omitempty"`
	Pending    []string `json:"pending,omitempty"` // servers on which it is not contained yet
	Contained  *float64 `json:"seconds_to_contain,omitempty"`
	Verified   *float64 `json:"seconds_to_verify,omitempty"`

	requested                                 time.Time
	seq                                       uint64 // of the newest event
	contained, published, verified, over, bad bool
	stalled                                   bool // for now: it goes on by itself
	before                                    string
	cluster                                   string
}

// exit is the exit code that it alone would have.
func (p *part) exit() int {
	switch {
	case p.Outcome == "rejected" || p.Outcome == chronicle.Superseded:
		return exitRejected
	case p.stalled:
		return exitStalled
	case p.bad:
		return exitRolledBack
	}
	return exitDone
}

// String names it, and what is wrong.
func (p *part) String() string {
	said := p.Credential
	if p.bad || p.stalled {
		said += " (" + strings.TrimSuffix(p.Outcome+": "+p.Reason, ": ") + ")"
	}
	if len(p.Pending) > 0 {
		said += " (not yet: " + strings.Join(p.Pending, ", ") + ")"
	}
	return said
}

// tally counts how far several credentials are.
type tally struct {
	parts    map[string]*part
	contains bool // they are contained first
	began    time.Time
}

func newTally(names []string, contains bool) *tally {
	t := &tally{parts: map[string]*part{}, contains: contains, began: time.Now()}
	for _, name := range names {
		t.parts[name] = &part{Credential: name, Outcome: "waiting"}
	}
	return t
}

// take takes over an event or a note about one of them, and reports whether it was.
func (t *tally) take(e bus.Entry) bool {
	p := t.parts[e.Credential]
	switch {
	case t.superseded(e):
		return true
	case p == nil || p.Rotation == "" || e.Rotation != p.Rotation:
		return false
	case p.Outcome == chronicle.Superseded: // what it did before comes late
		return true
	case e.Note != nil:
		if e.Note.GetKind() == "stalled" && !p.over && !p.stalled {
			p.before, p.Outcome, p.Reason, p.stalled = p.Outcome, chronicle.Stalled, e.Note.GetText(), true
		}
		return true
	case e.Event == nil || e.Event.Seq <= p.seq:
		return false
	}
	p.seq = e.Event.Seq
	if p.stalled { // it was
		p.Outcome, p.Reason, p.stalled = p.before, "", false
	}
	event := e.Event.Event
	since := func() *float64 { s := e.Event.At.Sub(p.requested).Seconds(); return &s }
	switch event {
	case saga.Requested:
		p.requested = e.Event.At
		if p.Outcome == "rejected" { // it has begun after all
			p.over, p.bad, p.Reason = false, false, ""
		}
	case saga.Contained:
		p.contained, p.Contained = true, since()
		p.Pending = slices.Sorted(maps.Keys(e.Event.Body.GetContained().GetPending()))
	case saga.Released:
		p.Pending = nil
	case saga.Published:
		p.published = true
	case saga.Verified:
		p.verified, p.Verified = true, since()
	case saga.Completed:
		p.over, p.bad, p.Reason = true, false, ""
	case saga.RolledBack:
		p.over, p.bad = true, true
	}
	if f := e.Event.Body.GetFailure(); f != nil {
		p.Reason, p.bad = f.GetStep()+": "+f.GetReason(), true
	}
	if slices.Contains([]saga.Event{saga.Requested, saga.Contained, saga.Published, saga.Verified, saga.Completed, saga.RolledBack}, event) {
		p.Outcome = string(event)
	}
	return true
}

// superseded ends one that another rotation has superseded, and reports whether it has.
func (t *tally) superseded(e bus.Entry) bool {
	p := t.parts[e.Credential]
	if p == nil || p.Rotation == "" || e.Event == nil || e.Event.Body.GetRequested().GetSupersedes() != p.Rotation {
		return false
	}
	p.supersede(e.Rotation)
	return true
}

func (p *part) supersede(by string) {
	p.Outcome, p.Reason, p.over, p.bad, p.stalled = chronicle.Superseded, "by "+by, true, true, false
}

// reject ends one that did not begin.
func (t *tally) reject(name, why string) {
	p := t.parts[name]
	p.Outcome, p.Reason, p.over, p.bad = "rejected", why, true, true
}

// counts are what people are shown.
type counts struct {
	All       int `json:"credentials"`
	Contained int `json:"contained,omitempty"`
	Pending   int `json:"pending,omitempty"` // servers on which one is not contained yet
	Published int `json:"published"`
	Verified  int `json:"verified"`
	Failed    int `json:"failed"`
	Stalled   int `json:"stalled,omitempty"`
	Completed int `json:"completed"`
}

func (t *tally) counts() (c counts) {
	pending := map[string]bool{}
	for _, p := range t.parts {
		c.All++
		for _, node := range p.Pending {
			pending[p.cluster+" "+node] = true
		}
		for n, has := range map[*int]bool{&c.Contained: p.contained, &c.Published: p.published, &c.Verified: p.verified, &c.Failed: p.bad, &c.Stalled: p.stalled, &c.Completed: p.over && !p.bad} {
			if has {
				*n++
			}
		}
	}
	c.Pending = len(pending)
	return c
}

// every reports whether it is so of each of them.
func (t *tally) every(is func(*part) bool) bool {
	for _, p := range t.parts {
		if !is(p) {
			return false
		}
	}
	return true
}

// list is every part, in the order of names.
func (t *tally) list() []*part {
	var all []*part
	for _, p := range t.parts {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *part) int { return cmp.Compare(a.Credential, b.Credential) })
	return all
}

// line is where they stand; left is estimated from the pace so far.
func (t *tally) line(width int, until func(counts) int) string {
	c, elapsed := t.counts(), time.Since(t.began)
	done := until(c)
	bar := ""
	if width > 0 && c.All > 0 {
		bar = "[" + strings.Repeat("#", width*done/c.All) + strings.Repeat(".", width-width*done/c.All) + "] "
	}
	var said []string
	if t.contains {
		contained := fmt.Sprintf("%d contained", c.Contained)
		if c.Pending > 0 {
			contained += fmt.Sprintf(" (%s not yet)", service.Count(c.Pending, "node"))
		}
		said = append(said, contained)
	}
	said = append(said, fmt.Sprintf("%d published", c.Published), fmt.Sprintf("%d verified", c.Verified), fmt.Sprintf("%d failed", c.Failed))
	if c.Stalled > 0 {
		said = append(said, fmt.Sprintf("%d stalled", c.Stalled))
	}
	text := fmt.Sprintf("%s%d credentials: %s; %s elapsed", bar, c.All, strings.Join(said, ", "), words.Duration(elapsed.Truncate(100*time.Millisecond)))
	if done > 0 && done < c.All {
		left := time.Duration(float64(elapsed) * float64(c.All-done) / float64(done))
		text += fmt.Sprintf(", about %s left", words.Duration(max(time.Second, left.Truncate(time.Second))))
	}
	return text
}

// lineEvery is how often the tally is told where there is no terminal.
const lineEvery = 2 * time.Second

// board shows a tally: on a terminal in one line that is overwritten, elsewhere in a
// line every few seconds, if something has changed.
type board struct {
	w        io.Writer
	terminal bool
	tick     *time.Ticker
	last     counts
}

func newBoard(w io.Writer) *board {
	b := &board{w: w, tick: time.NewTicker(lineEvery)}
	if _, b.terminal = onTerminal(w); b.terminal {
		b.tick.Reset(100 * time.Millisecond)
	}
	return b
}

// draw shows the tally; at the end in a line that stays.
func (b *board) draw(t *tally, until func(counts) int, end bool) {
	now := t.counts()
	switch {
	case b.terminal:
		fmt.Fprint(b.w, terminal.Own("[1G")+terminal.Own("[K")+t.line(20, until))
		if end {
			fmt.Fprintln(b.w)
		}
	case end || now != b.last:
		fmt.Fprintln(b.w, t.line(0, until))
	}
	b.last = now
}

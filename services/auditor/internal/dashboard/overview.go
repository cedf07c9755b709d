package dashboard

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	"pawl.dev/services/auditor/internal/posture"
)

// perPage is how many credentials one page lists, and how many need attention at
// most before the list says how many more.
const perPage, perList = 100, 25

// kind is one of the ways in which credentials are counted.
type kind struct {
	name, tone string
	has        func(posture.Standing) bool
}

var kinds = []kind{
	{"stalled", "bad", func(s posture.Standing) bool { return s.State == chronicle.Stalled }},
	{"emergency", "bad", func(s posture.Standing) bool { return s.Emergency() && s.Open() }},
	{"locked", "bad", func(s posture.Standing) bool { return s.State == chronicle.Locked }},
	{"drift", "warn", func(s posture.Standing) bool { return len(s.Drift) > 0 }},
	{"overdue", "warn", func(s posture.Standing) bool { return s.Overdue() > 0 }},
	{"running", "busy", posture.Standing.Open},
	{"due", "soon", posture.Standing.Due},
	{"not adopted", "quiet", func(s posture.Standing) bool { return s.State == chronicle.NotAdopted && s.Trouble == "" }},
}

// attention is how many of the kinds, from the first on, want a person.
const attention = 5

// tile is a number and the credentials behind it.
type tile struct {
	Name, Tone, Link string
	Count            int
	Here             bool
}

// row is one credential in a table.
type row struct {
	posture.Standing
	Tone  string // as of the first kind that it is of
	Word  string // its state
	Why   string // what people should know of it
	Every time.Duration
	Share int // of its policy's interval that has passed, in 1/1000, at most 1000
	Late  bool
	Steps []mark // of a rotation that is under way
}

// mark is one step of a rotation that is under way.
type mark struct{ Name, State string }

func newRow(s posture.Standing) row {
	r := row{Standing: s, Word: s.State, Every: s.Config.RotateEvery, Late: s.Overdue() > 0, Tone: "good"}
	for _, k := range slices.Backward(kinds) {
		if k.has(s) {
			r.Tone = k.tone
		}
	}
	if s.Login != "" && r.Every > 0 {
		r.Share = min(1000, int(1000*s.Age()/r.Every))
	}
	switch {
	case s.Trouble != "":
		r.Word = "unclear"
	case s.State == chronicle.NotAdopted:
		r.Word = "not adopted"
	case s.State == chronicle.Idle && len(s.Drift) > 0:
		r.Word = "drift"
	case s.State == chronicle.Idle && r.Late:
		r.Word = "overdue"
	}
	switch {
	case s.Trouble != "":
		r.Tone, r.Why = "bad", s.Trouble
	case s.Note != nil && s.Open():
		r.Why = s.Note.Says()
	case s.State == chronicle.Locked:
		r.Why = "refused on every node until somebody unlocks it"
	case len(s.Drift) > 0:
		r.Why = s.Drift[len(s.Drift)-1].Says()
	case s.Overdue() > 0:
		r.Why = fmt.Sprintf("policy wants it turned every %s; it is %s late", days(r.Every), coarse(s.Overdue()))
	}
	if s.Open() {
		r.Steps = marks(s)
	}
	return r
}

// marks are the forward steps of the rotation, as far as it has come.
func marks(s posture.Standing) (all []mark) {
	flow, ok := saga.FlowByName(s.Last.Flow)
	if !ok {
		return nil
	}
	at := slices.IndexFunc(flow.Forward, func(step saga.Step) bool { return step.Name == s.Step })
	for i, step := range flow.Forward {
		m := mark{step.Name, "done"}
		switch {
		case at < 0: // on its way back
			m.State = "back"
		case i == at:
			m.State = "now"
		case i > at:
			m.State = "next"
		}
		all = append(all, m)
	}
	return all
}

// wave is an emergency of several credentials that is under way, and how many of them
// are how far.
type wave struct {
	ID                                         string
	All, Contained, Published, Verified, Ended int
	Stalled                                    int
}

// waves are the emergencies of several, of which not all have ended.
func waves(all []posture.Standing) (under []wave) {
	by := map[string]*wave{}
	for _, s := range all {
		if !s.Emergency() {
			continue
		}
		w := by[s.Last.ID]
		if w == nil {
			w = &wave{ID: s.Last.ID}
			by[s.Last.ID] = w
		}
		w.All++
		if !s.Open() {
			w.Contained, w.Published, w.Verified, w.Ended = w.Contained+1, w.Published+1, w.Verified+1, w.Ended+1
			continue
		}
		if s.State == chronicle.Stalled {
			w.Stalled++
		}
		for _, m := range marks(s) {
			if count := map[string]*int{"contain": &w.Contained, "publish": &w.Published, "verify": &w.Verified}[m.Name]; count != nil && m.State == "done" {
				*count++
			}
		}
	}
	for _, w := range by {
		if w.All > 1 && w.Ended < w.All {
			under = append(under, *w)
		}
	}
	slices.SortFunc(under, func(a, b wave) int { return cmp.Compare(b.ID, a.ID) })
	return under
}

func (b *Dashboard) overview(w http.ResponseWriter, r *http.Request) {
	page := struct {
		head
		Tiles     []tile
		Total     int
		Attention []row
		Unlisted  int // that want attention, too
		Waves     []wave
		Running   []row
		Rows      []row
		Show, Q   string
		Found     int
		Page      int
		Next      string
		Before    string
		Recent    []chronicle.Line
		Trail     posture.Trail
	}{head: b.head("Posture", "overview"), Show: r.URL.Query().Get("show"), Q: strings.TrimSpace(r.URL.Query().Get("q"))}
	all := b.posture.All(page.Now)
	page.Total, page.Live, page.Waves = len(all), "/events", waves(all)
	var found []posture.Standing
	counts := make([]int, len(kinds))
	var said []string
	for _, s := range all {
		matches := page.Show == ""
		first := len(kinds)
		for i, k := range kinds {
			if k.has(s) {
				counts[i]++
				first = min(first, i)
				matches = matches || k.name == page.Show
			}
		}
		switch {
		case first >= attention && s.Trouble == "":
		case len(page.Attention) < perList:
			page.Attention = append(page.Attention, newRow(s))
		default:
			page.Unlisted++
		}
		if s.Open() && len(page.Running) < perList {
			page.Running = append(page.Running, newRow(s))
		}
		if matches && (page.Q == "" || strings.Contains(s.Credential, page.Q) || strings.Contains(s.Config.Cluster.Name, page.Q) || strings.Contains(s.Config.Cluster.Environment, page.Q)) {
			found = append(found, s)
		}
	}
	for i, k := range kinds {
		t := tile{Name: k.name, Tone: k.tone, Count: counts[i], Here: k.name == page.Show, Link: "/?show=" + url.QueryEscape(k.name) + "#credentials"}
		if t.Here {
			t.Link = "/"
		}
		page.Tiles = append(page.Tiles, t)
		if counts[i] > 0 {
			said = append(said, fmt.Sprintf("%d %s", counts[i], k.name))
		}
	}
	page.Summary = cmp.Or(strings.Join(said, ", "), "nothing wants attention")
	slices.SortStableFunc(page.Attention, func(x, y row) int { return cmp.Compare(urgency(x), urgency(y)) })

	page.Found = len(found)
	page.Page, _ = strconv.Atoi(r.URL.Query().Get("page"))
	page.Page = max(1, min(page.Page, (len(found)+perPage-1)/perPage))
	first := (page.Page - 1) * perPage
	for _, s := range found[min(first, len(found)):min(first+perPage, len(found))] {
		page.Rows = append(page.Rows, newRow(s))
	}
	link := func(n int) string {
		return "/?" + url.Values{"show": {page.Show}, "q": {page.Q}, "page": {strconv.Itoa(n)}}.Encode() + "#credentials"
	}
	if page.Page > 1 {
		page.Before = link(page.Page - 1)
	}
	if first+perPage < len(found) {
		page.Next = link(page.Page + 1)
	}
	page.Recent, page.Trail = b.posture.Recent(20), b.posture.Trail()
	b.pages.write(w, http.StatusOK, "overview", page)
}

// urgency is the place among the kinds of the worst that the credential is of.
func urgency(r row) int {
	if i := slices.IndexFunc(kinds, func(k kind) bool { return k.has(r.Standing) }); i >= 0 {
		return i
	}
	return len(kinds)
}

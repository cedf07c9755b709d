package incident

import (
	_ "embed"
	"fmt"
	html "html/template"
	"io"
	"maps"
	"slices"
	"strings"
	text "text/template"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Several is the report of an emergency of several credentials.
type Several struct {
	ID              string            `json:"id"`
	Requested       time.Time         `json:"requested"`
	RequestedBy     string            `json:"requested_by,omitempty"`
	AuthenticatedAs string            `json:"authenticated_as,omitempty"`
	Reason          string            `json:"reason,omitempty"`
	Made            time.Time         `json:"made"`
	Asked           int               `json:"asked"` // credentials
	Begun           int               `json:"begun"`
	Contained       int               `json:"contained"`
	Recovered       int               `json:"recovered"` // their new passwords are verified
	Over            int               `json:"over"`
	Sessions        uint32            `json:"sessions_ended"`
	ToContain       float64           `json:"seconds_to_contain,omitempty"` // the last of them; 0: not all are
	ToRecover       float64           `json:"seconds_to_recover,omitempty"`
	NotBegun        []string          `json:"not_begun,omitempty"`
	LeftOut         []string          `json:"left_out,omitempty"` // Pawl itself logs in with them
	Credentials     []Member          `json:"credentials"`
	Contacts        map[string]string `json:"contacts,omitempty"`
}

// Member is one of the credentials.
type Member struct {
	Credential string   `json:"credential"`
	Cluster    string   `json:"cluster,omitempty"`
	Step       string   `json:"step,omitempty"` // that is due; empty: it is over
	ToContain  float64  `json:"seconds_to_contain,omitempty"`
	ToRecover  float64  `json:"seconds_to_recover,omitempty"`
	Sessions   uint32   `json:"sessions_ended"`
	Pending    []string `json:"pending,omitempty"` // servers that could not be reached at first
}

// NewSeveral reports from the record of the emergency, and the logs of those that
// began.
func NewSeveral(record *pawlv1.Note, logs []bus.Log, inv *inventory.Inventory, now time.Time) (*Several, error) {
	r := &Several{ID: record.GetRotation(), Requested: record.GetAt().AsTime(), RequestedBy: record.GetActor(), Made: now,
		Asked: len(record.GetCredentials()), Begun: len(logs), LeftOut: record.GetLaggards(), Contacts: inv.Contacts}
	begun := map[string]bool{}
	for _, log := range logs {
		m, err := r.member(log, inv)
		if err != nil {
			return nil, err
		}
		begun[log.Credential] = true
		r.Credentials = append(r.Credentials, m)
		r.ToContain, r.ToRecover = max(r.ToContain, m.ToContain), max(r.ToRecover, m.ToRecover)
	}
	for _, name := range record.GetCredentials() {
		if !begun[name] {
			r.NotBegun = append(r.NotBegun, name)
		}
	}
	if r.Contained < r.Begun {
		r.ToContain = 0
	}
	if r.Recovered < r.Begun {
		r.ToRecover = 0
	}
	return r, nil
}

func (r *Several) member(log bus.Log, inv *inventory.Inventory) (Member, error) {
	m := Member{Credential: log.Credential}
	state, err := log.Fold()
	if err != nil {
		return m, err
	}
	begin := log.Records[0].Body.GetRequested()
	r.Reason, r.AuthenticatedAs = begin.GetReason(), begin.GetAuthenticatedAs()
	if c := inv.Credentials[log.Credential]; c != nil {
		m.Cluster = c.Cluster.Name
	}
	if record := log.Find(saga.Contained); record != nil {
		found := record.Body.GetContained()
		m.ToContain, m.Sessions = record.At.Sub(r.Requested).Seconds(), found.GetSessions()
		if log.Find(saga.Released) == nil {
			m.Pending = slices.Sorted(maps.Keys(found.GetPending()))
		}
		r.Contained, r.Sessions = r.Contained+1, r.Sessions+m.Sessions
	}
	if record := log.Find(saga.Verified); record != nil {
		m.ToRecover = record.At.Sub(r.Requested).Seconds()
		r.Recovered++
	}
	if state.Open() {
		m.Step = state.Next().Name
	} else {
		r.Over++
	}
	return m, nil
}

// Status says how it stands: of those that began, and how many did not.
func (r *Several) Status() string {
	if n := len(r.NotBegun); n > 0 {
		const most = 10
		names := strings.Join(r.NotBegun[:min(n, most)], ", ")
		if n > most {
			names += fmt.Sprintf(" and %d more", n-most)
		}
		missing := fmt.Sprintf("%d of %d credentials did not begin (%s): their stolen passwords may still work.", n, r.Asked, names)
		if r.Begun == 0 {
			return missing
		}
		return r.ofBegun() + " " + missing
	}
	return r.ofBegun()
}

func (r *Several) ofBegun() string {
	pending := 0
	for _, m := range r.Credentials {
		if len(m.Pending) > 0 {
			pending++
		}
	}
	switch {
	case r.Contained < r.Begun:
		return fmt.Sprintf("%d of %d credentials are not contained yet: their stolen passwords may still work.", r.Begun-r.Contained, r.Begun)
	case pending > 0:
		return fmt.Sprintf("All %d are contained, but for %d on servers that could not be reached: the stolen passwords may still work there.", r.Begun, pending)
	case r.Recovered < r.Begun:
		return fmt.Sprintf("All %d are contained; %d are not back on a verified new password yet.", r.Begun, r.Begun-r.Recovered)
	case r.Over < r.Begun:
		return fmt.Sprintf("All %d are contained and back on verified new passwords; %d are not over.", r.Begun, r.Begun-r.Over)
	}
	return fmt.Sprintf("It is over: all %d stolen passwords are refused, and the applications are back on new ones.", r.Begun)
}

var (
	//go:embed several.md.tmpl
	severalMarkdown string
	//go:embed several.html.tmpl
	severalHTML string

	severalAsMarkdown = text.Must(text.New("several").Funcs(shared).Funcs(text.FuncMap{"v": markdown}).Parse(severalMarkdown))
	severalAsHTML     = html.Must(html.New("several").Funcs(shared).Funcs(html.FuncMap{"v": plain}).Parse(severalHTML))
)

// Markdown writes the report.
func (r *Several) Markdown(w io.Writer) error { return severalAsMarkdown.Execute(w, r) }

// HTML writes the report as a page that needs nothing else.
func (r *Several) HTML(w io.Writer) error { return severalAsHTML.Execute(w, r) }

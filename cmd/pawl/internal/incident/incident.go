// Package incident tells one emergency whole: what was done when, to whom, what
// is not over, what was found, and what only a person can check. As Markdown, as
// one HTML file, and as JSON.
package incident

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Report is what is to be said of one emergency, or of one lock.
type Report struct {
	chronicle.Timeline
	Kind             string              `json:"kind"` // emergency, lock or unlock
	Made             time.Time           `json:"made"`
	Over             bool                `json:"over"`
	Locked           bool                `json:"locked,omitempty"` // nobody gets in until it is unlocked
	Cluster          string              `json:"cluster,omitempty"`
	Role             string              `json:"role"`
	Supersedes       string              `json:"supersedes,omitempty"` // the rotation that it ended
	Logins           []string            `json:"logins,omitempty"`     // that were in doubt
	Returns          string              `json:"returns,omitempty"`    // the one of them that gets the new password
	Clean            bool                `json:"clean"`                // it had no password that anybody could know
	Sessions         uint32              `json:"sessions_ended"`
	Prepared         uint32              `json:"prepared_rolled_back"`
	SecondsToContain float64             `json:"seconds_to_contain,omitempty"` // 0: not yet
	SecondsToRecover float64             `json:"seconds_to_recover,omitempty"` // until the new login was verified
	Servers          []Server            `json:"servers,omitempty"`
	Story            []Line              `json:"story"`
	Alerts           []Alert             `json:"alerts,omitempty"`
	FailedLogins     []Alert             `json:"failed_logins,omitempty"`
	Evidence         []evidence.Snapshot `json:"evidence,omitempty"`
	Sealed           string              `json:"evidence_sealed,omitempty"` // why some, or all of it, is not shown
	Contacts         map[string]string   `json:"contacts,omitempty"`
	Checks           []Check             `json:"to_check"`
}

// Server is one node or replica.
type Server struct {
	Name      string     `json:"name"`
	Contained *time.Time `json:"contained,omitempty"` // by its own clock: nobody was in any more
	Pending   string     `json:"pending,omitempty"`   // why not, or not at first
	Later     *time.Time `json:"later,omitempty"`     // when that was made up for
}

// Line is one thing that happened.
type Line struct {
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"` // after the request
	Who     string    `json:"who"`
	What    string    `json:"what"`
	Text    string    `json:"text,omitempty"`
	Bad     bool      `json:"bad,omitempty"`
}

// Alert is one that named one of the logins, in the day before or since, or that
// began the emergency.
type Alert struct {
	At          time.Time         `json:"at"` // when it was stored
	Source      string            `json:"source"`
	StartsAt    time.Time         `json:"starts_at"`
	Resolved    bool              `json:"resolved,omitempty"`
	Began       bool              `json:"began,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Lookback is how long before an emergency alerts are of interest.
const Lookback = 24 * time.Hour

// failedLogins is the source of the alerts of `pawl watch-logins`.
const failedLogins = "logins"

// Sources is what a report is made from.
type Sources struct {
	Log        bus.Log
	Notes      []bus.Entry     // since it was requested
	Alerts     []client.Alert  // since Lookback before
	Alarms     []*pawlv1.Alarm // what was decided about those that name the credential
	Evidence   []evidence.Snapshot
	Sealed     string
	Inventory  *inventory.Inventory
	Credential *inventory.Credential // nil: no longer in pawl.yaml
	Now        time.Time
}

var kinds = map[pawlv1.Action]string{pawlv1.Action_ACTION_CONTAIN: "emergency", pawlv1.Action_ACTION_LOCK: "lock", pawlv1.Action_ACTION_UNLOCK: "unlock"}

// ErrNoEmergency is wrapped where the rotation is an ordinary one.
var ErrNoEmergency = errors.New("is no emergency")

// New tells the emergency. It refuses a rotation that was none.
func New(s Sources) (*Report, error) {
	state, err := s.Log.Fold()
	if err != nil {
		return nil, err
	}
	if !state.Flow.Urgent {
		return nil, fmt.Errorf("rotation %s of %s %w (its flow is %s): `pawl trace %[1]s` shows it", s.Log.Rotation, s.Log.Credential, ErrNoEmergency, state.Flow.Name)
	}
	r := &Report{Made: s.Now, Evidence: s.Evidence, Sealed: s.Sealed, Contacts: s.Inventory.Contacts}
	if r.Timeline, err = chronicle.NewTimeline(s.Log, s.Notes, s.Inventory.Telemetry.Jaeger, s.Now); err != nil {
		return nil, err
	}
	begin := s.Log.Records[0].Body.GetRequested()
	r.Role, r.Supersedes, r.Over = begin.GetRole(), begin.GetSupersedes(), !state.Open()
	r.Locked = state.Flow.Locks
	if s.Credential != nil {
		r.Cluster = s.Credential.Cluster.Name
	}
	r.Kind = kinds[begin.GetAction()]
	r.contained(s.Log)
	r.Story = story(r.Timeline, r.Kind)
	r.alerts(s)
	r.Checks = r.checks()
	return r, nil
}

func (r *Report) contained(log bus.Log) {
	since := func(e saga.Event) float64 {
		if record := log.Find(e); record != nil {
			return record.At.Sub(r.Requested).Seconds()
		}
		return 0
	}
	r.SecondsToContain, r.SecondsToRecover = since(saga.Contained), since(saga.Verified)
	record := log.Find(saga.Contained)
	if record == nil {
		return
	}
	c := record.Body.GetContained()
	r.Logins, r.Clean, r.Sessions, r.Prepared = c.GetLogins(), c.GetClean(), c.GetSessions(), c.GetPrepared()
	if !r.Locked {
		r.Returns = c.GetReturns()
	}
	names := slices.Concat(slices.Collect(maps.Keys(c.GetAt())), slices.Collect(maps.Keys(c.GetPending())))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		server := Server{Name: name, Pending: c.GetPending()[name]}
		if at := c.GetAt()[name]; at != nil {
			t := at.AsTime()
			server.Contained = &t
		}
		if released := log.Find(saga.Released); released != nil && server.Pending != "" {
			server.Later = &released.At
		}
		r.Servers = append(r.Servers, server)
	}
}

// story is what happened, in order.
func story(t chronicle.Timeline, kind string) []Line {
	asked := kind
	if t.Reason != "" {
		asked += ": " + t.Reason
	}
	lines := []Line{{At: t.Requested, Who: cmp.Or(t.RequestedBy, "unknown"), What: string(saga.Requested), Text: asked}}
	for _, s := range t.Steps {
		if s.Ended == nil {
			continue
		}
		text := strings.Join(append([]string{s.Summary}, s.Warnings...), "; ")
		lines = append(lines, Line{At: *s.Ended, Who: s.Owner, What: s.Event, Text: cmp.Or(s.Failure, strings.Trim(text, "; ")), Bad: s.Failure != ""})
	}
	for _, n := range t.Notes {
		text := n.Text
		if len(n.Laggards) > 0 {
			text += " (" + strings.Join(n.Laggards, ", ") + ")"
		}
		lines = append(lines, Line{At: n.At, Who: n.Service, What: n.Kind, Text: text, Bad: n.Kind == "stalled" || n.Kind == "retrying"})
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return a.At.Compare(b.At) })
	for i := range lines {
		lines[i].Seconds = lines[i].At.Sub(t.Requested).Seconds()
	}
	return lines
}

// alerts takes the one that began it, and those that name one of the logins on
// the cluster, by the labels that rules go by, too.
func (r *Report) alerts(s Sources) {
	for _, a := range s.Alerts {
		labels := a.Alert.GetLabels()
		began := slices.ContainsFunc(s.Alarms, func(d *pawlv1.Alarm) bool {
			return d.GetRotation() == r.ID && d.GetSource() == a.Source && d.GetSequence() == a.Sequence
		})
		if role := labels["pg_role"]; !began && (role != r.Role && !slices.Contains(r.Logins, role) || r.Cluster != "" && labels["cluster"] != r.Cluster) {
			continue
		}
		told := Alert{At: a.At, Source: a.Source, StartsAt: a.Alert.GetStartsAt().AsTime(), Resolved: a.Alert.GetResolved(), Began: began, Labels: labels, Annotations: a.Alert.GetAnnotations()}
		if a.Source == failedLogins {
			r.FailedLogins = append(r.FailedLogins, told)
		} else {
			r.Alerts = append(r.Alerts, told)
		}
	}
}

// Status says in one sentence how it stands.
func (r *Report) Status() string {
	step := ""
	if n := len(r.Steps); n > 0 && r.Steps[n-1].Ended == nil {
		step = r.Steps[n-1].Name
	}
	switch {
	case r.SecondsToContain == 0:
		return "It is not contained yet: the stolen password may still work."
	case !r.Over && r.waits() != "":
		return fmt.Sprintf("It is not over: %s. Until then the stolen password may work there.", r.waits())
	case !r.Over:
		return fmt.Sprintf("It is contained, and not over: it is at %q.", step)
	case r.Locked:
		return fmt.Sprintf("It is contained and locked: nobody logs in until `pawl unlock %s`.", r.Credential)
	}
	return "It is over: what was stolen is refused, and the application is back on a new password."
}

// waits names the servers that are pending.
func (r *Report) waits() string {
	var names []string
	for _, s := range r.Servers {
		if s.Pending != "" && s.Later == nil {
			names = append(names, s.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return strings.Join(names, ", ") + " could not be reached, or has yet to replay"
}

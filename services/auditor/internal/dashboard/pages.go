package dashboard

import (
	"bytes"
	"embed"
	"errors"
	"html/template"
	"net/http"
	"strings"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/chronicle"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/trail"
	"pawl.dev/internal/words"
	"pawl.dev/services/auditor/internal/posture"
)

//go:embed pages
var templates embed.FS

// pages are the templates, by name.
type pages map[string]*template.Template

func parsePages() pages {
	functions := template.FuncMap{"short": words.Duration, "ago": ago, "stamp": stamp, "clock": clock, "iso": iso, "days": days}
	layout := template.Must(template.New("layout").Funcs(functions).ParseFS(templates, "pages/layout.html"))
	all := pages{}
	for _, name := range []string{"overview", "credential", "rotation", "schedule", "trail", "login", "failure"} {
		all[name] = template.Must(template.Must(layout.Clone()).ParseFS(templates, "pages/"+name+".html"))
	}
	return all
}

// write renders the whole page first: half of one is none.
func (p pages) write(w http.ResponseWriter, status int, name string, data any) {
	var out bytes.Buffer
	if err := p[name].ExecuteTemplate(&out, "layout", data); err != nil {
		http.Error(w, "page "+name+": "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(out.Bytes()) // whoever asked may have gone
}

// head is what every page has.
type head struct {
	Title   string
	Here    string // which link of the navigation leads here
	Live    string // the event stream that tells when to look again; empty: none
	Now     time.Time
	Token   bool // there is a session to end
	Reading posture.Reading
	Summary string // for whoever listens instead of looking
}

func (b *Dashboard) head(title, here string) head {
	return head{Title: title, Here: here, Now: time.Now().UTC(), Token: b.config.TokenFile != "", Reading: b.posture.Reading()}
}

func (b *Dashboard) fail(w http.ResponseWriter, _ *http.Request, status int, text string) {
	h := b.head(http.StatusText(status), "")
	b.pages.write(w, status, "failure", struct {
		head
		Text string
	}{h, text})
}

// broken answers where the bus did not, or what it did cannot be understood.
func (b *Dashboard) broken(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, saga.ErrUnknownEvent) {
		b.fail(w, r, http.StatusNotImplemented, err.Error()+".")
		return
	}
	b.d.Log.Warn("page not made", "path", r.URL.Path, "error", err)
	b.fail(w, r, http.StatusServiceUnavailable, "The bus does not answer; the auditor's log says why. Try again soon.")
}

func (b *Dashboard) credential(w http.ResponseWriter, r *http.Request) {
	page := struct {
		head
		posture.Standing
		Row     row
		Facts   []fact
		History []chronicle.Rotation
		More    bool
	}{head: b.head(r.PathValue("name"), "overview")}
	var ok bool
	if page.Standing, ok = b.posture.One(r.PathValue("name"), page.Now); !ok {
		b.fail(w, r, http.StatusNotFound, "pawl.yaml knows no credential of that name.")
		return
	}
	var err error
	if page.History, page.More, err = b.posture.History(r.Context(), page.Config.Name, page.Now); err != nil {
		b.broken(w, r, err)
		return
	}
	page.Row, page.Facts = newRow(page.Standing), facts(page.Standing)
	page.Live = "/events?of=" + page.Config.Name
	page.Summary = page.Config.Name + ": " + page.Row.Word
	b.pages.write(w, http.StatusOK, "credential", page)
}

// fact is one line about a credential.
type fact struct{ Name, Text string }

func facts(s posture.Standing) []fact {
	c := s.Config
	var nodes, consumers []string
	for _, n := range c.Members() {
		name := n.Name
		if n.ReplicaOf != "" {
			name += " (replica of " + n.ReplicaOf + ")"
		}
		nodes = append(nodes, name)
	}
	for _, consumer := range c.Consumers {
		consumers = append(consumers, consumer.Name)
	}
	all := []fact{
		{"cluster", c.Cluster.Name}, {"environment", c.Cluster.Environment}, {"nodes", strings.Join(nodes, ", ")},
		{"role", c.Role}, {"strategy", c.Strategy}, {"group", c.Group}, {"consumers", strings.Join(consumers, ", ")},
		{"drain", words.Duration(c.Drain)}, {"predecessor kept", words.Duration(c.Keep)},
	}
	var out []fact
	for _, f := range all {
		if f.Text != "" {
			out = append(out, f)
		}
	}
	return out
}

func (b *Dashboard) rotation(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !bus.ValidToken(id) {
		b.fail(w, r, http.StatusNotFound, "That is no rotation's name.")
		return
	}
	page := struct {
		head
		ID        string
		Timelines []waterfall
		Left      int // that have this rotation, too, and are not shown
	}{head: b.head("Rotation "+id, "overview"), ID: id}
	all, left, err := b.posture.Rotation(r.Context(), id, page.Now)
	if err != nil {
		b.broken(w, r, err)
		return
	}
	if len(all) == 0 {
		b.fail(w, r, http.StatusNotFound, "There is no rotation of that name.")
		return
	}
	for _, t := range all {
		page.Timelines = append(page.Timelines, newWaterfall(t))
	}
	page.Left = left
	page.Live = "/events?of=" + all[0].Credential
	page.Summary = "rotation of " + all[0].Credential + ": " + all[0].Outcome
	b.pages.write(w, http.StatusOK, "rotation", page)
}

func (b *Dashboard) trail(w http.ResponseWriter, r *http.Request) {
	t := b.posture.Trail()
	page := struct {
		head
		posture.Trail
		Newest  []*trail.Record
		Waiting int64
	}{head: b.head("Audit trail", "trail"), Trail: t, Newest: t.Newest(), Waiting: t.Records - t.Signed}
	page.Live = "/events"
	page.Summary = "audit trail proved"
	if t.Fault != "" {
		page.Summary = "audit trail broken"
	}
	b.pages.write(w, http.StatusOK, "trail", page)
}

// ago is how long before now t was, or how long after.
func ago(now, t time.Time) string {
	if d := now.Sub(t); d >= 0 {
		return coarse(d) + " ago"
	}
	return "in " + coarse(t.Sub(now))
}

// coarse is a length without what does not matter beside it.
func coarse(d time.Duration) string {
	if d < time.Minute {
		return words.Duration(max(0, d.Truncate(time.Second)))
	}
	return days(d.Truncate(time.Minute))
}

// days leaves the hours of many days out.
func days(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= 10*day {
		d = d.Truncate(day)
	}
	return words.Duration(d)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }
func clock(t time.Time) string { return t.UTC().Format("15:04:05") }
func iso(t time.Time) string   { return t.UTC().Format(time.RFC3339) }

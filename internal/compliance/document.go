package compliance

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// document is a report as people read it: every format writes the same one.
type document struct {
	Title    string
	Alarm    string // what must be read before anything else
	Lead     []string
	Figures  []figure
	Sections []section
	Last     string // the disclaimer
}

type figure struct {
	Name  string
	Value string
	Bad   bool
}

type section struct {
	ID      string
	Title   string
	Notes   []string
	Columns []string
	Rows    []row
	Empty   string // in place of no rows
}

type row struct {
	Cells []string
	Bad   bool
}

func (s *section) add(bad bool, cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	s.Rows = append(s.Rows, row{cells, bad})
}

// disclaimer stands in every report.
const disclaimer = "This report states what Pawl was configured to do and what its audit trail has recorded. It is no statement that an organisation, a system or a credential complies with any framework, no legal advice, and no audit opinion; that is for the organisation and its auditors. What was done to a server or a file behind Pawl's back is in it only where Pawl noticed and recorded it."

func (r *Report) document() document {
	p := r.Period
	d := document{
		Title: "Credential rotation: " + r.Framework.Title,
		Lead: []string{
			fmt.Sprintf("Period: from %s up to, and without, %s.", p.text(p.From), p.text(p.To)),
			"Configuration: pawl.yaml with digest " + r.Configuration.Digest + ". Intervals are measured against it for the whole period; where it was another one meanwhile, the section on the configuration shows that.",
			r.Trail.text(p),
		},
		Last: disclaimer,
	}
	if r.Trail.Fault != "" {
		d.Alarm = clean("The audit trail does not verify: " + r.Trail.Fault + ". Nothing below is proven.")
	}
	if r.Now != nil {
		d.Lead = append(d.Lead, "What is said to be as of now was asked of the running system at "+p.text(r.Now.At)+", and is not in the trail.")
	} else {
		d.Lead = append(d.Lead, "Nothing was asked of the running system: the report has what the trail and the configuration say.")
	}
	d.Figures = r.figures()
	d.Sections = []section{r.mapping(), r.coverage(), r.rotations(), r.exceptions(), r.emergencies(), r.users(), r.recipients()}
	if r.Now != nil {
		d.Sections = append(d.Sections, r.members(), r.settings())
	}
	d.Sections = append(d.Sections, r.configuration(), r.records(), r.evidence())
	return d
}

func (t Trail) text(p Period) string {
	if t.Fault != "" {
		return clean("Trail: " + strconv.FormatInt(t.Records, 10) + " records read; it does not verify.")
	}
	text := fmt.Sprintf("Trail: verified when this report was made. %d records were read, %d of them are under the checkpoint of %s", t.Records, min(t.Size, t.Records), clean(t.Origin))
	if beyond := t.Records - t.Size; beyond > 0 {
		text += fmt.Sprintf("; the newest %d are under none yet", beyond)
	}
	if !t.Newest.IsZero() {
		text += "; the newest is of " + p.text(t.Newest)
	}
	return text + "."
}

func (r *Report) figures() []figure {
	t := r.Totals
	n := func(name string, value int, bad bool) figure {
		return figure{name, strconv.Itoa(value), bad && value > 0}
	}
	all := []figure{
		n("credentials configured", t.Configured, false), n("in time at the end", t.InTime, false), n("overdue at the end", t.Overdue, true),
		n("older than their policy within the period", t.Exceeded, true), n("without an interval", t.NoInterval, true),
		n("not adopted", t.NotAdopted, true), n("not in force", t.NotInForce, true),
		n("running before", t.RunningBefore, false), n("requested", t.Requested, false),
	}
	for _, e := range t.Ended {
		all = append(all, n(e.Kind+" "+e.Outcome, e.Count, false))
	}
	return append(all, n("running at the end", t.RunningAtEnd, false), n("emergencies and locks", t.Emergencies, false), n("exceptions listed", len(r.Exceptions), false))
}

func (r *Report) mapping() section {
	s := section{ID: "framework", Title: "What this has to do with " + r.Framework.Title, Columns: []string{"theme", "about", "shown here", "not shown here"},
		Notes: []string{r.Framework.Intervals, nistOnIntervals, "The themes are named in our words; the framework's own text is what counts."}}
	for _, t := range r.Framework.Themes {
		s.add(false, t.Reference, t.About, t.Shown, t.Missing)
	}
	return s
}

func (r *Report) coverage() section {
	s := section{ID: "coverage", Title: "Coverage", Empty: "pawl.yaml has no credentials.",
		Columns: []string{"credential", "environment", "cluster", "role", "strategy", "interval", "configured", "state", "password since", "age", "due", "made by", "older than its policy", "evidence"},
		Notes:   []string{"Each credential of pawl.yaml at the end of the period. The age counts from when the rotation that made the password was completed, or an adoption took it over. A credential is overdue when its password in force is older than the interval; a rotation that has not completed does not end that."}}
	for _, c := range r.Coverage {
		interval, since, due := "", "", ""
		if c.Interval > 0 {
			interval = span(c.Interval)
		}
		if c.Since != nil {
			since = r.Period.text(*c.Since)
		}
		if c.Due != nil {
			due = r.Period.text(*c.Due)
		}
		age := ""
		if c.Since != nil {
			age = span(c.Age)
		}
		var exceeded []string
		for _, x := range c.Exceeded {
			exceeded = append(exceeded, r.Period.text(x.Begin)+" to "+r.Period.text(x.End)+" ("+span(x.End.Sub(x.Begin))+")")
		}
		s.add(c.State != StateInTime || len(exceeded) > 0, c.Credential, c.Environment, c.Cluster, c.Role, c.Strategy, interval, c.Policy, c.State,
			since, age, due, strings.TrimSpace(c.Kind+" "+c.By), strings.Join(exceeded, "; "), references(c.Evidence))
	}
	return s
}

func (r *Report) rotations() section {
	s := section{ID: "rotations", Title: "Rotations", Empty: "None was under way within the period.",
		Columns: []string{"credential", "rotation", "kind", "flow", "requested", "by (as claimed)", "authenticated as", "reason", "outcome", "ended", "took", "failure", "trace", "evidence"},
		Notes:   []string{"All of which any part lies within the period. A rotation is counted as requested where it was requested within, and under its outcome where it ended within. The outcome of a rollback that did what was asked is rolled-back."}}
	for _, o := range r.Rotations {
		ended := ""
		if o.Ended != nil {
			ended = r.Period.text(*o.Ended)
		}
		s.add(o.Failure != "", o.Credential, o.ID, o.Kind, o.Flow, r.Period.text(o.Requested), o.RequestedBy, o.AuthenticatedAs, o.Reason, o.Outcome,
			ended, optional(o.Took), o.Failure, o.TraceID, references(o.Evidence))
	}
	return s
}

func (r *Report) exceptions() section {
	s := section{ID: "exceptions", Title: "Exceptions", Empty: "None.",
		Columns: []string{"when", "credential", "rotation", "what", "why", "by (as claimed)", "times", "evidence"},
		Notes:   []string{"First what is so at the end of the period, then what happened within it. An interval longer than the guide's is named as it was configured, and not judged."}}
	for _, e := range r.Exceptions {
		when := "at the end"
		if e.At != nil {
			when = r.Period.text(*e.At)
		}
		s.add(false, when, e.Credential, e.Rotation, e.What, e.Why, e.Actor, strconv.Itoa(e.Times), references(e.Evidence))
	}
	return s
}

func (r *Report) emergencies() section {
	s := section{ID: "emergencies", Title: "Emergencies", Empty: "None within the period.",
		Columns: []string{"credential", "rotation", "kind", "requested", "by (as claimed)", "reason", "time to contain", "time to recover", "until all nodes", "outcome", "what containing did", "evidence"},
		Notes:   []string{"Times are from when the bus stored the request. To contain: until every login in doubt was refused and its sessions ended on every node that could be reached. To recover: until the application was seen working on a new password. Until all nodes: until those that could not be reached before were contained, too."}}
	for _, e := range r.Emergencies {
		s.add(false, e.Credential, e.ID, e.Kind, r.Period.text(e.Requested), e.RequestedBy, e.Reason, optional(e.ToContain), optional(e.ToRecover), optional(e.ToRelease),
			e.Outcome, e.Did, references(e.Evidence))
	}
	return s
}

func (r *Report) users() section {
	s := section{ID: "bus", Title: "Access to the bus", Columns: []string{"user", "may publish", "sealed credentials"},
		Notes: []string{"By the table of this version of Pawl, from which the server's permissions are generated. pawl.request.* asks for rotations, pawl.emergency.* cuts a login off, pawl.audit.> is the trail. Each user has a key of its own in keys_dir or beside the data; who may read those files is for the machine to say."}}
	for _, u := range r.Users {
		s.add(false, u.Name, strings.Join(u.Publish, ", "), strings.Join(u.Sealed, ", "))
	}
	return s
}

func (r *Report) recipients() section {
	s := section{ID: "sealed", Title: "Access to sealed credentials", Empty: "No opening of a sealed credential is recorded within the period.",
		Columns: []string{"credential", "opened by", "notes", "first", "last", "evidence"},
		Notes:   []string{"A password is sealed once for each of db-rotator, secret-publisher and verifier; nobody else has a key that opens one. Each process notes, before it acts on it, that it has opened what a rotation sealed, once for each rotation."}}
	for _, a := range r.Recipients {
		s.add(false, a.Credential, a.Service, strconv.Itoa(a.Times), r.Period.text(a.First), r.Period.text(a.Last), references(a.Evidence))
	}
	return s
}

func (r *Report) members() section {
	s := section{ID: "members", Title: "Who may use the database roles, as of now", Empty: "No server answered.",
		Columns: []string{"credential", "node", "found"},
		Notes:   []string{"Read by the verifier from the catalogue of each node at " + r.Period.text(r.Now.At) + "."}}
	r.found(&s, r.Now.Members)
	return s
}

func (r *Report) settings() section {
	s := section{ID: "servers", Title: "What the servers record, as of now", Empty: "No server answered.",
		Columns: []string{"credential", "node", "found"},
		Notes:   []string{"Read by the verifier from each node at " + r.Period.text(r.Now.At) + ", once for each node. Pawl's trail has the rotations; who logs in, and what is done then, only the servers can record."}}
	r.found(&s, r.Now.Settings)
	return s
}

// found lists what was answered, and who did not.
func (r *Report) found(s *section, all []Finding) {
	for _, f := range all {
		s.add(false, f.Credential, f.Node, f.Text)
	}
	for _, f := range r.Now.Silent {
		s.add(true, f.Credential, f.Node, "not asked: "+f.Text)
	}
}

func (r *Report) configuration() section {
	s := section{ID: "configuration", Title: "Configuration loaded", Empty: "No service noted one within the period.",
		Columns: []string{"when", "service", "noted", "evidence"},
		Notes:   []string{"This report measures against the digest " + r.Configuration.Digest + "."}}
	for _, l := range r.Configuration.Loaded {
		s.add(!strings.Contains(l.Text, r.Configuration.Digest), r.Period.text(l.At), l.Service, l.Text, l.Evidence.String())
	}
	return s
}

func (r *Report) records() section {
	s := section{ID: "records", Title: "Records of the period", Empty: "None.", Columns: []string{"stream", "service", "event or note", "records"},
		Notes: []string{"All of them, also those that no section above lists."}}
	for _, k := range r.Records {
		s.add(false, k.Stream, k.Service, k.Event, strconv.Itoa(k.Count))
	}
	return s
}

func (r *Report) evidence() section {
	t := r.Trail
	s := section{ID: "evidence", Title: "Evidence", Columns: []string{"of the trail", ""},
		Notes: []string{"Evidence is named STREAM:SEQUENCE #INDEX: the place of the recorded message in its own stream, and of the record in the trail, from 0. `pawl audit verify --record STREAM:SEQUENCE` proves a record to be in the trail; `pawl audit verify` proves the whole trail against its checkpoints."}}
	s.add(t.Fault != "", "verified", cmp.Or(t.Fault, "yes"))
	s.add(false, "checkpoint of", t.Origin)
	s.add(false, "records under it", strconv.FormatInt(t.Size, 10))
	s.add(false, "root hash", t.Root)
	s.add(false, "signed by", t.Key)
	s.add(false, "records read", strconv.FormatInt(t.Records, 10))
	return s
}

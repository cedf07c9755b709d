package incident

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

var update = flag.Bool("update", false, "rewrite testdata")

var noon = time.Date(2026, 7, 26, 12, 0, 0, 0, time.UTC)

// hostile is what a thief may call a role, an application or a table.
const hostile = "</td><script>alert(1)</script>|\n# `x` **[a](javascript:b)** <img src=x onerror=y> \u202eevil \x1b[31m http://evil.example & 'q' \"Q\""

func after(d time.Duration) time.Time { return noon.Add(d) }

// theft is an emergency with a node that was away, over or not.
func theft(over bool, why string) Sources {
	log := bus.Log{Credential: "ruvector-app", Rotation: "20260726-120000-abcde"}
	add := func(e saga.Event, at time.Duration, body *pawlv1.Event) {
		body.StartedAt = timestamppb.New(after(at - 5*time.Millisecond))
		log.Records = append(log.Records, bus.Record{Entry: saga.Entry{Event: e, Seq: uint64(len(log.Records) + 1), At: after(at)},
			Header: nats.Header{"traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}, Body: body})
	}
	add(saga.Requested, 0, &pawlv1.Event{Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Action: pawlv1.Action_ACTION_CONTAIN, Flow: saga.Emergency, Generation: 8,
		Reason: why, RequestedBy: "anna@laptop", Role: "dpg_cluster", Supersedes: "20260726-115900-zzzzz"}}})
	add(saga.Contained, 140*time.Millisecond, &pawlv1.Event{Summary: "dpg_cluster and dpg_cluster_b refused on coordinator, replica-1, 3 sessions ended", Detail: &pawlv1.Event_Contained{Contained: &pawlv1.Contained{
		Logins: []string{"dpg_cluster", "dpg_cluster_b"}, Returns: "dpg_cluster_b", Clean: true, Sessions: 3, Prepared: 1,
		At:      map[string]*timestamppb.Timestamp{"coordinator": timestamppb.New(after(120 * time.Millisecond)), "replica-1": timestamppb.New(after(130 * time.Millisecond))},
		Pending: map[string]string{"worker-1": "connection refused"}}}})
	add(saga.Staged, 160*time.Millisecond, &pawlv1.Event{Summary: `"dpg_cluster_b" carries the new password`, Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: "dpg_cluster_b"}}})
	add(saga.Published, 170*time.Millisecond, &pawlv1.Event{Summary: "1 sink written", Warnings: []string{"the mode of .env was 0644"}})
	add(saga.Restarted, 400*time.Millisecond, &pawlv1.Event{})
	add(saga.Verified, 450*time.Millisecond, &pawlv1.Event{})
	if over {
		add(saga.Released, 61*time.Second, &pawlv1.Event{Summary: "nobody can come in with what was stolen"})
		add(saga.Confirmed, 61100*time.Millisecond, &pawlv1.Event{})
		add(saga.Completed, 61110*time.Millisecond, &pawlv1.Event{})
	}
	note := func(at time.Duration, kind, text string) bus.Entry {
		return bus.Entry{At: after(at), Credential: log.Credential, Rotation: log.Rotation, Service: saga.DBRotator, Note: &pawlv1.Note{Kind: kind, Credential: log.Credential, Rotation: log.Rotation, Step: "release", Text: text}}
	}
	alert := func(source string, labels map[string]string) client.Alert {
		return client.Alert{At: after(-time.Minute), Source: source, Alert: &pawlv1.Alert{Fingerprint: "f", StartsAt: timestamppb.New(after(-2 * time.Minute)), Labels: labels, Annotations: map[string]string{"count": "12"}}}
	}
	cluster := &inventory.Cluster{Name: "ruvector"}
	return Sources{Log: log, Now: after(2 * time.Minute), Credential: &inventory.Credential{Name: log.Credential, Cluster: cluster, Role: "dpg_cluster"},
		Inventory: &inventory.Inventory{Contacts: map[string]string{"on_call": "devops-oncall@example.org"}, Telemetry: inventory.Telemetry{Jaeger: "http://127.0.0.1:16686"}},
		Notes:     []bus.Entry{note(200*time.Millisecond, "evidence", "kept, sealed, of coordinator, replica-1"), note(2*time.Second, "waiting", "not contained yet: worker-1 (connection refused)")},
		Alerts: []client.Alert{
			alert("alertmanager", map[string]string{"alertname": "CredentialLeaked", "cluster": "ruvector", "pg_role": "dpg_cluster"}),
			alert("logins", map[string]string{"alertname": "FailedLogins", "cluster": "ruvector", "pg_role": "dpg_cluster_b", "address": "203.0.113.7"}),
			alert("alertmanager", map[string]string{"alertname": "OfAnother", "cluster": "ruvector", "pg_role": "somebody"}),
			alert("logins", map[string]string{"alertname": "OfAnotherCluster", "cluster": "other", "pg_role": "dpg_cluster"}),
		},
		Alarms: []*pawlv1.Alarm{
			{Source: "alertmanager", Sequence: 1, Rotation: log.Rotation},
			{Source: "alertmanager", Sequence: 2, Rotation: "another"},
			{Source: "logins", Sequence: 4, Guard: "mapping"},
		}}
}

func withEvidence(s Sources, name string) Sources {
	row := make([]string, len(postgres.EndedColumns))
	for i := range row {
		row[i] = "-"
	}
	row[1], row[2], row[3], row[11] = "dpg_cluster", name, "203.0.113.7", "SELECT * FROM "+name
	s.Evidence = []evidence.Snapshot{
		{Credential: "ruvector-app", Node: "coordinator", Kind: evidence.Sessions, At: after(100 * time.Millisecond), Tables: []postgres.Table{{Name: "sessions", Columns: postgres.EndedColumns, Rows: [][]string{row}, Left: 2}}},
		{Credential: "ruvector-app", Node: "replica-1", Kind: evidence.Sessions, At: after(100 * time.Millisecond), Tables: []postgres.Table{{Name: "sessions", Columns: postgres.EndedColumns}}},
		{Credential: "ruvector-app", Node: "coordinator", Kind: evidence.Catalogue, At: after(300 * time.Millisecond), Tables: []postgres.Table{
			{Name: "memberships", Columns: []string{"member", "acts as"}, Rows: [][]string{{name, "dpg_cluster"}}},
			{Name: "statements", Unread: "pg_stat_statements is in none of the databases that were looked at"},
			{Name: "SECURITY DEFINER functions owned", Database: "ruvector", Columns: []string{"function", "language", "to remove"}, Rows: [][]string{{name + "()", "plpgsql", "DROP FUNCTION public.\"``` " + name + "\"()"}}},
		}},
	}
	return s
}

func report(t *testing.T, s Sources) *Report {
	t.Helper()
	r, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func written(t *testing.T, write func(io.Writer) error) string {
	t.Helper()
	var out bytes.Buffer
	if err := write(&out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestReportsReadAsBefore(t *testing.T) {
	sealed := theft(false, "found in a public repository")
	sealed.Sealed = "The evidence stays sealed (4 pieces): run this where /etc/pawl/keys/sealing/incident.agekey is."
	for name, s := range map[string]Sources{"over": withEvidence(theft(true, "found in a public repository"), "psql"), "running": sealed} {
		r := report(t, s)
		for ending, write := range map[string]func(io.Writer) error{"md": r.Markdown, "html": r.HTML} {
			path, got := filepath.Join("testdata", name+"."+ending), written(t, write)
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil || got != string(want) {
				t.Errorf("%s is another than before (%v); look at it, then run with -update", path, err)
			}
		}
	}
}

func TestAlertThatBeganItIsNamed(t *testing.T) {
	s := theft(false, "alert")
	for i := range s.Alerts {
		s.Alerts[i].Sequence = uint64(i + 1)
	}
	r := report(t, s)
	if !r.Alerts[0].Began || r.FailedLogins[0].Began || strings.Count(written(t, r.Markdown), "(began this)") != 1 || strings.Count(written(t, r.HTML), "(began this)") != 1 {
		t.Errorf("alerts %+v, failed logins %+v; the first alert alone began it", r.Alerts, r.FailedLogins)
	}
	s.Alerts[0].Alert.Labels = map[string]string{"team": "db"} // a rule may go by any labels
	if r := report(t, s); len(r.Alerts) != 1 || !r.Alerts[0].Began {
		t.Errorf("alerts %+v; want the one that began it, whatever its labels", r.Alerts)
	}
}

func TestReportTellsWhatIsNotOver(t *testing.T) {
	r := report(t, theft(false, "leak"))
	if r.Over || !strings.Contains(r.Status(), "worker-1 could not be reached") || r.SecondsToContain != 0.14 || r.SecondsToRecover != 0.45 {
		t.Errorf("over %v, %q, contained after %v s, recovered after %v s", r.Over, r.Status(), r.SecondsToContain, r.SecondsToRecover)
	}
	if len(r.Alerts) != 1 || len(r.FailedLogins) != 1 {
		t.Errorf("alerts %v and %v; want one of each, of this login alone", r.Alerts, r.FailedLogins)
	}
	s := theft(false, "leak")
	s.Log.Records = s.Log.Records[:1]
	if r := report(t, s); !strings.Contains(r.Status(), "may still work") || strings.Contains(written(t, r.Markdown), "contained after | 0") {
		t.Errorf("before it is contained: %q", r.Status())
	}
	if r := report(t, theft(true, "leak")); !r.Over || r.Servers[2].Later == nil {
		t.Errorf("over: %v, servers %v", r.Over, r.Servers)
	}
	s = theft(true, "leak")
	s.Log.Records = s.Log.Records[:1]
	s.Log.Records[0].Body.GetRequested().Flow = saga.Alternating
	if _, err := New(s); !errors.Is(err, ErrNoEmergency) || !strings.Contains(err.Error(), "pawl trace") {
		t.Errorf("of an ordinary rotation: %v", err)
	}
}

// What a thief chose the name of is text in every report, and nothing else.
func TestHostileNamesAreTextInEveryReport(t *testing.T) {
	s := withEvidence(theft(true, hostile), hostile)
	s.Log.Records[1].Body.Summary = hostile
	s.Notes[1].Note.Text, s.Notes[1].Note.Kind = hostile, hostile
	s.Alerts[0].Alert.Labels["x"] = hostile
	s.Inventory.Contacts[hostile] = hostile
	s.Evidence[2].Tables[1].Unread = hostile
	s.Evidence[2].Node, s.Evidence[2].Tables[2].Database = hostile, hostile
	r := report(t, s)
	page, doc := written(t, r.HTML), written(t, r.Markdown)
	block := regexp.MustCompile("(?s)\n````sql\n([^\n]*)\n````\n") // one statement, in which nothing means anything
	if code := block.FindStringSubmatch(doc); code == nil || !strings.Contains(code[1], "<script>") || strings.Contains(code[1], "````") {
		t.Errorf("the statement is not in a block of its own: %q", code)
	}
	doc = block.ReplaceAllString(doc, "")
	tags := regexp.MustCompile(`<[a-zA-Z/!][^>]*>`)
	harmless := written(t, report(t, withEvidence(theft(true, "x"), "x")).HTML)
	known := map[string]bool{}
	for _, tag := range tags.FindAllString(harmless, -1) {
		known[tag] = true
	}
	for _, tag := range tags.FindAllString(page, -1) {
		if !known[tag] {
			t.Errorf("the page has a tag of its thief's: %s", tag)
		}
	}
	for what, bad := range map[string]*regexp.Regexp{
		"a tag": regexp.MustCompile(`<[a-zA-Z/!]`), "a link": regexp.MustCompile(`[^\\]\]\(`), "a heading": regexp.MustCompile(`(?m)^# .x`), "code": regexp.MustCompile("[^\\\\]`x"), "an address that links itself": regexp.MustCompile(`http://evil`),
	} {
		if m := bad.FindString(doc); m != "" {
			t.Errorf("the Markdown has %s: %q", what, m)
		}
	}
	for _, line := range strings.Split(doc, "\n") {
		if bars := len(regexp.MustCompile(`(^|[^\\])\|`).FindAllString(line, -1)); strings.Contains(line, "alert") && strings.HasPrefix(line, "| ") && bars > 14 {
			t.Errorf("the thief has broken a row: %s", line)
		}
	}
	for _, mark := range []string{"\x1b", "\u202e"} {
		if strings.Contains(doc, mark) || strings.Contains(page, mark) {
			t.Errorf("%q is in a report", mark)
		}
	}
	var back Report
	raw, err := json.Marshal(r)
	if err == nil {
		err = json.Unmarshal(raw, &back)
	}
	if err != nil || back.Reason != hostile {
		t.Errorf("as JSON it is %q, %v", back.Reason, err)
	}
}

package command

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pawl.dev/cmd/pawl/internal/render"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const policies = `nats: {listen: %q}
environments:
  production: {rotate_every: 90d, windows: ["Sun 02:00-05:00 Europe/Berlin"]}
  staging: {rotate_every: 60d}
clusters:
  main: {environment: production, admin: {user: pawl_admin, password_file: admin}, nodes: {coordinator: {host: 127.0.0.1, port: 1}}}
  test: {environment: staging, admin: {user: pawl_admin, password_file: admin}, nodes: {coordinator: {host: 127.0.0.1, port: 1}}}
credentials:
  app:     {cluster: main, role: app, strategy: in-place, promotes: app-staging, within: 30d, publish: [dotenv: {path: a.env, password: A}]}
  app-staging: {cluster: test, role: app_staging, strategy: in-place, publish: [dotenv: {path: b.env, password: A}]}
  late:    {cluster: test, role: late, strategy: in-place, rotate_every: 12d, blackouts: ["%s..%s UTC"], publish: [dotenv: {path: c.env, password: A}]}
  one:     {cluster: test, role: one, strategy: in-place, group: shop, publish: [dotenv: {path: d.env, password: A}]}
  other:   {cluster: test, role: other, strategy: in-place, group: shop, publish: [dotenv: {path: e.env, password: A}]}
  stranger: {cluster: test, role: stranger, strategy: in-place, publish: [dotenv: {path: f.env, password: A}]}
`

// What policy will turn when is what people go by; so is why not, and what they
// may do about it.
func TestScheduleTellsWhenWhyAndWhyNot(t *testing.T) {
	s := newServer(t)
	day := func(n int) string { return time.Now().UTC().AddDate(0, 0, n).Format(time.DateOnly) }
	write(t, s.config, fmt.Sprintf(policies, s.inv.NATS.Listen, day(8), day(16)))
	for _, name := range []string{"app", "app-staging", "late", "one", "other"} {
		for _, e := range adoption {
			if err := s.eventOf(name, "r-"+name, e.event, e.body); err != nil {
				t.Fatal(err)
			}
		}
	}
	dues := decode[[]render.Due](t, first(s.want(exitDone, "schedule", "--days", "70", "--json")))
	found := map[string][]render.Due{}
	for i, d := range dues {
		found[d.Credential] = append(found[d.Credential], d)
		if i > 0 && d.At != nil && dues[i-1].At != nil && d.At.Before(*dues[i-1].At) {
			t.Errorf("%s is out of order", d.Credential)
		}
	}
	if got := found["stranger"]; len(got) != 1 || got[0].At != nil || got[0].Blocked != "stranger is not adopted" {
		t.Errorf("stranger: %+v", got)
	}
	if got := found["one"]; len(got) == 0 || strings.Join(got[0].Together, " ") != "one other" || found["other"] != nil {
		t.Errorf("one and other: %+v, %+v", got, found["other"])
	}
	if got := found["late"]; len(got) < 4 || got[0].Late || got[0].At.After(*got[0].Deadline) {
		t.Errorf("late: %+v", got)
	}
	if got := found["app-staging"]; len(got) == 0 || got[0].At.After(*got[0].Deadline) {
		t.Errorf("staging: %+v", got)
	}

	table, _ := s.want(exitDone, "schedule", "--days", "90")
	for _, want := range []string{"WHEN", "one + other", "blocked", "stranger is not adopted", " window "} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in:\n%s", want, table)
		}
	}
	if stdout, _ := s.want(exitDone, "schedule", "other", "--days", "70"); strings.Contains(stdout, "stranger") || !strings.Contains(stdout, "one + other") {
		t.Errorf("of a group's member:\n%s", stdout)
	}
	if stdout, stderr := s.want(exitDone, "schedule", "app", "--days", "3"); stdout != "" || !strings.Contains(stderr, "nothing is due within 3 days") {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	if stdout, _ := s.want(exitDone, "schedule", "app", "--days", "3", "--json"); stdout != "[]\n" {
		t.Errorf("stdout %q", stdout)
	}
	for _, wrong := range [][]string{{"nobody"}, {"--days", "0"}, {"--days", "3661"}, {"app", "other"}} {
		if stdout, stderr := s.want(exitUsage, append([]string{"schedule"}, wrong...)...); stdout != "" || stderr == "" {
			t.Errorf("%v: stdout %q, stderr %q", wrong, stdout, stderr)
		}
	}
}

// What a person turns while the schedule is shown is not there twice.
func TestScheduleTellsWhatStandsInTheWay(t *testing.T) {
	s := newServer(t)
	s.mustTell("r-1", adoption)
	s.mustTell("r-2", rotation[:3])
	dues := decode[[]render.Due](t, first(s.want(exitDone, "schedule", "--json")))
	if len(dues) != 1 || dues[0].Blocked != "a rotation of app is under way" || dues[0].At != nil {
		t.Errorf("%+v", dues)
	}
	for _, e := range rotation[3:] {
		if err := s.event("r-2", e.event, e.body); err != nil {
			t.Fatal(err)
		}
	}
	dues = decode[[]render.Due](t, first(s.want(exitDone, "schedule", "--json")))
	if len(dues) < 3 || dues[0].Blocked != "" || dues[0].Overdue || dues[0].At.After(*dues[0].Deadline) || dues[0].Why == "" {
		t.Errorf("%+v", dues)
	}
	s.mustTell("r-3", []told{{rotation[0].event, requested(pawlv1.Action_ACTION_ROTATE, "alternating", 3, "r-2")}, rotation[1], failing[2], failing[3], failing[4], failing[5]})
	if again := decode[[]render.Due](t, first(s.want(exitDone, "schedule", "--json"))); len(again) < 3 || !again[0].At.Equal(*dues[0].At) {
		t.Errorf("after one that was rolled back: %+v; before: %+v", again, dues)
	}
}

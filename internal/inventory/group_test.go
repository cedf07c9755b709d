package inventory

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// grouped is a file with two credentials of the group shop, and one of none.
// OTHER is what b says of the consumer that they share.
const grouped = `clusters: {main: {admin: {user: pawl_admin, password_file: secrets/admin}, nodes: {primary: {host: h}}}}
credentials:
  a: {cluster: main, role: a, strategy: in-place, group: shop, publish: [file: {path: a, format: json}],
    consumers: [{name: api, restart: {command: [reload, api]}, health: {http: "http://h/a"}}]}
  b: {cluster: main, role: b, strategy: in-place, group: shop, publish: [file: {path: b, format: json}],
    consumers: [{name: jobs}, OTHER]}
  c: {cluster: main, role: c, strategy: in-place, publish: [file: {path: c, format: json}],
    consumers: [{name: api}]}
`

func TestSharedConsumerIsDescribedAlike(t *testing.T) {
	const same = `restart: {command: [reload, api]}, health: {http: "http://h/a"}`
	for other, want := range map[string]string{
		"{name: api, " + same + "}":                                        "",
		"{name: api, application_name: api-b, instances: 3, " + same + "}": "",
		"{name: other}": "",
		"{name: api}":   "for a and b",
		`{name: api, restart: {command: [reload, b]}, health: {http: "http://h/a"}}`:                 "for a and b",
		`{name: api, restart: {command: [reload, api]}, health: {http: "http://h/a", timeout: 31s}}`: "for a and b",
		`{name: api, restart: {http: {url: "http://h/restart"}}, health: {http: "http://h/a"}}`:      "for a and b",
	} {
		inv, err := load(t, strings.Replace(grouped, "OTHER", other, 1))
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", other, err)
			} else if got := inv.Together(inv.Credentials["b"]); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("b turns with %v", got)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), ":6: credentials.b.consumers: consumer api is restarted once "+want) || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestWhoHasASharedConsumer(t *testing.T) {
	inv, err := load(t, strings.Replace(grouped, "OTHER", "{name: other}", 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		consumer string
		members  []string
		want     string
	}{{"api", []string{"a", "b", "c", "gone"}, "[a c]"}, {"jobs", []string{"a", "b"}, "[b]"}, {"none", []string{"a"}, "[]"}} {
		if got := fmt.Sprint(inv.Sharing(c.consumer, c.members)); got != c.want {
			t.Errorf("%s is of %s, want %s", c.consumer, got, c.want)
		}
	}
	if err := inv.CanTurnTogether([]string{"a", "c"}); err == nil || !strings.Contains(err.Error(), "for a and c") {
		t.Errorf("ad hoc: %v", err)
	}
}

func TestGroupIsNotTooLarge(t *testing.T) {
	text, _, _ := strings.Cut(grouped, "  a: ")
	for i := range MaxTogether + 1 {
		text += fmt.Sprintf("  m-%[1]d: {cluster: main, role: r%[1]d, strategy: in-place, group: many, publish: [file: {path: f%[1]d, format: json}]}\n", i)
		_, err := load(t, text)
		if i < MaxTogether && err != nil || i == MaxTogether && (err == nil || !strings.Contains(err.Error(), "many has 65 credentials: at most 64")) {
			t.Fatalf("%d: %v", i+1, err)
		}
	}
}

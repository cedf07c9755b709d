package inventory

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var example = regexp.MustCompile(`(?m)^#(  )`)

func uncomment(text string) string { return example.ReplaceAllString(text, "$1") }

func TestTemplateLoadsAsItIs(t *testing.T) {
	inv, err := load(t, Template())
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Credentials) != 0 || len(inv.Environments) != 3 || len(inv.Warnings) != 0 {
		t.Errorf("got %+v", inv)
	}
}

func TestTemplateLoadsWithItsExample(t *testing.T) {
	inv, err := load(t, uncomment(Template()))
	if err != nil {
		t.Fatal(err)
	}
	if c := inv.Credentials["app"]; c == nil || c.Strategy != Alternating || len(c.Consumers) != 1 || len(c.Verify) != 2 {
		t.Errorf("got %+v", inv.Credentials)
	}
}

func TestAddMissingKeepsEveryByteThatStoodThere(t *testing.T) {
	all := []string{"nats", "data_dir", "keys_dir", "telemetry", "contacts", "environments", "clusters", "credentials", "alerts", "backup"}
	for _, c := range []struct {
		name, text string
		added      []string
	}{
		{"empty", "", all},
		{"only comments", "# mine\n", all},
		{"without a final newline", "contacts: {on_call: me}", slices.DeleteFunc(slices.Clone(all), func(k string) bool { return k == "contacts" })},
		{"complete", Template(), nil},
		{"CRLF", strings.ReplaceAll(valid, "\n", "\r\n"), []string{"nats", "telemetry", "contacts", "alerts", "backup"}},
		{"odd but valid", "  # mine\n'nats':   {}   # here\n\n\n", all[1:]},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, added, err := AddMissing([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(out), c.text) || !slices.Equal(added, c.added) {
				t.Errorf("added %q to\n%s", added, out)
			}
			if strings.Contains(c.text, "\r\n") && strings.Count(string(out), "\n") != strings.Count(string(out), "\r\n") {
				t.Errorf("line ends are mixed:\n%q", out)
			}
			if _, err := load(t, string(out)); err != nil {
				t.Error(err)
			}
			again, more, err := AddMissing(out)
			if err != nil || len(more) != 0 || string(again) != string(out) {
				t.Errorf("a second time: added %q, %v", more, err)
			}
		})
	}
}

func TestAddMissingRefusesWhatItWouldChange(t *testing.T) {
	for name, text := range map[string]string{
		"braces around the whole":             "{nats: {}}\n",
		"all of it indented":                  "  nats: {}\n  data_dir: x\n",
		"a block scalar that keeps its blank": "contacts:\n  a: |+\n    text\n",
		"an ended document":                   "nats: {}\n...\n",
		"not YAML":                            "nats: [\n",
		"a list":                              "- a\n",
		"a key twice":                         "nats: {}\nnats: {}\n",
	} {
		t.Run(name, func(t *testing.T) {
			if out, added, err := AddMissing([]byte(text)); err == nil {
				t.Errorf("added %q:\n%s", added, out)
			}
		})
	}
}

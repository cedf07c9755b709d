package telemetry

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"pawl.dev/internal/saga"
)

const root = "../.."

// instrument is where a metric is made: its kind, its name, and its unit.
var instrument = regexp.MustCompile(`\.(Int64|Float64)(Observable)?(Counter|Gauge|Histogram|UpDownCounter)\("(pawl_[a-z_]+)"(.*)`)

// measured returns every metric of Pawl's by the name that Prometheus sees.
func measured(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range instrument.FindAllStringSubmatch(string(source), -1) {
			name := m[4]
			if strings.Contains(m[5], `WithUnit("s")`) {
				name += "_seconds"
			}
			switch m[3] {
			case "Counter":
				name += "_total"
			case "Histogram":
				names[name+"_bucket"], names[name+"_count"], names[name+"_sum"] = true, true, true
			}
			names[name] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// Each alert is about something that is measured, and tells what to do.
func TestRulesNameMetricsAndRunbooksThatExist(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "deploy/prometheus/pawl.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Expr        string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	known, rules := measured(t), 0
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			rules++
			used := regexp.MustCompile(`pawl_[a-z_]+`).FindAllString(rule.Expr, -1)
			if len(used) == 0 {
				t.Errorf("%s: %s names no metric", rule.Alert, rule.Expr)
			}
			for _, name := range used {
				if !known[name] {
					t.Errorf("%s: nothing measures %s", rule.Alert, name)
				}
			}
			if _, err := os.Stat(filepath.Join(root, rule.Annotations["runbook_url"])); err != nil || !strings.HasPrefix(rule.Annotations["runbook_url"], "docs/runbooks/") {
				t.Errorf("%s: its runbook is %q: %v", rule.Alert, rule.Annotations["runbook_url"], err)
			}
			if rule.Alert == "" || rule.Annotations["summary"] == "" || rule.Labels["severity"] == "" {
				t.Errorf("%+v lacks a name, a summary or a severity", rule)
			}
		}
	}
	if rules < 9 {
		t.Errorf("%d rules", rules)
	}
}

// A condition with an alert of its own is not told by the alerts for the others, too.
func TestConditionIsAlertedOnce(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "deploy/prometheus/pawl.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	exprs := regexp.MustCompile(`expr: .*pawl_condition\{.*`).FindAllString(string(raw), -1)
	left := func(severity string) string {
		m := regexp.MustCompile(`severity="` + severity + `",condition!~"([^"]+)"`).FindStringSubmatch(string(raw))
		if m == nil {
			t.Fatalf("no alert for the other conditions that are a %s", severity)
		}
		return "|" + m[1] + "|"
	}
	for _, expr := range exprs {
		m := regexp.MustCompile(`condition=~?"([^"]+)"`).FindStringSubmatch(expr)
		for _, severity := range []string{"failing", "warning"} {
			if m == nil || strings.Contains(expr, "severity=") && !strings.Contains(expr, severity) {
				continue
			}
			for name := range strings.SplitSeq(m[1], "|") {
				if !strings.Contains(left(severity), "|"+name+"|") {
					t.Errorf("%s: the alert for other conditions that are %s does not leave %s out", expr, severity, name)
				}
			}
		}
	}
	if len(exprs) < 7 {
		t.Errorf("%d alerts", len(exprs))
	}
}

// A service that is not there measures nothing: its name has to be in the rule.
func TestEveryServiceThatIsMissingIsToldOf(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "deploy/prometheus/pawl.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range saga.Services {
		if !strings.Contains(string(raw), `absent(pawl_service{service="`+service+`"})`) {
			t.Errorf("no rule tells that the %s is missing", service)
		}
	}
}

// Each panel of the dashboard shows something that is measured.
func TestDashboardNamesMetricsThatExist(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "deploy/grafana/pawl.json"))
	if err != nil {
		t.Fatal(err)
	}
	known, used := measured(t), regexp.MustCompile(`pawl_[a-z_]+`).FindAllString(string(raw), -1)
	for _, name := range used {
		if !known[name] {
			t.Errorf("nothing measures %s", name)
		}
	}
	if len(used) < 20 {
		t.Errorf("%d metrics", len(used))
	}
}

package compose

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/internal/saga"
)

// Queries of the dashboard that find nothing in this stack, with the reason.
var emptyHere = map[string]string{
	"pawl_login_failures_total": "no `pawl watch-logins` runs beside the demo's servers",
	"pawl_schedule_turns_total": "nothing is due within the minutes of a test",
}

// checkMetrics has Prometheus scrape all six, and answer every query of the
// dashboard: a panel that shows nothing hides what it was made for.
func (s *stack) checkMetrics(t *testing.T) {
	api := "http://" + s.address("prometheus", "9090") + "/api/v1/query?"
	ask := func(expression string, least int) {
		t.Helper()
		var answer struct{ Data struct{ Result []any } }
		s.get(api+url.Values{"query": {expression}}.Encode(), &answer, func() bool { return len(answer.Data.Result) >= least })
	}
	ask(`up{job="pawl"} == 1`, len(saga.Services))
	ask(`sum by (outcome) (pawl_rotations_total{outcome="completed"}) >= 2`, 1)
	for _, expression := range dashboard(t) {
		why := ""
		for metric, reason := range emptyHere {
			if strings.Contains(expression, metric) {
				why = reason
			}
		}
		if why == "" {
			ask(strings.ReplaceAll(expression, "$__rate_interval", "5m"), 1)
		}
	}
}

// dashboard returns every query of deploy/grafana/pawl.json.
func dashboard(t *testing.T) (expressions []string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "deploy/grafana/pawl.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		t.Fatal(err)
	}
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			expressions = append(expressions, target.Expr)
		}
	}
	if len(expressions) < 20 {
		t.Fatalf("the dashboard has %d queries", len(expressions))
	}
	return expressions
}

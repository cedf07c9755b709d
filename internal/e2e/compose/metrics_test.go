package compose

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"pawl.dev/internal/saga"
)

// Queries of the dashboard that find nothing in this stack, with the reason.
var emptyHere = map[string]string{
	"pawl_login_failures_total": "no `pawl watch-logins` runs beside the demo's servers",
	"pawl_condition":            "nothing is wrong here, until checkMissing stops a service",
	"pawl_schedule_turns_total": "nothing is due within the minutes of a test",
}

// checkMetrics has Prometheus answer every query of the dashboard: a panel that
// shows nothing hides what it was made for.
func (s *stack) checkMetrics() {
	s.t.Helper()
	s.ask(`sum by (outcome) (pawl_rotations_total{outcome="completed"}) >= 2`, 1)
	for _, expression := range s.dashboard() {
		why := ""
		for metric, reason := range emptyHere {
			if strings.Contains(expression, metric) {
				why = reason
			}
		}
		if why == "" {
			s.ask(strings.ReplaceAll(expression, "$__rate_interval", "5m"), 1)
		}
	}
}

// checkMissing has Prometheus know every service by the name that its rule looks for,
// and miss one that is stopped.
func (s *stack) checkMissing() {
	s.t.Helper()
	for _, service := range saga.Services {
		s.ask(`pawl_service{service="`+service+`"} == 1`, 1)
	}
	s.docker("stop", s.container(saga.Auditor))
	s.ask(`absent(pawl_service{service="`+saga.Auditor+`"})`, 1)
	s.ask(`pawl_condition{condition="service",object="`+saga.Auditor+`"} == 1`, 1)
}

// ask queries Prometheus until the result has that many parts.
func (s *stack) ask(expression string, least int) {
	s.t.Helper()
	var answer struct{ Data struct{ Result []any } }
	s.get("http://"+s.address("prometheus", "9090")+"/api/v1/query?"+url.Values{"query": {expression}}.Encode(), &answer, func() bool { return len(answer.Data.Result) >= least })
}

// dashboard returns every query of deploy/grafana/pawl.json.
func (s *stack) dashboard() (expressions []string) {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(Root(), "deploy/grafana/pawl.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		s.t.Fatal(err)
	}
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			expressions = append(expressions, target.Expr)
		}
	}
	if len(expressions) < 20 {
		s.t.Fatalf("the dashboard has %d queries", len(expressions))
	}
	return expressions
}

package incident

import (
	"fmt"
	"slices"
	"strings"

	"pawl.dev/internal/evidence"
	"pawl.dev/internal/postgres"
)

// Check is something that only a person can look at.
type Check struct {
	What  string   `json:"what"`
	How   string   `json:"how"`
	Found []string `json:"found,omitempty"` // by the evidence: where to begin
}

// checks is the list, with what the evidence found for each.
func (r *Report) checks() []Check {
	return []Check{
		{What: "Network", How: "Should the addresses below have been let in? Narrow pg_hba.conf, firewalls and allow-lists.", Found: r.clients()},
		{What: "Where it was stolen from", How: "Repositories, CI logs, images, laptops, tickets: the next password will lie there too."},
		{What: "People", How: "Who had access to it? Their second factors, tokens and sessions elsewhere."},
		{What: "Members", How: "Who may act as the stolen role keeps a login of his own: revoke what should not be. Roles that it is a member of could be used, too, and it may have created some.", Found: r.rows("memberships", "roles created or administered")},
		{What: "What was done", How: "Statements and objects below; then the rows themselves, from the application's own records.", Found: r.rows("statements", "objects owned")},
		{What: "Doors in the database", How: "Functions, triggers, rules, default privileges, foreign servers, user mappings: the evidence has the statement that removes each. Pawl runs none of them.",
			Found: r.rows("SECURITY DEFINER functions owned", "triggers, rules and policies", "event triggers of anybody", "settings", "default privileges", "foreign servers owned", "user mappings", "functions and views that may connect elsewhere")},
		{What: "Streams out of it", How: "Replication slots stay and send; subscriptions and publications, too. Drop what nobody knows.", Found: r.rows("replication slots of anybody", "subscriptions of anybody")},
		{What: "Scheduled work", How: "pg_cron's cron.job, and crontabs and timers of hosts that had the password.", Found: r.rows("pg_cron jobs")},
		{What: "Copies downstream", How: "Dumps, exports, logical subscribers, warehouses, caches: what the role could read may lie there."},
		{What: "Old versions", How: "Backups of .env files, and Swarm or Helm rollbacks, bring the dead password back, and with it an outage: nobody must restore one."},
	}
}

// clients are the addresses that sessions came from.
func (r *Report) clients() (found []string) {
	r.each("sessions", func(s evidence.Snapshot, t postgres.Table) {
		at := slices.Index(t.Columns, "client")
		for _, row := range t.Rows {
			if at >= 0 && at < len(row) {
				found = append(found, row[at])
			}
		}
	})
	for _, a := range r.FailedLogins {
		if address := a.Labels["address"]; address != "" {
			found = append(found, address)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// rows counts what the evidence holds of the tables.
func (r *Report) rows(names ...string) (found []string) {
	for _, name := range names {
		count := map[string]int{}
		var nodes []string
		r.each(name, func(s evidence.Snapshot, t postgres.Table) {
			if n := len(t.Rows) + t.Left; n > count[s.Node] {
				if count[s.Node] == 0 {
					nodes = append(nodes, s.Node)
				}
				count[s.Node] = n
			}
		})
		slices.Sort(nodes)
		for i, node := range nodes {
			nodes[i] = fmt.Sprintf("%d on %s", count[node], node)
		}
		if len(nodes) > 0 {
			found = append(found, name+": "+strings.Join(nodes, ", "))
		}
	}
	return found
}

func (r *Report) each(name string, do func(evidence.Snapshot, postgres.Table)) {
	for _, s := range r.Evidence {
		for _, t := range s.Tables {
			if t.Name == name {
				do(s, t)
			}
		}
	}
}

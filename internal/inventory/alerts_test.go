package inventory

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// alarmed is a file with the alerts that %s stands for, from line 10 on.
const alarmed = `clusters:
  main: {admin: {user: pawl_admin, password_file: secrets/admin}, nodes: {one: {host: h}, two: {host: i}}}
  other: {admin: {user: pawl_admin, password_file: secrets/other}, nodes: {three: {host: j}}}
credentials:
  app: {cluster: main, role: app, strategy: alternating, publish: [file: {path: a, format: json}]}
  w-1: {cluster: main, nodes: [one], role: worker, strategy: in-place, publish: [file: {path: b, format: json}]}
  w-2: {cluster: main, nodes: [two], role: worker, strategy: in-place, publish: [file: {path: c, format: json}]}
  far: {cluster: other, role: app, strategy: in-place, publish: [file: {path: d, format: json}]}
alerts:
%s
`

func withAlerts(lines ...string) string {
	return fmt.Sprintf(alarmed, "  "+strings.Join(lines, "\n  "))
}

const (
	listening = `listen: "127.0.0.1:9465"`
	receiving = "receivers: {am: {kind: alertmanager, token_file: secrets/am}}"
	leaked    = "{match: {alertname: Leaked, cluster: main, pg_role: app}, credential: app}"
)

func TestEachFaultOfAlertsNamesTheFieldAndTheFix(t *testing.T) {
	rule := func(rules ...string) []string { return []string{"rules: [" + strings.Join(rules, ", ") + "]"} }
	for _, c := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"an unknown key", []string{"cool_down: 1h"}, `10: alerts.cool_down: unknown key "cool_down": the nearest known key is "cooldown" (known here: listen, tls, receivers, rules, cooldown, storm, grace, dry_run)`},
		{"a cool-down that is none", []string{"cooldown: 0s"}, `10: alerts.cooldown: "0s" is too short: at least 1m0s`},
		{"a storm of nothing", []string{"storm: {credentials: 0}"}, `10: alerts.storm.credentials: "0" must be a whole number from 1 to 1000`},
		{"a negative grace", []string{"grace: -5m"}, `10: alerts.grace: the duration "-5m" is negative: write 0 or more`},
		{"perhaps a dry run", []string{"dry_run: maybe"}, `10: alerts.dry_run: "maybe" must be true or false`},
		// Receivers.
		{"receivers on no address", []string{receiving}, `9: alerts.listen: is missing: the receivers are paths of it: write an address, such as "127.0.0.1:9465"`},
		{"an address for nobody", []string{listening}, "9: alerts.receivers: is missing: nobody could send an alert to listen: name one, such as alertmanager: {kind: alertmanager, token_file: secrets/alertmanager}"},
		{"an address for all", []string{`listen: "0.0.0.0:9465"`, receiving}, "9: alerts.tls: is missing: the address is not loopback's, and whoever listens on the way could send alerts: add {cert_file: …, key_file: …}, or listen on 127.0.0.1"},
		{"an address without a host", []string{`listen: ":9465"`, receiving}, `10: alerts.listen: must be host:port, such as "127.0.0.1:9465"`},
		{"a certificate without a key", []string{`listen: "0.0.0.0:9465"`, receiving, "tls: {cert_file: c}"}, "12: alerts.tls.key_file: is missing: the certificate's key, a PEM file"},
		{"a receiver for anybody", []string{listening, "receivers: {am: {kind: alertmanager}}"}, "11: alerts.receivers.am: is missing: how a sender proves who it is: add token_file, user and password_file, or hmac_file"},
		{"a receiver of no kind", []string{listening, "receivers: {am: {token_file: t}}"}, "11: alerts.receivers.am.kind: is missing: one of alertmanager, grafana"},
		{"a receiver of another kind", []string{listening, "receivers: {am: {kind: alertmanger, token_file: t}}"}, `11: alerts.receivers.am.kind: "alertmanger" is not known; the nearest is "alertmanager" (known here: alertmanager, grafana)`},
		{"two proofs", []string{listening, "receivers: {g: {kind: grafana, token_file: t, hmac_file: h}}"}, "11: alerts.receivers.g: has several proofs of who sends: keep one of token_file, password_file and hmac_file"},
		{"what Alertmanager cannot do", []string{listening, "receivers: {am: {kind: alertmanager, hmac_file: h}}"}, "11: alerts.receivers.am.hmac_file: Alertmanager signs nothing: use token_file, or user and password_file"},
		{"a password without a user", []string{listening, "receivers: {am: {kind: alertmanager, password_file: p}}"}, "11: alerts.receivers.am.user: is missing: the user name of Basic authentication"},
		{"a user without a password", []string{listening, "receivers: {am: {kind: alertmanager, token_file: p, user: u}}"}, "11: alerts.receivers.am.user: is of password_file alone: delete it, or add password_file"},
		{"a token in the file", []string{listening, "receivers: {am: {kind: alertmanager, secret: hunter2}}"}, "11: alerts.receivers.am.secret: passwords never stand in this file: use password_file or password_env"},
		{"a path that is no token", []string{listening, "receivers: {A/M: {kind: alertmanager, token_file: t}}"}, `11: alerts.receivers."A/M": the name "A/M" does not fit: 1 to 64 of a-z, 0-9 and -`},
		{"the login watcher's name", []string{listening, "receivers: {logins: {kind: alertmanager, token_file: t}}"}, "11: alerts.receivers.logins: is the source of `pawl watch-logins`: choose another name"},
		// Rules.
		{"a rule for nobody", rule("{match: {alertname: Leaked, cluster: main, pg_role: app}}"), "10: alerts.rules[0].credential: is missing: the credential that is cut off"},
		{"a rule for a stranger", rule("{match: {alertname: Leaked, cluster: main, pg_role: app}, credential: ap}"), `10: alerts.rules[0].credential: there is no credential "ap"; the nearest is "app"`},
		{"a rule without a match", rule("{credential: app}"), "10: alerts.rules[0].match: does not say which alertname: any alert about the login would cut it off: name the alert"},
		{"a rule for every alert", rule("{match: {cluster: main, pg_role: app}, credential: app}"), "10: alerts.rules[0].match: does not say which alertname: any alert about the login would cut it off: name the alert"},
		{"a rule for every cluster", rule("{match: {alertname: Leaked, pg_role: app}, credential: app}"), "10: alerts.rules[0].match: does not say which cluster: name the credential's own"},
		{"a rule for every role", rule("{match: {alertname: Leaked, cluster: main}, credential: app}"), "10: alerts.rules[0].match: does not say which pg_role: name the credential's own"},
		{"a rule with another cluster", rule("{match: {alertname: Leaked, cluster: other, pg_role: app}, credential: app}"), "10: alerts.rules[0].match.cluster: is not the cluster of app, which is main: name that one, or another credential"},
		{"a rule with another role", rule("{match: {alertname: Leaked, cluster: main, pg_role: worker}, credential: app}"), `10: alerts.rules[0].match.pg_role: is no login of app, whose role is "app": name that one, or another credential`},
		{"a rule with an empty label", rule(`{match: {alertname: "", cluster: main, pg_role: app}, credential: app}`), "10: alerts.rules[0].match.alertname: is empty: fill it in, or delete the line"},
		{"a rule that is a line", rule("app"), "10: alerts.rules[0]: must be a mapping, that is, lines of key: value"},
		{"a rule of a source that cannot be", rule("{match: {alertname: Leaked, cluster: main, pg_role: app}, credential: app, source: a.b}"), `10: alerts.rules[0].source: the name "a.b" does not fit: 1 to 64 of a-z, 0-9 and -`},
		{"a rule that waits", rule("{match: {alertname: Leaked, cluster: main, pg_role: app}, credential: app, during_rotation: wait}"), `10: alerts.rules[0].during_rotation: "wait" is not known; the nearest is "hold" (known here: hold, fire)`},
		{"rules that fight over an alert", rule("{match: {alertname: L, cluster: main, pg_role: worker, node: one}, credential: w-1}", "{match: {alertname: L, cluster: main, pg_role: worker}, credential: w-2}"), "10: alerts.rules[1]: matches alerts that rules[0] gives to w-1: add to both a label that tells the credentials apart, such as node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, withAlerts(c.lines...))
			if got := faults(t, err); len(got) < 1 || got[0] != c.want || len(got) > 1 && c.name != "a token in the file" {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
			if strings.Contains(err.Error(), "hunter") {
				t.Error("the error tells a password")
			}
		})
	}
}

func TestAlertsHaveDefaultsAndRulesAreExact(t *testing.T) {
	inv, err := load(t, withAlerts(listening, receiving, "rules:", "  - "+leaked,
		"  - {match: {alertname: FailedLogins, cluster: main, pg_role: worker, node: one}, credential: w-1, source: logins}",
		"  - {match: {alertname: FailedLogins, cluster: main, pg_role: worker, node: two}, credential: w-2, during_rotation: fire}"))
	if err != nil {
		t.Fatal(err)
	}
	a := inv.Alerts
	if a.Cooldown != time.Hour || a.Storm != (Storm{3, 10 * time.Minute}) || a.Grace != 5*time.Minute || a.DryRun || a.TLS != nil {
		t.Errorf("defaults: %+v", a)
	}
	for _, c := range []struct{ source, alert, cluster, role, node, want string }{
		{"am", "Leaked", "main", "app", "", "app"},
		{"am", "Leaked", "main", "app_b", "one", "app"}, // the credential's other login
		{"am", "Leaked", "main", "app_c", "", ""},
		{"am", "leaked", "main", "app", "", ""},
		{"am", "Leaked", "other", "app", "", ""},
		{"am", "Leaked", "", "app", "", ""},
		{"logins", "FailedLogins", "main", "worker", "one", "w-1"},
		{"am", "FailedLogins", "main", "worker", "one", ""}, // another source
		{"am", "FailedLogins", "main", "worker", "two", "w-2"},
		{"logins", "FailedLogins", "main", "worker", "", ""},
	} {
		r := a.RuleFor(c.source, map[string]string{"alertname": c.alert, "cluster": c.cluster, "pg_role": c.role, "node": c.node})
		if r == nil && c.want != "" || r != nil && r.Credential.Name != c.want {
			t.Errorf("%v: %v", c, r)
		}
	}
	if a.Rules[0].Holds("am") || !a.Rules[0].Holds(LoginWatch) || !a.Rules[1].Holds("logins") || a.Rules[2].Holds("logins") {
		t.Error("failed logins as the watcher tells them are held around rotations, unless the rule says otherwise")
	}
}

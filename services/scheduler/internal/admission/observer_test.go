package admission

import (
	"strings"
	"testing"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestNobodyAdoptsWhatNobodyLooksInto: a credential in a database that no observer
// looks into is not adopted, unless pawl.yaml says so; one that has been goes on.
func TestNobodyAdoptsWhatNobodyLooksInto(t *testing.T) {
	o := open(t, map[string]string{"new": "", "unobserved": "", "before": ""})
	inside := func(observed, none bool) *inventory.Cluster {
		c := &inventory.Cluster{Name: "main", Admin: inventory.Account{User: "pawl_admin", Database: "postgres"}, Unobserved: none}
		if c.Observer = c.Admin; observed {
			c.Observer.User = "pawl_observer"
		}
		return c
	}
	for name, cluster := range map[string]*inventory.Cluster{"new": inside(false, false), "unobserved": inside(false, true), "before": inside(true, false)} {
		o.inventory.Credentials[name].Cluster, o.inventory.Credentials[name].Database = cluster, "shop"
	}
	o.adopts("unobserved", "before")
	o.inventory.Credentials["before"].Cluster = inside(false, false) // of a version that asked for none
	for _, action := range []pawlv1.Action{pawlv1.Action_ACTION_ADOPT, pawlv1.Action_ACTION_ROTATE, pawlv1.Action_ACTION_PLAN} {
		answer := o.ask("new", &pawlv1.Request{Action: action})
		for _, want := range []string{`clusters.main.observer: is missing, and the admin never logs in to database "shop"`, "Fix: add {user: pawl_observer, password_file: …}", "or write observer: none"} {
			if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_REJECTED || !strings.Contains(answer.GetReason(), want) {
				t.Errorf("%s: %v %q, want a rejection with %q", action, answer.GetOutcome(), answer.GetReason(), want)
			}
		}
	}
	if log := o.newest("new"); len(log.Records) > 0 {
		t.Errorf("%d events, want nothing touched", len(log.Records))
	}
	for _, name := range []string{"unobserved", "before"} {
		o.accepted(o.ask(name, &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE}))
		if log := o.newest(name); log.Find(saga.Requested).Body.GetRequested().GetAction() != pawlv1.Action_ACTION_ROTATE {
			t.Errorf("%s does not rotate any more", name)
		}
	}
}

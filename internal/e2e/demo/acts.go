package main

import (
	"fmt"
	"time"

	"pawl.dev/internal/inventory"
)

// act is one rotation, and what it promises.
type act struct {
	Credential string
	title      string
	Strategy   string
	Probes     []string // YAML
	ends       string   // the event that does
	trace      bool     // show the waterfall
	judge      func(outcome) (asPromised bool, verdict string)
}

// outcome is what a rotation did. Both logins are the .env's, and both let in.
type outcome struct {
	before, after inventory.Login
	counts        counts
	outage        time.Duration // in place: from the ALTER's commit to the last write of a sink
}

var acts = []act{
	{
		Credential: "shop", title: "alternating: two logins in turn, none fails", Strategy: "alternating", ends: "completed", trace: true,
		Probes: []string{"sql: SELECT 1", "pool: {connections: 10}"},
		judge: func(o outcome) (bool, string) {
			return o.counts.Failed == 0 && o.after.User != o.before.User, o.failed()
		},
	},
	{
		Credential: "reports", title: "in place: only the password changes, logins fail for a moment", Strategy: "in-place", ends: "completed",
		Probes: []string{"sql: SELECT 1"},
		judge: func(o outcome) (bool, string) {
			return o.after.User == o.before.User && !o.after.Carries(o.before), fmt.Sprintf("%s (outage %d ms)", o.failed(), o.outage.Milliseconds())
		},
	},
	{
		Credential: "billing", title: "a probe fails, and all is taken back", Strategy: "alternating", ends: "rolled-back", trace: true,
		Probes: []string{"sql: SELECT demo.smoke_test()"},
		judge: func(o outcome) (bool, string) {
			return o.after.Carries(o.before), "rolled back; the old credential works; " + o.failed()
		},
	},
}

func (o outcome) failed() string {
	return fmt.Sprintf("failed logins: %d of %d", o.counts.Failed, o.counts.Attempted)
}

func names() (all []string) {
	for _, a := range acts {
		all = append(all, a.Credential)
	}
	return all
}

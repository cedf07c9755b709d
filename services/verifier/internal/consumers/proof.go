// Package consumers proves, from pg_stat_activity, that applications use a new
// login and have left the old one.
//
// What that view can show: a session's application_name, its client's address
// and port, and when its backend started. Not the client's process: two
// instances on one host look like one instance with two connections. So the
// number of sessions is a lower bound on what was restarted, and what makes the
// proof is its other half, that no session of the application is left on the
// old login. Instances that give themselves different application names can be
// configured as consumers of their own, and are then proven one by one.
package consumers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// maxListed bounds how many sessions of one consumer an event names.
const maxListed = 50

// Logins says what tells new sessions from old ones.
type Logins struct {
	User string // carries the new credential
	Old  string // is to be left; equal to User where only its password changed
	// Since is the database's clock when the new credential was committed, by
	// node; a session that began later has used it.
	Since map[string]time.Time
}

// Seen is what every node showed of one application, by node.
type Seen map[string][]postgres.Session

// Judge returns the proof that the consumer uses the new login, or else what is
// missing, as one line that names the consumer.
func (l Logins) Judge(c inventory.Consumer, seen Seen) (proof *pawlv1.Proof_Consumer, missing string) {
	var proven, old []string
	for node, sessions := range seen {
		for _, s := range sessions {
			switch {
			case s.Application != c.ApplicationName:
			case s.User == l.User && s.BackendStart.After(l.Since[node]):
				proven = append(proven, fmt.Sprintf("%s pid %d since %s", node, s.PID, s.BackendStart.UTC().Format(time.RFC3339Nano)))
			case s.User == l.Old:
				old = append(old, fmt.Sprintf("pid %d on %s", s.PID, node))
			}
		}
	}
	slices.Sort(proven)
	slices.Sort(old)
	if len(proven) >= c.Instances && len(old) == 0 {
		return &pawlv1.Proof_Consumer{Name: c.Name, Instances: uint32(c.Instances), Sessions: proven[:min(len(proven), maxListed)]}, ""
	}
	return nil, l.describe(c, len(proven), old)
}

func (l Logins) describe(c inventory.Consumer, proven int, old []string) string {
	with, without := "on the new login", "on the old one"
	if l.Old == l.User {
		with, without = "with the new password", "from before it"
	}
	text := fmt.Sprintf("%s: %d of %d instances %s", c.Name, min(proven, c.Instances), c.Instances, with)
	switch {
	case len(old) > 0:
		text += fmt.Sprintf("; %s still %s: %s", service.Count(len(old), "session"), without, strings.Join(old[:min(len(old), maxListed)], ", "))
	case proven == 0: // it may be there, under another name
		text += fmt.Sprintf("; no session has the application_name %q", c.ApplicationName)
	}
	return text
}

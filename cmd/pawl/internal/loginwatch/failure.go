// Package loginwatch raises an alert where PostgreSQL's log shows logins that
// fail as they would for somebody who tries passwords, or who holds one that was
// retired.
package loginwatch

import (
	"bytes"
	"strings"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"pawl.dev/cmd/pawl/internal/pglog"
)

// Alert names, label alertname.
const (
	// FailedLogins: wrong passwords for a login of a credential; without the label
	// pg_role, for roles that do not exist.
	FailedLogins = "FailedLogins"
	// RefusedByHBA: pg_hba.conf lets nobody in as this login from there, before
	// any password is asked for.
	RefusedByHBA = "RefusedByHBA"
	// RetiredCredentialUsed: the right password of a login that may not log in.
	RetiredCredentialUsed = "RetiredCredentialUsed"
)

// Kinds of failure: label kind of the metrics.
const (
	wrongPassword      = "wrong_password"
	unknownRole        = "unknown_role"
	refusedByHBA       = "pg_hba"
	retired            = "nologin"
	retiredNoPassword  = "nologin_without_password" // trust, peer and the like asked for none
	tooManyConnections = "too_many_connections"     // no alert: the password was right, and nobody is kept out
)

// alertOf is which alert a kind of failure counts for.
var alertOf = map[string]string{wrongPassword: FailedLogins, unknownRole: FailedLogins, refusedByHBA: RefusedByHBA, retired: RetiredCredentialUsed}

const (
	authenticated = "connection authenticated: "
	methodIs      = " method="
)

var telling = [][]byte{[]byte("28P01"), []byte("28000"), []byte("53300"), []byte(authenticated)}

// wanted is pglog.Follower's.
func wanted(raw []byte) bool {
	for _, code := range telling {
		if bytes.Contains(raw, code) {
			return true
		}
	}
	return false
}

// passwordMethods are those of pg_hba.conf that ask for a password.
var passwordMethods = map[string]bool{"scram-sha-256": true, "md5": true, "password": true, "ldap": true, "pam": true, "radius": true, "bsd": true}

// classifier tells failures from one another. How a session was authenticated
// stands in a record before its failure, where log_connections is on, from
// PostgreSQL 14.
type classifier struct {
	methods *simplelru.LRU[string, string] // by session
	told    bool                           // the server logs methods
}

func newClassifier() *classifier {
	methods, err := simplelru.NewLRU[string, string](1024, nil)
	if err != nil {
		panic(err) // of a size below 1
	}
	return &classifier{methods: methods}
}

// classify returns the kind of failure that a record tells of; "": none.
// Errors of the same codes that a function raised come in another phase.
func (c *classifier) classify(r pglog.Record) string {
	if r.Backend != "client backend" {
		return ""
	}
	switch authenticating := r.Phase == "authentication"; {
	case authenticating && r.SQLState == "28P01":
		// Of a role that does not exist the client learns no more than of a wrong
		// password, the log does.
		if strings.HasPrefix(r.Detail+"\n", `Role "`+r.User+"\" does not exist.\n") {
			return unknownRole
		}
		return wrongPassword
	case authenticating && r.SQLState == "28000":
		return refusedByHBA
	case authenticating && strings.HasPrefix(r.Message, authenticated):
		if at := strings.LastIndex(r.Message, methodIs); at >= 0 { // an identity may hold anything
			method, _, _ := strings.Cut(r.Message[at+len(methodIs):], " ")
			c.methods.Add(r.Session, method)
			c.told = true
		}
	case r.Phase == "startup" && r.SQLState == "28000":
		// The server looks at this after the password.
		method, known := c.methods.Get(r.Session)
		if known && !passwordMethods[method] || !known && c.told { // 14 and 15 say nothing of trust
			return retiredNoPassword
		}
		return retired
	case r.SQLState == "53300" && (authenticating || r.Phase == "startup"):
		return tooManyConnections
	}
	return ""
}

package bus

import (
	"fmt"
	"slices"
	"strings"

	"pawl.dev/internal/saga"
)

// Clients that are no services.
const (
	Requester   = "requester"   // may ask for rotations, and nothing else
	Operator    = "operator"    // may also see everything that is no secret, and publish emergencies
	Provisioner = "provisioner" // creates streams and consumers; used by `pawl up` alone
)

// Users lists every NATS user of an installation.
var Users = slices.Concat(saga.Services, []string{Requester, Operator, Provisioner})

// Permissions of one NATS user: what it may publish and subscribe to.
type Permissions struct {
	Publish   []string
	Deny      []string // what of Publish it may not
	Subscribe []string
}

// InboxPrefix of a user: nobody else may listen there, but on the requester's,
// which is NATS's own, so that stock clients work unconfigured.
func InboxPrefix(user string) string {
	if user == Requester {
		return stockInbox
	}
	return stockInbox + "_" + user
}

const stockInbox = "_INBOX"

// elsewhere begins the inboxes of those who ask from another account, as the
// server shows them.
const elsewhere = "_R_"

// checkInbox refuses to answer elsewhere than in an inbox: who asks can name any
// subject, also one where only whoever answers may publish.
func checkInbox(subject string) error {
	first, _, _ := strings.Cut(subject, ".")
	if first == elsewhere || slices.ContainsFunc(Users, func(user string) bool { return first == InboxPrefix(user) }) {
		return nil
	}
	return fmt.Errorf("an answer is wanted on %.80q, which is no inbox", subject)
}

// PermissionsFor derives a user's rights from the saga table: a service may
// publish the events it owns, and read the log, and its own envelopes.
func PermissionsFor(user string) Permissions {
	p := Permissions{Subscribe: []string{InboxPrefix(user) + ".>"}}
	read := func(streams ...string) {
		for _, s := range streams {
			p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+s, "$JS.API.DIRECT.GET."+s, "$JS.API.DIRECT.GET."+s+".>")
		}
	}
	switch user {
	case Provisioner:
		return Permissions{Publish: []string{"$JS.API.>", "$JS.SNAPSHOT.>"}, Subscribe: p.Subscribe} // makes streams, backs them up, and restores them
	case Requester:
		p.Publish = []string{"pawl.request.>", "pawl.alert.>"}
		return p
	case Operator:
		p.Publish = []string{"pawl.request.>", "pawl.alert.>", "pawl.emergency.>", "pawl.check.>", "pawl.examine.>",
			NoteSubject(Operator), EvidenceSubject("*", "*", "*", "*"), // what was done while the bus was down
			// Ordered consumers of what holds no secret, for `watch` and `history`.
			"$JS.API.CONSUMER.CREATE." + StreamLog + ".>", "$JS.API.CONSUMER.CREATE." + StreamNote + ".>", "$JS.API.CONSUMER.CREATE." + StreamAnswer + ".>", "$JS.API.CONSUMER.CREATE." + StreamAudit + ".>",
			"$JS.API.CONSUMER.CREATE." + StreamAlert + ".>", "$JS.API.CONSUMER.CREATE." + StreamAlarm + ".>", "$JS.API.CONSUMER.CREATE." + StreamDead + ".>",
			"$JS.API.CONSUMER.MSG.NEXT.*.>", "$JS.API.CONSUMER.INFO.*.>", "$JS.API.CONSUMER.DELETE.*.>", "$JS.API.STREAM.LIST", "$JS.API.INFO"}
		for _, c := range Consumers(Settings{}) { // which are the services' own
			for _, act := range []string{"CREATE", "DELETE", "MSG.NEXT"} {
				p.Deny = append(p.Deny, "$JS.API.CONSUMER."+act+"."+c.Stream+"."+c.Config.Durable)
			}
			p.Deny = append(p.Deny, "$JS.API.CONSUMER.CREATE."+c.Stream+"."+c.Config.Durable+".>")
		}
		p.Subscribe = append(p.Subscribe, stockInbox+".>", "pawl.answer.*", "pawl.rotation.>", "pawl.note.*") // a stock client may be the operator's
		read(StreamLog, StreamNote, StreamAnswer, StreamAudit, StreamTimer, StreamDead, StreamAlert, StreamAlarm, StreamEvidence)
		return p
	}
	for _, e := range saga.Emits(user) {
		p.Publish = append(p.Publish, LogSubject("*", "*", e))
	}
	for _, c := range Consumers(Settings{}) {
		if c.Owner == user {
			p.Publish = append(p.Publish, "$JS.API.CONSUMER.INFO."+c.Stream+"."+c.Config.Durable,
				"$JS.API.CONSUMER.MSG.NEXT."+c.Stream+"."+c.Config.Durable, "$JS.ACK."+c.Stream+"."+c.Config.Durable+".>")
		}
	}
	p.Publish = append(p.Publish, NoteSubject(user), StartedSubject(user), DeadSubject(user),
		"$JS.API.STREAM.INFO."+StreamNote, "$JS.API.DIRECT.GET."+StreamNote+"."+StartedSubject(user))
	p.Subscribe = append(p.Subscribe, CheckSubject(user, "*"), ExamineSubject(user, "*"))
	// Answers go to the inbox of whoever asked. (The server can grant that per
	// message instead, but then refused an answer now and then.)
	p.Publish = append(p.Publish, InboxPrefix(saga.Scheduler)+".>", InboxPrefix(Operator)+".>")
	read(StreamLog)
	p.Publish = append(p.Publish, newestFromLeader)
	for _, recipient := range []string{saga.DBRotator, saga.SecretPublisher, saga.Verifier} {
		if recipient == user {
			p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+StreamSealed, "$JS.API.DIRECT.GET."+StreamSealed+".pawl.sealed.*.*."+user)
		}
	}
	switch user {
	case saga.DBRotator:
		p.Publish = append(p.Publish, "pawl.sealed.*.*.*", "$JS.API.STREAM.PURGE."+StreamSealed,
			EvidenceSubject("*", "*", "*", "*"), "$JS.API.STREAM.INFO."+StreamEvidence)
	case saga.Scheduler:
		p.Publish = append(p.Publish, "pawl.answer.*", "pawl.timer.>", "pawl.check.*.*", "pawl.alert.*", "pawl.alarm.*.*", stockInbox+".>", elsewhere+".>")
		p.Subscribe = append(p.Subscribe, "pawl.request.*", "pawl.emergency.*", "pawl.answer.*")
		read(StreamAlarm, StreamTimer)
	case saga.Auditor:
		p.Publish = append(p.Publish, "pawl.audit.>",
			// An ordered consumer of what it signs.
			"$JS.API.CONSUMER.CREATE."+StreamAudit+".>", "$JS.API.CONSUMER.MSG.NEXT."+StreamAudit+".>", "$JS.API.CONSUMER.INFO."+StreamAudit+".>", "$JS.API.CONSUMER.DELETE."+StreamAudit+".>")
		p.Subscribe = append(p.Subscribe, "pawl.rotation.>", "pawl.note.*") // wakes the dashboard; it reads what is stored
		read(StreamAudit, StreamNote)
	}
	return p
}

package bus

import (
	"slices"

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
		return Permissions{Publish: []string{"$JS.API.>"}, Subscribe: p.Subscribe}
	case Requester:
		p.Publish = []string{"pawl.request.>", "pawl.alert.>"}
		return p
	case Operator:
		p.Publish = []string{"pawl.request.>", "pawl.alert.>", "pawl.emergency.>", "pawl.check.>", "pawl.examine.>",
			// Ordered consumers of what holds no secret, for `watch` and `history`.
			"$JS.API.CONSUMER.CREATE." + StreamLog + ".>", "$JS.API.CONSUMER.CREATE." + StreamNote + ".>", "$JS.API.CONSUMER.CREATE." + StreamAnswer + ".>", "$JS.API.CONSUMER.CREATE." + StreamAudit + ".>",
			"$JS.API.CONSUMER.MSG.NEXT.*.>", "$JS.API.CONSUMER.INFO.*.>", "$JS.API.CONSUMER.DELETE.*.>", "$JS.API.STREAM.LIST", "$JS.API.INFO"}
		p.Subscribe = append(p.Subscribe, stockInbox+".>", "pawl.answer.*", "pawl.rotation.>", "pawl.note.*") // a stock client may be the operator's
		read(StreamLog, StreamNote, StreamAnswer, StreamAudit, StreamTimer, StreamDead)
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
	p.Publish = append(p.Publish, NoteSubject(user), DeadSubject(user))
	p.Subscribe = append(p.Subscribe, CheckSubject(user, "*"), ExamineSubject(user, "*"))
	// Answers go to the inbox of whoever asked. (The server can grant that per
	// message instead, but then refused an answer now and then.)
	p.Publish = append(p.Publish, InboxPrefix(saga.Scheduler)+".>", InboxPrefix(Operator)+".>")
	read(StreamLog)
	for _, recipient := range []string{saga.DBRotator, saga.SecretPublisher, saga.Verifier} {
		if recipient == user {
			p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+StreamSealed, "$JS.API.DIRECT.GET."+StreamSealed+".pawl.sealed.*.*."+user)
		}
	}
	switch user {
	case saga.DBRotator:
		p.Publish = append(p.Publish, "pawl.sealed.*.*.*", "$JS.API.STREAM.PURGE."+StreamSealed)
	case saga.Scheduler:
		p.Publish = append(p.Publish, "pawl.answer.*", "pawl.timer.>", "pawl.check.*.*", stockInbox+".>")
		p.Subscribe = append(p.Subscribe, "pawl.request.*", "pawl.answer.*")
	case saga.Auditor:
		p.Publish = append(p.Publish, "pawl.audit.>")
		read(StreamAudit)
	}
	return p
}

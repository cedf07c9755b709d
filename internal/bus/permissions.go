package bus

import (
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// Clients that are no services.
const (
	Requester   = "requester"   // may ask for rotations, and nothing else
	Operator    = "operator"    // may also see everything that is no secret, and publish emergencies
	Provisioner = "provisioner" // creates streams and consumers, and restores them; used by `pawl up`, `provision` and `restore`
	Backup      = "backup"      // takes snapshots of the streams
)

// Users lists the NATS users that every installation has.
var Users = slices.Concat(saga.Services, []string{Requester, Operator, Provisioner, Backup})

// UsersOf lists all NATS users of an installation: Users, and one for each source of
// alerts.
func UsersOf(inv *inventory.Inventory) []string {
	all := slices.Clone(Users)
	for _, source := range inv.Alerts.Sources() {
		all = append(all, SourceUser(source))
	}
	return all
}

const sourcePrefix = "alert-"

// SourceUser is the user of a source of alerts, which may raise those of that source.
func SourceUser(source string) string { return sourcePrefix + source }

// Permissions of one NATS user: what it may publish and subscribe to.
type Permissions struct {
	Publish   []string
	Subscribe []string
}

// InboxPrefix of a user. The requester's and the sources' is NATS's own, so that stock
// clients work unconfigured: nobody else is in their accounts.
func InboxPrefix(user string) string {
	if user == Requester || strings.HasPrefix(user, sourcePrefix) {
		return stockInbox
	}
	return stockInbox + "_" + user
}

const stockInbox = "_INBOX"

// answers is where whoever is asked from another account answers: the server puts a
// subject of this kind in the place of the one that the asker named, which is in his
// account.
const answers = "_R_.>"

// ReadOut reports whether the server has published a message itself, as its answer to
// somebody who had it read out what is stored: he names any subject for that, also
// one where he may not publish, and what he had stored before is what it says.
func ReadOut(header nats.Header) bool {
	for _, name := range []string{jetstream.StreamHeader, jetstream.SequenceHeader, pendingHeader} {
		if header.Get(name) != "" {
			return true
		}
	}
	return false
}

// pendingHeader is in the answer to a pull that nothing was there for.
const pendingHeader = "Nats-Pending-Messages"

// PermissionsFor returns a user's rights, which derive from the saga table: a service
// may publish the events it owns, and read the log, and its own envelopes.
func PermissionsFor(user string) Permissions {
	if source, ok := strings.CutPrefix(user, sourcePrefix); ok {
		return Permissions{Publish: []string{AlertSubject(source)}, Subscribe: []string{InboxPrefix(user) + ".>"}}
	}
	p := permissions()[user]
	return Permissions{slices.Clone(p.Publish), slices.Clone(p.Subscribe)}
}

// permissions are derived once: to walk every flow takes a while.
var permissions = sync.OnceValue(func() map[string]Permissions {
	all, consumers := map[string]Permissions{}, Consumers(Settings{})
	for _, user := range Users {
		all[user] = derive(user, consumers)
	}
	return all
})

func derive(user string, consumers []Consumer) Permissions {
	p := Permissions{Subscribe: []string{InboxPrefix(user) + ".>"}}
	if slices.Contains(saga.Services, user) {
		p.ofService(user, consumers)
		return p
	}
	switch user {
	case Provisioner: // makes streams, backs them up, and restores them
		p.Publish = []string{"$JS.API.>", "$JS.SNAPSHOT.ACK.>", restores}
	case Backup:
		for _, s := range BackedUp {
			p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+s, "$JS.API.STREAM.SNAPSHOT."+s, "$JS.SNAPSHOT.ACK."+s+".>")
		}
	case Requester:
		p.Publish = []string{RequestSubject("*"), AlertSubject("*")}
	case Operator:
		p.Publish = []string{RequestSubject("*"), AlertSubject("*"), EmergencySubject("*"),
			NoteSubject(Operator), EvidenceSubject("*", "*", "*", "*"), // what was done while the bus was down
			"$JS.API.CONSUMER.INFO.*.>", "$JS.API.STREAM.LIST", "$JS.API.INFO"}
		for _, service := range saga.Services {
			p.Publish = append(p.Publish, CheckSubject(service, "*"), ExamineSubject(service, "*"), HealthSubject(service))
		}
		p.Subscribe = append(p.Subscribe, stockInbox+".>", "pawl.answer.*", "pawl.rotation.>", "pawl.note.*", "pawl.audit.>") // a stock client may be the operator's
		p.read(StreamLog, StreamNote, StreamAnswer, StreamAudit, StreamTimer, StreamDead, StreamAlert, StreamAlarm, StreamEvidence, StreamLive)
	}
	return p
}

// read adds the right to read whole streams.
func (p *Permissions) read(streams ...string) {
	for _, s := range streams {
		p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+s, directGet+s, directGet+s+".>")
	}
}

// ofService adds what every service may, and what this one does.
func (p *Permissions) ofService(user string, consumers []Consumer) {
	for _, e := range saga.Emits(user) {
		p.Publish = append(p.Publish, LogSubject("*", "*", e))
	}
	for _, c := range consumers {
		if c.Owner == user {
			name := c.Stream + "." + c.Config.Durable
			p.Publish = append(p.Publish, "$JS.API.CONSUMER.INFO."+name, "$JS.API.CONSUMER.MSG.NEXT."+name, "$JS.API.CONSUMER.RESET."+name, "$JS.ACK."+name+".>")
		}
	}
	p.read(StreamLog)
	p.Publish = append(p.Publish, newestFromLeader, NoteSubject(user), StartedSubject(user), DeadSubject(user),
		"$JS.API.STREAM.INFO."+StreamNote, directGet+StreamNote+"."+StartedSubject("*"), directGet+StreamNote+"."+RestoredSubject("*"))
	p.Subscribe = append(p.Subscribe, CheckSubject(user, "*"), ExamineSubject(user, "*"))
	// The probe: each service stores a sign of life, and asks the others.
	p.Publish = append(p.Publish, LiveSubject(user), "$JS.API.STREAM.INFO."+StreamLive, directGet+StreamLive+"."+LiveSubject("*"), answers)
	for _, service := range saga.Services {
		p.Publish = append(p.Publish, HealthSubject(service))
	}
	p.Subscribe = append(p.Subscribe, LiveSubject(user), HealthSubject(user), HealthAnswerSubject(user, "*", "*"))
	if user == saga.DBRotator || user == saga.SecretPublisher || user == saga.Verifier {
		p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+StreamSealed, directGet+StreamSealed+".pawl.sealed.*.*."+user)
	}
	switch user {
	case saga.DBRotator:
		p.Publish = append(p.Publish, "pawl.sealed.*.*.*", "$JS.API.STREAM.PURGE."+StreamSealed, RestoredSubject("*"),
			EvidenceSubject("*", "*", "*", "*"), "$JS.API.STREAM.INFO."+StreamEvidence)
	case saga.Scheduler:
		p.ofScheduler()
	case saga.Auditor:
		p.Publish = append(p.Publish, "pawl.audit.>")
		p.Subscribe = append(p.Subscribe, "pawl.rotation.>", "pawl.note.*", "pawl.audit.>") // wakes who reads what is stored
		p.read(StreamAudit, StreamNote)
	}
}

func (p *Permissions) ofScheduler() {
	p.Publish = append(p.Publish, SeveralSubject("*"), directGet+StreamNote+"."+SeveralSubject("*"))
	p.Publish = append(p.Publish, AnswerSubject("*"), RefusedSubject("*"), "pawl.timer.>", AlertSubject("*"), "pawl.alarm.*.*", operatorKey("*"))
	for _, service := range saga.Services {
		p.Publish = append(p.Publish, CheckSubject(service, "*"))
	}
	p.Subscribe = append(p.Subscribe, RequestSubject("*"), AskedSubject("*", "*"), EmergencySubject("*"), AnswerSubject("*"), RefusedSubject("*"), operatorKey("*"))
	p.read(StreamAlarm, StreamTimer)
	for _, s := range Streams(Settings{}) { // how full each is
		p.Publish = append(p.Publish, "$JS.API.STREAM.INFO."+s.Name)
	}
}

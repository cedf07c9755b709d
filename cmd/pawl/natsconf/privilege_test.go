package natsconf

import (
	"slices"
	"strings"
	"testing"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
)

// attempt is one thing that somebody may try on the bus.
type attempt struct {
	subject string
	owners  []string // who may; everybody else is refused
}

// events lists every event of the table.
func events() (all []saga.Event) {
	for _, f := range saga.Flows {
		for _, s := range slices.Concat(f.Forward, f.Undo, f.Tail) {
			all = append(all, s.Emits, s.Fails)
		}
	}
	all = append(append(all, saga.Requested), saga.Reversals...)
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(e saga.Event) bool { return e == "" })
}

// publications derives from the table what can be tried by publishing, and who
// owns it.
func publications() (all []attempt) {
	const c, r = "app", "r1"
	may := func(subject string, owners ...string) { all = append(all, attempt{subject, owners}) }
	for _, e := range events() {
		may(bus.LogSubject(c, r, e), saga.OwnerOf(e))
	}
	may(bus.LogSubject(c, r, "no-such-event"))
	for _, k := range bus.Consumers(bus.Settings{}) {
		name := k.Stream + "." + k.Config.Durable
		may("$JS.API.CONSUMER.INFO."+name, k.Owner, bus.Operator)
		may("$JS.API.CONSUMER.MSG.NEXT."+name, k.Owner)
		may("$JS.ACK."+name+".1.1.1.1.1", k.Owner)
		may("$JS.API.CONSUMER.RESET."+name, k.Owner) // after a step of the clock
		for _, act := range []string{"CREATE", "DURABLE.CREATE", "DELETE", "PAUSE", "UNPIN", "LEADER.STEPDOWN"} {
			may("$JS.API.CONSUMER." + act + "." + name)
		}
		may("$JS.API.CONSUMER.CREATE." + name + ".pawl.x")
	}
	// Who reads a stream, message by message.
	readers := map[string][]string{
		bus.StreamLog: append([]string{bus.Operator}, saga.Services...), bus.StreamNote: {saga.Auditor, bus.Operator}, bus.StreamAudit: {saga.Auditor, bus.Operator},
		bus.StreamAlarm: {saga.Scheduler, bus.Operator}, bus.StreamTimer: {saga.Scheduler, bus.Operator},
		bus.StreamAnswer: {bus.Operator}, bus.StreamDead: {bus.Operator}, bus.StreamAlert: {bus.Operator}, bus.StreamEvidence: {bus.Operator}, bus.StreamLive: {bus.Operator},
	}
	described := map[string][]string{ // to whom its name and subjects are told, beside its readers
		bus.StreamSealed: sealed.Recipients, bus.StreamEvidence: {saga.DBRotator}, bus.StreamNote: saga.Services, bus.StreamLive: saga.Services,
	}
	for _, s := range bus.Streams(bus.Settings{}) {
		for _, act := range []string{"CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "MSG.GET", "SNAPSHOT", "RESTORE", "LEADER.STEPDOWN", "PEER.REMOVE"} {
			var owners []string
			switch act + "." + s.Name {
			case "PURGE." + bus.StreamSealed:
				owners = []string{saga.DBRotator}
			case "MSG.GET." + bus.StreamLog:
				owners = saga.Services
			case "SNAPSHOT." + s.Name:
				if slices.Contains(bus.BackedUp, s.Name) {
					owners = []string{bus.Backup}
				}
			}
			may("$JS.API.STREAM."+act+"."+s.Name, owners...)
		}
		may("$JS.SNAPSHOT.RESTORE." + s.Name + ".x")
		var copies []string
		if slices.Contains(bus.BackedUp, s.Name) {
			copies = []string{bus.Backup}
		}
		may("$JS.SNAPSHOT.ACK."+s.Name+".x.1.1", copies...)
		// The scheduler tells how full each is.
		may("$JS.API.STREAM.INFO."+s.Name, slices.Concat(readers[s.Name], described[s.Name], copies, []string{saga.Scheduler})...)
		may("$JS.API.DIRECT.GET."+s.Name, readers[s.Name]...)
		may("$JS.API.DIRECT.GET."+s.Name+".pawl.x", readers[s.Name]...)
		may("$JS.API.CONSUMER.CREATE." + s.Name)
		may("$JS.API.CONSUMER.INFO."+s.Name+".mine", bus.Operator)
		for _, act := range []string{"CREATE", "DELETE", "MSG.NEXT"} {
			may("$JS.API.CONSUMER." + act + "." + s.Name + ".mine")
		}
	}
	everybody := append([]string{bus.Operator}, saga.Services...)
	for _, to := range saga.Services {
		may("pawl.sealed."+c+"."+r+"."+to, saga.DBRotator)
		var reads []string
		if slices.Contains(sealed.Recipients, to) {
			reads = []string{to}
		}
		may("$JS.API.DIRECT.GET."+bus.StreamSealed+".pawl.sealed."+c+"."+r+"."+to, reads...)
		may("$JS.API.DIRECT.GET."+bus.StreamNote+"."+bus.StartedSubject(to), everybody...)
		may("$JS.API.DIRECT.GET."+bus.StreamNote+"."+bus.NoteSubject(to), saga.Auditor, bus.Operator)
		may("$JS.API.DIRECT.GET."+bus.StreamLive+"."+bus.LiveSubject(to), everybody...)
		may(bus.LiveSubject(to), to)
		may(bus.HealthSubject(to), everybody...)
		may(bus.HealthAnswerSubject(saga.Verifier, to, "x"))
		may(bus.NoteSubject(to), to)
		may(bus.StartedSubject(to), to)
		may(bus.DeadSubject(to), to)
		may(bus.CheckSubject(to, c), saga.Scheduler, bus.Operator)
		may(bus.ExamineSubject(to, c), bus.Operator)
		may(bus.WakeSubject(to, c), saga.Scheduler)
	}
	may(bus.NoteSubject(bus.Operator), bus.Operator)
	may(bus.SeveralSubject(r), saga.Scheduler)
	may("$JS.API.DIRECT.GET."+bus.StreamNote+"."+bus.SeveralSubject(r), saga.Scheduler, saga.Auditor, bus.Operator)
	may(bus.RestoredSubject(c), saga.DBRotator)
	may("$JS.API.DIRECT.GET."+bus.StreamNote+"."+bus.RestoredSubject(c), append([]string{bus.Operator}, saga.Services...)...)
	may(bus.RequestSubject(c), bus.Requester, bus.Operator)
	may(bus.AskedSubject(bus.Requester, c)) // the server's alone
	for _, source := range []string{"siem", inventory.LoginWatch} {
		may(bus.AlertSubject(source), bus.Requester, bus.Operator, saga.Scheduler, bus.SourceUser(source))
	}
	may(bus.AlertedSubject(bus.Requester, "siem")) // the server's alone
	may(bus.EmergencySubject(c), bus.Operator)
	may(bus.AnswerSubject("x"), saga.Scheduler)
	may(bus.RefusedSubject("x"), saga.Scheduler)
	may(bus.AlarmSubject(c, "x"), saga.Scheduler)
	may(bus.EvidenceSubject(c, r, "n", "x"), saga.DBRotator, bus.Operator)
	may(bus.WaitingSubject(c), saga.Scheduler)
	may(bus.OperatorSubject, saga.Scheduler)
	may("pawl.operator.key.x", saga.Scheduler) // where the server tells it the operator's key
	may("pawl.audit.record.1", saga.Auditor)
	may("pawl.something.new")
	for _, user := range bus.Users {
		may(bus.InboxPrefix(user) + ".x.y")
	}
	may("_R_.x", saga.Services...) // what they are asked, they answer there
	may("$JS.API.INFO", bus.Operator)
	may("$JS.API.STREAM.LIST", bus.Operator)
	for _, subject := range []string{"$JS.API.STREAM.NAMES", "$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE", "$JS.API.ACCOUNT.PURGE.PAWL", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.PAWL.INFO", "$SYS.REQ.USER.INFO"} {
		may(subject)
	}
	return all
}

// subscriptions derives what can be tried by listening.
func subscriptions() (all []attempt) {
	may := func(subject string, owners ...string) { all = append(all, attempt{subject, owners}) }
	for _, user := range bus.Users {
		owners := []string{user}
		if user == bus.Requester {
			owners = append(owners, bus.Operator, bus.SourceUser("siem"), bus.SourceUser(inventory.LoginWatch)) // stock clients of theirs listen there, too
		}
		may(bus.InboxPrefix(user)+".>", owners...)
	}
	for _, service := range saga.Services {
		may(bus.CheckSubject(service, "*"), service)
		may(bus.ExamineSubject(service, "*"), service)
		may(bus.LiveSubject(service), service)
		may(bus.HealthSubject(service), service)
		may(bus.HealthAnswerSubject(service, "*", "*"), service)
	}
	may("pawl.rotation.>", bus.Operator, saga.Auditor)
	may("pawl.note.*", bus.Operator, saga.Auditor)
	may("pawl.audit.>", bus.Operator, saga.Auditor)
	may("pawl.answer.*", bus.Operator, saga.Scheduler)
	may(bus.RefusedSubject("*"), saga.Scheduler)
	may("pawl.request.*", saga.Scheduler)
	may(bus.AskedSubject("*", "*"), saga.Scheduler)
	may("pawl.emergency.*", saga.Scheduler)
	may("pawl.operator.key.*", saga.Scheduler)
	for _, subject := range []string{">", "*", "*.>", "pawl.>", "pawl.sealed.>", "pawl.sealed.*.*.verifier", "pawl.evidence.>", "pawl.timer.>", "pawl.alert.*", "pawl.dead.*", "pawl.live.*", "pawl.health.>", "pawl.alarm.>", "_INBOX_*.>", "$JS.>", "$JS.ACK.>", "$JS.API.>", "$JS.EVENT.>", "$SYS.>", "$KV.>"} {
		may(subject)
	}
	return all
}

// TestEachUserIsRefusedAllThatIsNotItsOwn tries everything as everybody, with his
// own key and certificate, on a server of the generated configuration.
func TestEachUserIsRefusedAllThatIsNotItsOwn(t *testing.T) {
	i := install(t)
	i.serve()
	i.mustProvision()
	tried, refused := 0, 0
	for _, user := range bus.UsersOf(i.inv) {
		if user == bus.Provisioner {
			continue // it may have streams made, and be told of them: all of $JS.API.>
		}
		b := i.join(user)
		try := func(what string, a attempt, do func() error) {
			tried++
			may := slices.Contains(a.owners, user)
			if was := denied(t, b, a.subject, do); was == may {
				t.Errorf("%s: %s %s: refused: %v; owned by %v", user, what, a.subject, was, a.owners)
			} else if was {
				refused++
			}
		}
		for _, a := range publications() {
			try("publish", a, func() error { return b.NATS.Publish(a.subject, []byte("{}")) })
		}
		for _, a := range subscriptions() {
			try("subscribe", a, func() error {
				s, err := b.NATS.SubscribeSync(a.subject)
				if err == nil {
					err = b.NATS.Flush()
				}
				if err == nil {
					err = s.Unsubscribe()
				}
				return err
			})
		}
	}
	if tried < 2000 || refused < tried/2 {
		t.Errorf("%d attempts, %d refused: the table is not what it was", tried, refused)
	}
	t.Logf("%d attempts, %d refused", tried, refused)
}

// TestEachRightIsTried: a right that is granted and not in the table above would
// be one that nobody has thought about.
func TestEachRightIsTried(t *testing.T) {
	for _, user := range bus.Users {
		if user == bus.Provisioner {
			continue
		}
		p := bus.PermissionsFor(user)
		for _, granted := range []struct {
			patterns []string
			tried    []attempt
		}{{p.Publish, publications()}, {p.Subscribe, subscriptions()}} {
			for _, pattern := range granted.patterns {
				if !slices.ContainsFunc(granted.tried, func(a attempt) bool { return slices.Contains(a.owners, user) && covers(pattern, a.subject) }) {
					t.Errorf("%s may %s, which no attempt tries", user, pattern)
				}
			}
		}
	}
}

// covers reports whether a pattern with wildcards takes a subject in.
func covers(pattern, subject string) bool {
	want, have := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range want {
		switch {
		case token == ">":
			return len(have) > i
		case i >= len(have) || token != "*" && token != have[i]:
			return false
		}
	}
	return len(want) == len(have)
}

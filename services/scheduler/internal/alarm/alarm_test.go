package alarm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }

func TestAlertCutsOffTheCredentialThatItsRuleNames(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	a := p.alert("Leaked", "c1_b") // the other login of c1
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	if err := p.owners[saga.Scheduler].Publish(t.Context(), bus.AlertSubject("siem"), a, nats.Header{"traceparent": {"00-" + parent + "-00f067aa0ba902b7-01"}}); err != nil {
		t.Fatal(err)
	}
	n := p.note()
	log := p.newest("c1")
	begin := log.Records[0].Body.GetRequested()
	if n.GetKind() != "alert fired" || log.Rotation != n.GetRotation() || begin.GetFlow() != saga.Emergency || begin.GetAction() != pawlv1.Action_ACTION_CONTAIN || !bus.Urgent(log.Records[0].Header) {
		t.Fatalf("note %v\nbegan %v", n, begin)
	}
	if begin.GetRequestedBy() != "alert siem" || begin.GetReason() != `Leaked{cluster="main",pg_role="c1_b"} from siem` {
		t.Errorf("by %q, because of %q", begin.GetRequestedBy(), begin.GetReason())
	}
	if !strings.Contains(log.Records[0].Header.Get("traceparent"), parent) {
		t.Error("the alert's trace ends at the desk")
	}
	decided, err := p.operator.FindAlarm(t.Context(), p.inventory, "c1", "siem", a)
	if err != nil || decided.GetRotation() != log.Rotation || decided.Seq == 0 || decided.GetGuard() != "" {
		t.Errorf("decided %v, %v", decided, err)
	}
	if p.counted("none") != 1 {
		t.Error(p.scrape())
	}
	for _, c := range []string{"c0", "c2", "c3"} {
		if p.newest(c).LastSeq() != 0 {
			t.Errorf("%s was touched", c)
		}
	}
}

func TestAlertMayBeJSONAndWhatIsNoneIsKeptAside(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	tell := func(body string) {
		if err := p.owners[saga.Scheduler].NATS.Publish("pawl.alert.siem", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	dead, err := p.operator.JetStream.Stream(t.Context(), bus.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ body, want string }{
		{"hello", "not a Alert"},
		{`{"fingerprint": "f"}`, "starts_at"},
		{`{"starts_at": "2026-11-25T00:00:00Z"}`, "fingerprint"},
		{`{"fingerprint": "f", "starts_at": "2026-11-25T00:00:00Z", "label": {}}`, "label"},
		{`{"fingerprint": "f", "starts_at": "yesterday"}`, "yesterday"},
	} {
		tell(c.body)
		tell(fmt.Sprintf(`{"fingerprint": "next-%d", "starts_at": %q}`, i, time.Now().Format(time.RFC3339)))
		if n := p.note(); n.GetStep() != unmapped {
			t.Fatalf("%v", n)
		}
		m, err := dead.GetLastMsgForSubject(t.Context(), bus.DeadSubject(saga.Scheduler))
		if err != nil {
			t.Fatal(err)
		}
		n := &pawlv1.Note{}
		if err := bus.Decode(m.Header, m.Data, n); err != nil || !strings.Contains(n.GetText(), c.want) || !strings.Contains(n.GetText(), "pawl.alert.siem (sequence ") || m.Sequence != uint64(i+1) {
			t.Errorf("%s: %v, %v", c.body, n, err)
		}
	}
	if p.counted(undecodable) != 5 {
		t.Error(p.scrape())
	}
	tell(fmt.Sprintf(`{"fingerprint": "json", "startsAt": %q, "labels": {"alertname": "Leaked", "cluster": "main", "pg_role": "c2"}}`, time.Now().Format(time.RFC3339Nano)))
	if n := p.note(); n.GetKind() != "alert fired" || n.GetCredential() != "c2" {
		t.Errorf("%v", n)
	}
}

func TestUnmappedAlertIsRecordedAndTouchesNothing(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	for name, change := range map[string]func(l map[string]string){
		"another alert":   func(l map[string]string) { l["alertname"] = "Slow" },
		"another cluster": func(l map[string]string) { l["cluster"] = "main2" },
		"no cluster":      func(l map[string]string) { delete(l, "cluster") },
		"another role":    func(l map[string]string) { l["pg_role"] = "c9" },
		"a similar role":  func(l map[string]string) { l["pg_role"] = "c1_c" },
	} {
		a := p.alert("Leaked", "c1")
		change(a.GetLabels())
		p.raise("am", a)
		n := p.note()
		if n.GetStep() != unmapped || n.GetCredential() != "" || !strings.Contains(n.GetText(), "alertname") || strings.Contains(n.GetText(), `"x"`) {
			t.Errorf("%s: %v", name, n)
		}
		decided, err := p.operator.FindAlarm(t.Context(), p.inventory, "", "am", a)
		if err != nil || decided.GetGuard() != unmapped {
			t.Errorf("%s: %v, %v", name, decided, err)
		}
	}
	if p.newest("c1").LastSeq() != 0 || p.counted(unmapped) != 5 {
		t.Errorf("c1 was touched, or:\n%s", p.scrape())
	}
}

// TestSentAgainItIsOneAlert: Alertmanager sends an alert every repeat_interval,
// and whenever its group changes; and once more when it is over.
func TestSentAgainItIsOneAlert(t *testing.T) {
	p := newPost(t)
	p.inventory.Alerts.Cooldown = time.Nanosecond // nothing else may hold it back
	p.start(nil)
	a := p.alert("Leaked", "c1")
	p.fires("am", a)
	p.ends("c1")
	p.held("am", a, repeat)
	for range 20 { // said once, counted each time; from another Alertmanager of a pair, too
		p.raise("am", a)
		p.raise("am-2", a)
	}
	over := p.alert("Leaked", "c1")
	over.Fingerprint, over.StartsAt, over.Resolved = a.GetFingerprint(), a.GetStartsAt(), true
	if n := p.held("am", over, resolved); n.GetCredential() != "c1" {
		t.Errorf("%v", n)
	}
	never := p.alert("Leaked", "c2") // its beginning was lost on the way
	never.Resolved = true
	p.held("am", never, resolved)
	p.raise("am", over) // counted, and not said again: what comes next is heard after it
	if n := p.emergencies("c1"); n != 1 {
		t.Errorf("%d emergencies", n)
	}
	again := p.alert("Leaked", "c1")
	again.Fingerprint = a.GetFingerprint() // it has begun anew
	p.fires("am", again)
	if n := p.emergencies("c1"); n != 2 || p.counted(repeat) != 41 || p.counted(resolved) != 3 {
		t.Errorf("%d emergencies;\n%s", n, p.scrape())
	}
}

func TestPawlsOwnLoginIsAPersons(t *testing.T) {
	p := newPost(t)
	cluster := p.inventory.Credentials["c0"].Cluster
	c := p.credential("pawl-admin", cluster)
	c.Role, cluster.Admin.Credential, cluster.Observer.Credential = "pawl_admin", c.Name, c.Name
	p.start(nil)
	p.held("am", p.alert("Leaked", "pawl_admin"), own, "pawl rotate pawl-admin", "on_call: nina")
	p.fires("am", p.alert("Leaked", "c1"))
}

func TestOldAlertIsAPersons(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	a := p.alert("Leaked", "c1")
	a.StartsAt = ago(oldest + time.Second)
	p.held("am", a, age, "pawl emergency c1", "on_call: nina")
	a = p.alert("Leaked", "c1")
	a.StartsAt = ago(-ahead - time.Minute)
	p.held("am", a, age, "is the clock of its source right?")
	a = p.alert("Leaked", "c1")
	a.StartsAt = ago(oldest - time.Minute)
	p.fires("am", a)
}

// TestFailedLoginsOfARotationBeginNoEmergency: at any step of it, after it, and
// by whoever goes on with the old login.
func TestFailedLoginsOfARotationBeginNoEmergency(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	early := p.alert("FailedLogins", "c1_b") // before anything began
	p.begin("c1", "r-1", saga.Alternating)
	for more := true; more; {
		p.held("logins", p.alert("FailedLogins", "c1"), rotating, "r-1")
		late := p.alert("FailedLogins", "c1_b") // told when more has happened
		more = p.step("c1") != ""
		p.held("logins", late, rotating, "r-1")
	}
	p.held("logins", p.alert("FailedLogins", "c1_b"), rotating, "had ended only at")
	late := p.alert("FailedLogins", "c1_b") // told in the time of the next one
	p.begin("c1", "r-2", saga.Alternating)
	p.held("logins", late, rotating, "r-1 had ended only at")
	p.ends("c1")
	p.inventory.Alerts.Grace = 0
	p.held("logins", p.alert("FailedLogins", "c1"), rotating, `"c1" is not the login in use`)
	p.fires("logins", early) // no rotation's doing
	// A leak is none either: it cuts off whatever is under way.
	p.begin("c2", "r-3", saga.Alternating)
	p.fires("am", p.alert("Leaked", "c2"))
	p.begin("c3", "r-4", saga.Alternating)
	hold, fire := true, false
	for i := range p.inventory.Alerts.Rules {
		if r := &p.inventory.Alerts.Rules[i]; r.Credential.Name == "c3" {
			r.Hold = map[string]*bool{"Leaked": &hold, "FailedLogins": &fire}[r.Labels["alertname"]]
		}
	}
	p.held("am", p.alert("Leaked", "c3"), rotating, "r-4")
	p.fires("logins", p.alert("FailedLogins", "c3"))
}

func TestOneEmergencyHoweverManyAlertsTellOfTheTheft(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	id := p.fires("am", p.alert("Leaked", "c1"))
	p.held("siem", p.alert("Leaked", "c1"), cooldown, "emergency "+id+" of c1 is under way")
	p.ends("c1")
	p.held("am", p.alert("FailedLogins", "c1"), cooldown, "was contained by "+id)
	p.begin("c1", "r-1", saga.Alternating) // a rotation after it is no news
	p.ends("c1")
	p.held("am", p.alert("FailedLogins", "c1"), cooldown, "was contained by "+id)
	// The same where a person was first.
	p.begin("c2", "by-hand", saga.Emergency)
	p.held("am", p.alert("Leaked", "c2"), cooldown, "by-hand")
	p.ends("c2")
	p.held("am", p.alert("Leaked", "c2"), cooldown, "was contained by by-hand")
	p.begin("c3", "lock", saga.Lock)
	p.ends("c3")
	p.inventory.Alerts.Cooldown = time.Nanosecond
	p.held("am", p.alert("Leaked", "c3"), cooldown, "c3 is locked")
	p.fires("am", p.alert("Leaked", "c1"))
	// An emergency that was decided upon counts before it is contained.
	p.inventory.Alerts.Cooldown = time.Hour
	p.decided(&pawlv1.Alarm{Fired: map[string]*timestamppb.Timestamp{"c0": ago(time.Minute)}})
	p.held("am", p.alert("Leaked", "c0"), cooldown, "another alert has cut c0 off")
}

// decided appends a decision that hands on what it says.
func (p *post) decided(a *pawlv1.Alarm) {
	p.t.Helper()
	newest, err := p.operator.NewestAlarm(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	p.fresh++
	a.Source, a.At = "test", timestamppb.Now()
	if err := p.owners[saga.Scheduler].AppendAlarm(p.t.Context(), fmt.Sprintf("handed-on-%d", p.fresh), a, nil, newest.Seq); err != nil {
		p.t.Fatal(err)
	}
}

func TestStormIsBrakedUntilItIsQuiet(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	for i := range 3 {
		p.fires("am", p.alert("Leaked", fmt.Sprintf("c%d", i)))
	}
	unbraked := p.scrape()
	p.held("am", p.alert("Leaked", "c3"), storm, "c0, c1, c2", "pawl emergency c3", "on_call: nina")
	if braked := p.scrape(); !strings.Contains(unbraked, "pawl_alerts_braked 0") || !strings.Contains(braked, "pawl_alerts_braked 1") {
		t.Errorf("before:\n%s\nafter:\n%s", unbraked, braked)
	}
	p.held("am", p.alert("Leaked", "c3"), storm, "holds until no alert has come for 10m")
	// Handed on past alerts that have nothing to do with it.
	p.raise("am", p.alert("Other", "c3"))
	p.note()
	p.decided(&pawlv1.Alarm{Braked: ago(9 * time.Minute)})
	p.held("am", p.alert("Leaked", "c3"), storm, "holds until")
	p.decided(&pawlv1.Alarm{Braked: ago(11 * time.Minute), Fired: map[string]*timestamppb.Timestamp{"c0": ago(11 * time.Minute), "c1": ago(11 * time.Minute), "c2": ago(9 * time.Minute)}})
	p.fires("am", p.alert("Leaked", "c3"))
}

func TestRehearsalDecidesAndDoesNothing(t *testing.T) {
	p := newPost(t)
	p.inventory.Alerts.DryRun = true
	p.start(nil)
	p.held("am", p.alert("Leaked", "c1"), dryRun, "c1 would have been cut off")
	p.held("am", p.alert("Leaked", "c1"), cooldown, "another alert")
	p.held("am", p.alert("Leaked", "c0"), dryRun)
	p.held("am", p.alert("Leaked", "c2"), dryRun)
	p.held("am", p.alert("Leaked", "c3"), storm)
}

// TestRehearsalIsForgottenOnceItIsReal: it has cut nobody off.
func TestRehearsalIsForgottenOnceItIsReal(t *testing.T) {
	p := newPost(t)
	p.inventory.Alerts.DryRun = true
	stop := p.start(nil)
	for i := range 3 {
		p.held("am", p.alert("Leaked", fmt.Sprintf("c%d", i)), dryRun)
	}
	p.held("am", p.alert("Leaked", "c3"), storm)
	stop()
	p.inventory.Alerts.DryRun = false
	p.start(nil)
	for i := range 3 {
		p.fires("am", p.alert("Leaked", fmt.Sprintf("c%d", i)))
	}
	p.held("am", p.alert("Leaked", "c3"), storm)
}

func TestReplicasCountTheStormTogether(t *testing.T) {
	p := newPost(t)
	cluster := p.inventory.Credentials["c0"].Cluster
	for i := range 30 {
		p.credential(fmt.Sprintf("many-%d", i), cluster)
	}
	for range 3 {
		p.start(nil)
	}
	for i := range 30 {
		p.raise("am", p.alert("Leaked", fmt.Sprintf("many-%d", i)))
	}
	fired := map[string]bool{}
	for range 30 {
		switch n := p.note(); {
		case n.GetKind() == "alert fired":
			fired[n.GetCredential()] = true
		case n.GetStep() != storm:
			t.Errorf("%v", n)
		}
	}
	began := 0
	for i := range 30 {
		began += p.emergencies(fmt.Sprintf("many-%d", i))
	}
	if len(fired) != 3 || began != 3 {
		t.Errorf("%d fired, %d began", len(fired), began)
	}
}

// TestReplicaThatDiesLeavesItsDecisionToAnother, wherever it dies.
func TestReplicaThatDiesLeavesItsDecisionToAnother(t *testing.T) {
	for name, begins := range map[string]bool{"before the emergency": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			p := newPost(t)
			died := make(chan struct{})
			p.start(func(ctx context.Context, die func(), contain func() (*pawlv1.Answer, error)) (*pawlv1.Answer, error) {
				defer close(died)
				if begins {
					if _, err := contain(); err != nil {
						t.Error(err)
					}
				}
				die()
				return nil, ctx.Err()
			})
			a := p.alert("Leaked", "c1")
			p.raise("am", a)
			<-died
			decided, err := p.operator.FindAlarm(t.Context(), p.inventory, "c1", "am", a)
			if err != nil || decided.GetRotation() == "" {
				t.Fatalf("decided %v, %v", decided, err)
			}
			if got := p.newest("c1").Rotation != ""; got != begins {
				t.Fatalf("an emergency has begun: %v", got)
			}
			p.start(nil)
			if n := p.note(); n.GetKind() != "alert fired" || n.GetRotation() != decided.GetRotation() {
				t.Errorf("%v", n)
			}
			if log := p.newest("c1"); log.Rotation != decided.GetRotation() || p.emergencies("c1") != 1 {
				t.Errorf("%d emergencies; the newest is %s, decided was %s", p.emergencies("c1"), log.Rotation, decided.GetRotation())
			}
		})
	}
}

func TestDecisionThatAPersonWasFasterThanIsNotCarriedOut(t *testing.T) {
	p := newPost(t)
	died := make(chan struct{})
	p.start(func(ctx context.Context, die func(), _ func() (*pawlv1.Answer, error)) (*pawlv1.Answer, error) {
		die()
		close(died)
		return nil, ctx.Err()
	})
	p.raise("am", p.alert("Leaked", "c1"))
	<-died
	p.begin("c1", "by-hand", saga.Emergency)
	p.ends("c1")
	p.start(nil)
	if n := p.note(); n.GetKind() != "alert fired in vain" || !strings.Contains(n.GetText(), "contained meanwhile, by by-hand") {
		t.Errorf("%v", n)
	}
	if n := p.emergencies("c1"); n != 1 {
		t.Errorf("%d emergencies", n)
	}
}

func TestEveryGuardIsInTheRunbook(t *testing.T) {
	names := []string{undecodable, resolved, repeat, unmapped}
	for _, g := range guards {
		names = append(names, g.name)
	}
	raw, err := os.ReadFile("../../../../docs/runbooks/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, name := range names {
		if !strings.Contains(text, "`"+name+"`") {
			t.Errorf("docs/runbooks/alerts.md does not say what to do after %s", name)
		}
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != 10 {
		t.Errorf("%v", names)
	}
}

// TestWhoHoldsTheRequestersKeyIsNoOtherSource: neither is he believed to be a source
// that a rule names, nor does he have its alert be taken for a repetition.
func TestWhoHoldsTheRequestersKeyIsNoOtherSource(t *testing.T) {
	p := newPost(t)
	for i := range p.inventory.Alerts.Rules {
		p.inventory.Alerts.Rules[i].Source = "siem"
	}
	p.start(nil)
	a := p.alert("Leaked", "c1")
	requester := p.server.Connect(t, bus.Requester)
	if err := requester.Publish(t.Context(), bus.AlertSubject("siem"), a, nil); err != nil {
		t.Fatal(err)
	}
	if n := p.note(); n.GetStep() != unmapped || n.GetActor() != "alert requester" || !strings.Contains(n.GetText(), "believes siem alone, and it came from requester") {
		t.Errorf("%v", n)
	}
	if err := p.server.Connect(t, bus.SourceUser("siem")).Publish(t.Context(), bus.AlertSubject("siem"), a, nil); err != nil {
		t.Fatal(err)
	}
	if n := p.note(); n.GetKind() != "alert fired" || n.GetActor() != "alert siem" {
		t.Errorf("%v", n)
	}
}

// TestAlertThatAnOlderVersionHasDecidedUponIsNotDecidedAgain: it goes on while Pawl is
// updated.
func TestAlertThatAnOlderVersionHasDecidedUponIsNotDecidedAgain(t *testing.T) {
	p := newPost(t)
	a := p.alert("Leaked", "c1")
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\n%s", a.GetStartsAt().AsTime().UnixNano(), a.GetFingerprint()))
	before := &pawlv1.Alarm{Source: "siem", Sequence: 700, Fingerprint: a.GetFingerprint(), StartsAt: a.GetStartsAt(), Credential: "c1", At: a.GetStartsAt()}
	if err := p.owners[saga.Scheduler].AppendAlarm(t.Context(), hex.EncodeToString(sum[:16]), before, nil, 0); err != nil {
		t.Fatal(err)
	}
	p.start(nil)
	p.raise("siem", a)
	if n := p.note(); n.GetStep() != repeat {
		t.Errorf("%v", n)
	}
	p.raise("another", a)
	if n := p.note(); n.GetKind() != "alert fired" {
		t.Errorf("%v", n)
	}
}

// TestFloodOfAlertsKeepsNoOtherFromBeingDecided: by whoever holds the requester's key,
// with whatever makes a decision, or what is told of one, large or impossible to store.
func TestFloodOfAlertsKeepsNoOtherFromBeingDecided(t *testing.T) {
	p := newPost(t)
	p.start(nil)
	requester := p.server.Connect(t, bus.Requester)
	for i := range 300 {
		a := p.alert("Leaked", "nobody")
		a.Labels[strings.Repeat("x", 60_000)] = ""
		if err := requester.Publish(t.Context(), bus.AlertSubject("siem"), a, nil); err != nil {
			t.Fatal(err)
		}
		if err := requester.NATS.PublishMsg(&nats.Msg{Subject: "pawl.alert.\xff", Data: []byte("{")}); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			for len(p.notes) > 0 {
				<-p.notes
			}
		}
	}
	p.raise("siem", p.alert("Leaked", "c1"))
	for n := p.note(); n.GetKind() != "alert fired"; n = p.note() {
	}
	stream, err := p.server.Connect(t, bus.Provisioner).Stream(t.Context(), bus.StreamAlarm)
	if err != nil {
		t.Fatal(err)
	}
	if held := stream.CachedInfo().State; held.Msgs > atOnceShared+10 || held.Bytes > 200_000 {
		t.Errorf("the ledger holds %d decisions, %d bytes", held.Msgs, held.Bytes)
	}
}

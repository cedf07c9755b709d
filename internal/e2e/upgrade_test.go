package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// upgrade is an installation of which some replicas are of this version, and some
// of the next.
type upgrade struct {
	*world
	crowd        *crowd
	older, newer string // their folders
	began        time.Time
}

// held rotates until its drain is over: for longer than the test.
const held = "held"

// TestUpgradeInTheMidstOfRotationsLosesNone replaces the replicas of an
// installation by those of the next version, one after the other, while
// credentials rotate; goes back; and does it again in the worst order.
func TestUpgradeInTheMidstOfRotationsLosesNone(t *testing.T) {
	times := 1
	if *full {
		times = 10
	}
	u := newUpgrade(t)
	u.rotateThrough(u.crowd, func(func() int) { u.prepareBus(); u.replaceSlowly(u.shuffled(), u.newer) })
	u.endedBy(newerFlow)
	u.saysWhatItCannotRead()
	for range times {
		u.rotateBack()
		u.rotateThrough(u.crowd, func(func() int) { u.worst() })
		u.endedBy(newerFlow)
	}
	u.noneIsLost()
}

func newUpgrade(t *testing.T) *upgrade {
	t.Helper()
	u := &upgrade{crowd: &crowd{by: map[string]kind{}}, newer: buildNewer(t), began: time.Now()}
	// An upgrade must fit into the deadline of a step, which is a minute; a busy machine
	// takes longer to start a process.
	u.world = newWorldOnServers(t, 1, 2, 3*time.Minute, func(apps *site.Apps) []site.Credential {
		return append(u.crowd.of(4, apps), site.Credential{Name: held, Strategy: saga.Alternating, Drain: "9m"})
	})
	var err error
	if u.older, err = site.Binaries(); err != nil {
		t.Fatal(err)
	}
	return u
}

// prepareBus does what docs/nats.md says of an update.
func (u *upgrade) prepareBus() {
	n := u.site.Servers[0]
	pawl := pawl{filepath.Join(u.newer, "pawl"), u.site.Dir}
	ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
	defer cancel()
	for _, do := range []func() error{
		func() error {
			return pawl.does(ctx, "nats-config", "--out", "nats", "--nodes", n.Name, "--listen", n.Listen, "--monitor", n.Monitor)
		},
		func() error { return u.site.Reload(ctx, u.fleet, n) },
		func() error { return pawl.does(ctx, "provision") },
	} {
		if err := do(); err != nil {
			u.t.Error(err)
			return
		}
	}
}

// does runs pawl; its error holds what pawl said.
func (p pawl) does(ctx context.Context, args ...string) error {
	if out, err := p.command(ctx, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("pawl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// replicas are those of the services that are so numbered, in the order of the table.
func (u *upgrade) replicas(number int, services ...string) (names []string) {
	for _, s := range services {
		names = append(names, fmt.Sprintf("%s-%d", s, number))
	}
	return names
}

func (u *upgrade) shuffled() []string {
	all := slices.Concat(u.replicas(1, saga.Services...), u.replicas(2, saga.Services...))
	u.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// replace replaces the replicas, one after the other.
func (u *upgrade) replace(names []string, binaries string) {
	for _, name := range names {
		ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
		err := u.fleet.Replace(ctx, name, binaries)
		cancel()
		if err != nil {
			u.t.Error(err)
			return
		}
	}
}

// replaceSlowly has a rotation end by each mix of the versions.
func (u *upgrade) replaceSlowly(names []string, binaries string) {
	ctx, cancel := context.WithTimeout(u.t.Context(), 2*time.Minute)
	defer cancel()
	for _, name := range names {
		u.replace([]string{name}, binaries)
		ended, err := u.client.NATS.SubscribeSync(bus.LogSubject("*", "*", saga.Completed))
		if err == nil {
			_, err = ended.NextMsgWithContext(ctx)
			err = errors.Join(err, ended.Unsubscribe())
		}
		if err != nil {
			u.t.Errorf("no rotation has ended since %s was replaced: %v", name, err)
			return
		}
	}
}

// rotateBack goes back while rotations go on: once none is under way by the newer
// flow the schedulers, so that none begins by it any more, and then the others. Of
// the one that is held all the same the older version says what it is.
func (u *upgrade) rotateBack() {
	u.replace(slices.Concat(u.replicas(1, saga.Scheduler), u.replicas(2, saga.Scheduler)), u.older)
	u.rotateThrough(u.crowd, func(func() int) {
		var both sync.WaitGroup
		defer both.Wait()
		both.Go(u.refusesWhatItCannotRead)
		u.replaceSlowly(slices.DeleteFunc(u.shuffled(), func(name string) bool { return strings.HasPrefix(name, saga.Scheduler) }), u.older)
	})
	u.endedBy(saga.Alternating)
}

func (u *upgrade) refusesWhatItCannotRead() {
	ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
	defer cancel()
	answer, err := u.client.Ask(ctx, held, contain)
	if err != nil || answer.GetOutcome() != pawlv1.Outcome_OUTCOME_REJECTED || !holdsAll(answer.GetReason(), []string{newerFlow, "--break-glass"}) {
		u.t.Errorf("an emergency of what another version rotates: %v, %v", answer, err)
	}
}

// worst replaces the schedulers first, and waits until every service of before has
// met the newer flow.
func (u *upgrade) worst() {
	u.replace(slices.Concat(u.replicas(1, saga.Scheduler), u.replicas(2, saga.Scheduler)), u.newer)
	others := slices.DeleteFunc(slices.Clone(saga.Services), func(s string) bool { return s == saga.Scheduler })
	for _, service := range others {
		if service != saga.Auditor { // it has no steps
			u.meets(service)
		}
		u.replace(u.replicas(1, service), u.newer)
	}
	u.replaceSlowly(u.replicas(2, others...), u.newer)
}

// meets returns once a replica of the service has put off what it does not know.
func (u *upgrade) meets(service string) {
	ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
	defer cancel()
	before := -1
	for {
		met, err := u.putOff(service)
		if before < 0 {
			before = met
		}
		if err != nil || met > before {
			if err != nil {
				u.t.Error(err)
			}
			return
		}
		if !pause(ctx, 20*time.Millisecond) {
			u.t.Errorf("no %s of the older version has met the flow %s", service, newerFlow)
			return
		}
	}
}

// putOff counts the triggers that the service has put off because of the newer flow.
func (u *upgrade) putOff(service string) (times int, err error) {
	files, err := filepath.Glob(filepath.Join(u.fleet.Logs, service+"-*.log"))
	for _, file := range files {
		text, failed := os.ReadFile(file)
		err = errors.Join(err, failed)
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "trigger deferred") && strings.Contains(line, newerFlow) && !strings.Contains(line, `"credential":"`+held+`"`) {
				times++
			}
		}
	}
	return times, err
}

// saysWhatItCannotRead has the older command line meet a rotation by the newer flow.
func (u *upgrade) saysWhatItCannotRead() {
	older := pawl{buildPawl(u.t), u.site.Dir} // which takes as long as the machine is busy
	ctx, cancel := context.WithTimeout(u.t.Context(), time.Minute)
	defer cancel()
	if _, err := u.client.Do(ctx, held, adopt); err != nil {
		u.t.Fatal(err)
	}
	answer, err := u.ask(ctx, held, rotate)
	if err != nil {
		u.t.Fatal(err)
	}
	if _, err := u.client.Await(ctx, held, answer.GetRotation(), rehearsed); err != nil {
		u.t.Fatal(err)
	}
	for _, args := range [][]string{{"status", held}, {"history", held}, {"trace", answer.GetRotation()}, {"schedule", held}, {"doctor", held}, {"incident", answer.GetRotation()}} {
		out, err := older.command(ctx, args...).CombinedOutput()
		if n := strings.Count(string(out), "this version of Pawl does not know it"); n != 1 || strings.Contains(string(out), "panic") {
			u.t.Errorf("pawl %s (%v) does not say once that it does not know the flow:\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// endedBy asserts how the newest rotation of each alternating credential went.
func (u *upgrade) endedBy(flow string) {
	for _, name := range u.crowd.names {
		log, err := u.client.ReadNewest(u.t.Context(), name)
		if err != nil {
			u.t.Fatal(err)
		}
		if went := log.Records[0].Body.GetRequested().GetFlow(); u.crowd.by[name].strategy == saga.Alternating && went != flow {
			u.t.Errorf("the newest rotation of %s went by %s, want %s", name, went, flow)
		}
	}
}

// noneIsLost asserts that all rotations have completed, those by the newer flow
// with its event, and that the trail holds that and verifies.
func (u *upgrade) noneIsLost() {
	ctx, cancel := context.WithTimeout(u.t.Context(), 2*time.Minute)
	defer cancel()
	rehearsals, flows := map[string]bool{}, map[string]int{}
	for _, name := range u.crowd.names {
		logs, err := u.logs(ctx, name)
		if err != nil {
			u.t.Fatal(err)
		}
		for _, log := range logs {
			flow, events := log.Records[0].Body.GetRequested().GetFlow(), site.Events(log)
			flows[flow]++
			if log.Find(saga.Completed) == nil {
				u.t.Errorf("%s of %s (%s) has not completed: %v %s", log.Rotation, name, flow, events, failureOf(log))
			}
			at := slices.Index(events, rehearsed)
			if (flow == newerFlow) != (at > 0) || at > 0 && events[at-1] != saga.Verified {
				u.t.Errorf("%s of %s (%s) went %v", log.Rotation, name, flow, events)
			}
			if at > 0 {
				rehearsals[name+"/"+log.Rotation] = true
			}
		}
	}
	u.t.Logf("rotations and adoptions by flow: %v", flows)
	u.recorded(ctx, rehearsals)
	for _, binary := range []string{buildPawl(u.t), filepath.Join(u.newer, "pawl")} {
		if err := (pawl{binary, u.site.Dir}).does(ctx, "audit", "verify"); err != nil {
			u.t.Error(err)
		}
	}
}

// logs are all rotations of a credential.
func (u *upgrade) logs(ctx context.Context, credential string) (all []bus.Log, err error) {
	happened, err := u.client.ReadSince(ctx, credential, u.began)
	for _, h := range happened {
		if h.Event == saga.Requested && err == nil {
			var log bus.Log
			log, err = u.client.ReadRotation(ctx, credential, h.Rotation)
			all = append(all, log)
		}
	}
	return all, err
}

// recorded waits until the trail holds each of the rehearsals, with its owner.
func (u *upgrade) recorded(ctx context.Context, rehearsals map[string]bool) {
	var left map[string]bool
	for {
		left = map[string]bool{}
		for of := range rehearsals {
			left[of] = true
		}
		_, err := u.client.Scan(ctx, bus.StreamAudit, "pawl.audit.rotation.*", bus.Start{}, func(m *jetstream.RawStreamMsg) bool {
			r := &pawlv1.AuditRecord{}
			if err := bus.Decode(m.Header, m.Data, r); err != nil {
				u.t.Errorf("%s: %v", m.Subject, err)
			}
			if r.GetEvent() == string(rehearsed) && r.GetService() == saga.Verifier && r.GetFlow() == newerFlow {
				delete(left, r.GetCredential()+"/"+r.GetRotation())
			}
			return true
		})
		if err == nil && len(left) == 0 {
			return
		}
		if !pause(ctx, 200*time.Millisecond) {
			u.t.Errorf("the trail lacks the rehearsals of %v: %v", left, err)
			return
		}
	}
}

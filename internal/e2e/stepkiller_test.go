package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
)

// crashPoints finds every point of every kind by performing each once,
// undisturbed, as the credential "first-KIND". What a step does is not listed
// anywhere by hand: the log names each effect.
func crashPoints(w *world) map[string][]string {
	w.t.Helper()
	var first []drill
	for _, k := range kinds {
		first = append(first, drill{credential: "first-" + k.name, kind: k, what: "KILL"})
	}
	w.atOnce(first)
	found := map[string][]string{}
	for _, d := range first {
		log, err := w.client.ReadNewest(w.t.Context(), d.credential)
		if err != nil {
			w.t.Fatal(err)
		}
		found[d.kind.name] = points(log, d.kind)
		if n := len(found[d.kind.name]); n < 6 {
			w.t.Fatalf("%s has only %d crash points", d.kind.name, n)
		}
	}
	return found
}

// deck deals out credentials that were laid out for the drills of one kind.
type deck struct {
	points map[string][]string
	dealt  map[string]int
}

// dealtAtMost is how many drills of one kind an installation is laid out for.
const dealtAtMost = 160

func layOut(apps *site.Apps, _ *pgserver.Server) (all []site.Credential) {
	n := 24
	if *full {
		n = dealtAtMost
	}
	for _, k := range kinds {
		all = append(all, k.credential("first-"+k.name, apps))
		n := n
		if k.own && !*full { // each is a cluster with sessions of its own
			n = 9
		}
		for i := range n {
			all = append(all, k.credential(fmt.Sprintf("%s-%d", k.name, i), apps))
		}
	}
	return all
}

// deal makes a drill at those points of the kind.
func (d *deck) deal(k kind, what string, points ...string) drill {
	name := fmt.Sprintf("%s-%d", k.name, d.dealt[k.name])
	d.dealt[k.name]++
	for i, p := range points {
		points[i] = strings.ReplaceAll(p, "first-"+k.name, name)
	}
	return drill{name, k, points, what}
}

// TestCrashesAtEveryPoint is the proof that no crash loses a credential. One
// installation serves its parts, which in a sample are drawn by seed.
func TestCrashesAtEveryPoint(t *testing.T) {
	w := newWorldOn(t, 2, twoNodes(t), func(apps *site.Apps) []site.Credential { return layOut(apps, nil) })
	d := &deck{crashPoints(w), map[string]int{}}
	t.Run("OwnerDiesBeforeAndAfterEachEffectAndAppend", func(t *testing.T) { w.in(t).atOnce(ownerDies(w, d)) })
	t.Run("SecondCrashDuringRecovery", func(t *testing.T) { w.in(t).atOnce(diesTwice(w, d)) })
	t.Run("AdminFindsAnOlderFileOfItsOwnLogin", func(t *testing.T) { olderFile(w.in(t), d) })
	t.Run("EmergencyDuringAnyStep", func(t *testing.T) { emergencies(w.in(t), d) })
	t.Run("ZombieWakesAfterItsStepWasTakenOver", func(t *testing.T) { w.in(t).atOnce(zombies(w, d)) })
}

// twoNodes is a primary, a worker, and the worker's replica.
func twoNodes(t *testing.T) []site.Node {
	t.Helper()
	primary := running(t)(pgserver.Start(t.Context(), pgserver.Options{Settings: loudestLogging()}))
	worker := running(t)(pgserver.Start(t.Context(), pgserver.Options{Settings: loudestLogging()}))
	return []site.Node{{Name: "primary", Server: primary}, {Name: "worker", Server: worker},
		{Name: "replica", Server: running(t)(worker.Standby(t.Context(), pgserver.Options{})), ReplicaOf: "worker"}}
}

func ownerDies(w *world, d *deck) (drills []drill) {
	for _, k := range kinds {
		points := d.points[k.name]
		n := len(points)
		if !*full {
			n = 2
		}
		for _, i := range w.random.Perm(len(points))[:n] {
			drills = append(drills, d.deal(k, "KILL", points[i]))
		}
	}
	return drills
}

// someKinds are every second one in a sample, by seed.
func someKinds(w *world) (some []kind) {
	for i, at := range w.random.Perm(len(kinds)) {
		if *full || i%2 == 0 {
			some = append(some, kinds[at])
		}
	}
	return some
}

func diesTwice(w *world, d *deck) (drills []drill) {
	n := 1
	if *full {
		n = 40
	}
	for _, k := range someKinds(w) {
		for range n {
			pair := w.random.Perm(len(d.points[k.name]))[:2]
			drills = append(drills, d.deal(k, "KILL", d.points[k.name][pair[0]], d.points[k.name][pair[1]]))
		}
	}
	return drills
}

// olderFile puts the file of Pawl's own login back to what it was before a
// rotation, kills whoever has sessions open, and rotates again.
func olderFile(w *world, d *deck) {
	ctx := w.t.Context()
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.own })
	drill := d.deal(kinds[i], "KILL")
	file := w.site.Own(drill.credential)
	older, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.run(ctx, drill); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, older, 0o600); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range w.fleet.Names() {
		if strings.HasPrefix(name, saga.DBRotator) || strings.HasPrefix(name, saga.Verifier) {
			_ = w.fleet.Signal(name, syscall.SIGKILL) // it may have just died
		}
	}
	drill.kind.before = nil
	if err := w.run(ctx, drill); err != nil {
		w.t.Error(err)
	}
}

func zombies(w *world, d *deck) (drills []drill) {
	n := 1
	if *full {
		n = 20
	}
	for _, k := range someKinds(w) {
		// After its append a step has no effect left that could come late.
		// Whoever looks for sessions has then to wait, which nobody hears of. What is
		// sealed late lies there, of no use, until the next rotation erases it.
		points := slices.DeleteFunc(slices.Clone(d.points[k.name]), func(p string) bool {
			return strings.HasSuffix(p, ".append.after") || strings.Contains(p, ".look for ") || strings.Contains(p, ".seal(")
		})
		for _, i := range w.random.Perm(len(points))[:min(n, len(points))] {
			drills = append(drills, d.deal(k, "STOP", points[i]))
		}
	}
	return drills
}

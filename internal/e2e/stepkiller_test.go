package e2e

import (
	"slices"
	"strings"
	"testing"

	"pawl.dev/internal/e2e/site"
)

// crashPoints finds every point of every kind by performing each once,
// undisturbed, as the credential "first-KIND". What a step does is not listed
// anywhere by hand: the log names each effect.
func crashPoints(w *world) map[string][]string {
	w.t.Helper()
	found := map[string][]string{}
	for _, k := range kinds {
		credential := "first-" + k.name
		if err := w.run(w.t.Context(), drill{credential: credential, kind: k, what: "KILL"}); err != nil {
			w.t.Fatalf("undisturbed %s: %v", k.name, err)
		}
		log, err := w.client.ReadNewest(w.t.Context(), credential)
		if err != nil {
			w.t.Fatal(err)
		}
		found[k.name] = points(log, k)
		w.t.Logf("%s: %d points", k.name, len(found[k.name]))
		if len(found[k.name]) < 6 {
			w.t.Fatalf("%s has only %d crash points: %v", k.name, len(found[k.name]), found[k.name])
		}
	}
	return found
}

// most is how many drills of one kind an installation is laid out for.
const most = 70

func stage(t *testing.T) *world {
	apps := site.NewApps()
	var credentials []site.Credential
	for _, k := range kinds {
		credentials = append(credentials, k.credential("first-"+k.name, apps))
		for _, name := range numbered(k.name, most) {
			credentials = append(credentials, k.credential(name, apps))
		}
	}
	return newWorld(t, 2, apps, credentials)
}

// TestOwnerDiesAtEachPointOfEachStep kills the owner of each step before and
// after each of its effects, and before and after the append of its result.
func TestOwnerDiesAtEachPointOfEachStep(t *testing.T) {
	w := stage(t)
	var drills []drill
	all := crashPoints(w)
	for _, k := range kinds {
		for i, p := range all[k.name] {
			name := numbered(k.name, most)[i]
			drills = append(drills, drill{name, k, []string{strings.ReplaceAll(p, "first-"+k.name, name)}, "KILL"})
		}
	}
	t.Logf("%d crash points", len(drills))
	w.random.Shuffle(len(drills), func(i, j int) { drills[i], drills[j] = drills[j], drills[i] })
	if !*full {
		drills = drills[:min(40, len(drills))]
	}
	w.atOnce(drills)
}

// TestSecondCrashDuringRecovery kills twice: once in the run, once after.
func TestSecondCrashDuringRecovery(t *testing.T) {
	w := stage(t)
	all := crashPoints(w)
	var drills []drill
	for _, k := range kinds {
		n := 4
		if *full {
			n = most
		}
		for _, name := range numbered(k.name, n) {
			pair := []string{all[k.name][w.random.IntN(len(all[k.name]))], all[k.name][w.random.IntN(len(all[k.name]))]}
			if pair[0] == pair[1] {
				pair = pair[:1]
			}
			for i := range pair {
				pair[i] = strings.ReplaceAll(pair[i], "first-"+k.name, name)
			}
			drills = append(drills, drill{name, k, slices.Clone(pair), "KILL"})
		}
	}
	w.atOnce(drills)
}

// TestZombieWakesAfterItsStepWasTakenOver stops a replica in the middle of a
// step, lets the other one finish the rotation, and wakes it.
func TestZombieWakesAfterItsStepWasTakenOver(t *testing.T) {
	w := stage(t)
	all := crashPoints(w)
	var drills []drill
	for _, k := range kinds {
		n := 2
		if *full {
			n = len(all[k.name])
		}
		for i, at := range w.random.Perm(len(all[k.name]))[:n] {
			name := numbered(k.name, most)[i]
			drills = append(drills, drill{name, k, []string{strings.ReplaceAll(all[k.name][at], "first-"+k.name, name)}, "STOP"})
		}
	}
	w.atOnce(drills)
}

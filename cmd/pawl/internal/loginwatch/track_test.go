package loginwatch

import (
	"fmt"
	"os"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
)

var (
	settings = inventory.WatchLogins{Failures: 3, Within: time.Minute, Quiet: 10 * time.Minute, Repeat: time.Hour}
	began    = time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
)

func wrong(at time.Duration, address string) failure {
	return failure{key: key{FailedLogins, "app", address}, At: began.Add(at), SQLState: "28P01", Credential: "shop"}
}

// announced returns what was announced since the last time, as "state first count".
func (t *tracker) announced() (all []string) {
	for _, a := range t.out {
		all = append(all, fmt.Sprint(a.state, " ", a.alert.GetStartsAt().AsTime().Sub(began), " ", a.alert.GetAnnotations()["count"]))
	}
	t.out = nil
	return all
}

func TestAlertLastsAsLongAsFailuresGoOn(t *testing.T) {
	tr := newTracker("main", "one", settings)
	for _, step := range []struct {
		name string
		at   time.Duration
		tick bool
		want string
	}{
		{"too few", 0, false, "[]"},
		{"too slow", 61 * time.Second, false, "[]"},
		{"two within a minute", 62 * time.Second, false, "[]"},
		{"the third", 63 * time.Second, false, "[firing 1m1s 3]"},
		{"more", 5 * time.Minute, false, "[]"},
		{"not yet quiet", 15 * time.Minute, true, "[]"},
		{"still the same", 15 * time.Minute, false, "[]"},
		{"logged late", 14 * time.Minute, false, "[]"},
		{"on and on", 24 * time.Minute, false, "[]"}, {"on and on", 33 * time.Minute, false, "[]"}, {"on and on", 42 * time.Minute, false, "[]"},
		{"on and on", 51 * time.Minute, false, "[]"}, {"on and on", 60 * time.Minute, false, "[]"},
		{"after an hour", 64 * time.Minute, false, "[repeated 1m1s 12]"},
		{"quiet", 75 * time.Minute, true, "[resolved 1m1s 12]"},
		{"quiet is said once", 76 * time.Minute, true, "[]"},
		{"anew", 80 * time.Minute, false, "[]"}, {"anew", 80*time.Minute + 2, false, "[]"},
		{"another episode", 80*time.Minute + 3, false, "[firing 1h20m0s 3]"},
		{"quiet without anybody looking", 100 * time.Minute, false, "[resolved 1h20m0s 3]"},
	} {
		if step.tick {
			tr.tick(began.Add(step.at))
		} else {
			tr.failed(wrong(step.at, "10.0.0.9"))
		}
		if got := fmt.Sprint(tr.announced()); got != step.want {
			t.Fatalf("%s, at %s: announced %s, want %s", step.name, step.at, got, step.want)
		}
	}
}

func TestEachRoleAndAddressIsCountedApart(t *testing.T) {
	tr := newTracker("main", "one", settings)
	for _, address := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.2"} {
		tr.failed(wrong(0, address))
	}
	other := wrong(0, "10.0.0.1")
	other.Role = "app_b"
	tr.failed(other)
	if got := tr.announced(); got != nil {
		t.Fatalf("announced %v", got)
	}
	tr.failed(wrong(1, "10.0.0.1"))
	other.Alert = RetiredCredentialUsed // once is enough
	tr.failed(other)
	if len(tr.out) != 2 || tr.out[0].alert.GetFingerprint() == tr.out[1].alert.GetFingerprint() {
		t.Fatalf("announced %v", tr.out)
	}
}

func TestFloodKeepsItsMemoryAndAnAlertUnderWay(t *testing.T) {
	tr := newTracker("main", "one", settings)
	for range 3 {
		tr.failed(wrong(0, "10.0.0.9"))
	}
	for i := range 100_000 { // one each
		tr.failed(wrong(time.Duration(i)*time.Microsecond, fmt.Sprint("2001:db8::", i)))
	}
	if got := tr.announced(); len(got) != 1 || tr.windows.Len() != maxWindows || tr.evicted == 0 {
		t.Errorf("announced %d, %d windows, %d evicted", len(got), tr.windows.Len(), tr.evicted)
	}
	for i := range 300_000 { // three each
		tr.failed(wrong(time.Second, fmt.Sprint("2001:db8:1::", i/3)))
		tr.out = tr.out[:0]
	}
	if tr.windows.Len() > maxWindows || tr.episodes.Len() > maxEpisodes {
		t.Errorf("%d windows, %d episodes", tr.windows.Len(), tr.episodes.Len())
	}
	dir := t.TempDir()
	s := state{Version: 1}
	tr.save(&s)
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(stateFile(dir)); err != nil || info.Size() > 4<<20 {
		t.Errorf("the position takes %d bytes (%v)", info.Size(), err)
	}
	tr.tick(began.Add(24 * time.Hour))
	if tr.windows.Len() != 0 || tr.episodes.Len() != 0 {
		t.Errorf("a day later %d windows, %d episodes", tr.windows.Len(), tr.episodes.Len())
	}
}

func TestRestartGoesOnCounting(t *testing.T) {
	tr := newTracker("main", "one", settings)
	tr.failed(wrong(0, "10.0.0.9"))
	tr.failed(wrong(1, "10.0.0.9"))
	for range 3 {
		tr.failed(wrong(0, "10.0.0.8"))
	}
	tr.out = nil
	dir := t.TempDir()
	s := state{Version: 1}
	tr.save(&s)
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	read, ok, err := load(dir)
	if err != nil || !ok {
		t.Fatal(err)
	}
	tr = newTracker("main", "one", settings)
	tr.restore(read)
	tr.failed(wrong(2, "10.0.0.9"))
	tr.failed(wrong(2, "10.0.0.8"))
	if got := fmt.Sprint(tr.announced()); got != "[firing 0s 3]" {
		t.Errorf("announced %s", got)
	}
}

func TestPositionThatCannotBeReadIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"", "{", `{"version":2}`, "[]"} {
		if err := os.WriteFile(stateFile(dir), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := load(dir); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

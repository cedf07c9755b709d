package torture

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus/bustest"
)

// TestNoAcknowledgedMessageIsLostByAPowerCut traces a server's system calls under
// load, and rebuilds what a disk would hold if the power were cut at random moments.
func TestNoAcknowledgedMessageIsLostByAPowerCut(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing: deploy/debian-for-tests.sh strace")
	}
	random := newRandom(t)
	runs, cuts := 1, 6
	if *full {
		runs, cuts = 5, 10
	}
	for range runs {
		dir := t.TempDir()
		if _, err := embedded.CreateKeys(inventoryOf(dir, "")); err != nil {
			t.Fatal(err)
		}
		known, trace, address := newStored(), filepath.Join(dir, "trace"), bustest.FreeAddress(t)
		began := time.Now()
		p := start(t, dir, address, strace(trace)...)
		if err := p.up(); err != nil {
			t.Fatalf("%v\n%s", err, logOf(dir))
		}
		let := time.Now()
		loaded := make(chan error)
		go func() { loaded <- known.load(dir, address, random) }()
		time.Sleep(6 * time.Second)
		ended := time.Now()
		p.kill()
		if err := <-loaded; err != nil {
			t.Logf("load: %v", err)
		}
		if err := traced(trace); err != nil {
			t.Fatal(err)
		}
		calls, err := readTrace(trace)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d calls, %d acknowledged messages", len(calls), known.count)
		for range cuts {
			from := let
			if random.IntN(4) == 0 {
				from = began // also while the server makes its streams
			}
			cut := from.Add(time.Duration(random.Int64N(int64(ended.Sub(from)))))
			d, err := play(calls, dir, cut)
			if err != nil {
				t.Fatal(err)
			}
			after := t.TempDir()
			err = errors.Join(os.CopyFS(filepath.Join(after, "keys"), os.DirFS(filepath.Join(dir, "keys"))),
				os.CopyFS(filepath.Join(after, "data", "clients"), os.DirFS(filepath.Join(dir, "data", "clients"))), d.rebuild(dir, after, random))
			if err != nil {
				t.Fatal(err)
			}
			acknowledged := known.before(cut)
			address := bustest.FreeAddress(t)
			p := start(t, after, address)
			if err := p.up(); err != nil {
				t.Fatalf("cut %v after the start: %v\n%s", cut.Sub(began), err, logOf(after))
			}
			check(t, acknowledged, after, address, 0)
			p.kill()
			t.Logf("cut after %v: %d of %d changes of names are synced, %d messages", cut.Sub(began).Round(time.Millisecond), d.synced, len(d.names), acknowledged.count)
			if err := os.RemoveAll(after); err != nil {
				t.Fatal(err)
			}
		}
	}
}

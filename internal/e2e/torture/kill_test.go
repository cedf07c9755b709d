package torture

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
)

// perStore is how many kills one store goes through: it grows, and each look reads
// all of it.
const perStore = 10

func TestNoAcknowledgedMessageIsLostByAKill(t *testing.T) {
	random := newRandom(t)
	n := *kills
	if n == 0 {
		if n = 24; *full {
			n = 2000
		}
	}
	total, began := 0, time.Now()
	for done := 0; done < n; done += perStore {
		dir := t.TempDir()
		if _, err := embedded.CreateKeys(inventoryOf(dir, "")); err != nil {
			t.Fatal(err)
		}
		known := newStored()
		for k := range min(perStore, n-done) {
			address := bustest.FreeAddress(t)
			p := start(t, dir, address)
			if random.IntN(5) == 0 { // while it starts
				time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
				p.kill()
				continue
			}
			if err := p.up(); err != nil {
				t.Fatalf("kill %d: %v\n%s", done+k, err, logOf(dir))
			}
			check(t, known, dir, address, done+k)
			loaded := make(chan error)
			go func() { loaded <- known.load(dir, address, random) }()
			time.Sleep(time.Duration(50+random.IntN(400)) * time.Millisecond)
			p.kill()
			if err := <-loaded; err != nil && !strings.Contains(err.Error(), "connect") && !strings.Contains(err.Error(), "EOF") {
				t.Logf("load: %v", err)
			}
		}
		address := bustest.FreeAddress(t)
		p := start(t, dir, address)
		if err := p.up(); err != nil {
			t.Fatalf("after kill %d: %v\n%s", done+perStore, err, logOf(dir))
		}
		check(t, known, dir, address, done+perStore)
		p.kill()
		total += known.count
		t.Logf("%d kills, %d acknowledged messages so far", min(done+perStore, n), total)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills, %d acknowledged messages, in %v", n, total, time.Since(began).Round(time.Second))
}

// check fails the test if the server does not hold what was acknowledged.
func check(t *testing.T, known *stored, dir, address string, kill int) {
	t.Helper()
	b, err := join(dir, address, bus.Provisioner)
	if err != nil {
		t.Fatal(err)
	}
	defer b.NATS.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	lost, err := known.missing(ctx, b)
	if err != nil {
		t.Fatalf("after kill %d: %v\n%s", kill, err, logOf(dir))
	}
	if len(lost) > 0 {
		t.Fatalf("after kill %d, %d of %d acknowledged messages are missing:\n%s\n%s", kill, len(lost), known.count, strings.Join(lost[:min(10, len(lost))], "\n"), logOf(dir))
	}
}

// logOf is the end of what the servers said.
func logOf(dir string) string {
	text, _ := os.ReadFile(filepath.Join(dir, "log"))
	return string(text[max(0, len(text)-4000):])
}

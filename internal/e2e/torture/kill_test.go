package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
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
	var killed, acknowledged atomic.Int64
	began := time.Now()
	// Most of a kill is waiting, so as many stores as -parallel says are killed side by side.
	t.Run("store", func(t *testing.T) {
		for first := 0; first < n; first += perStore {
			own := rand.New(rand.NewPCG(random.Uint64(), 0))
			t.Run(strconv.Itoa(first/perStore), func(t *testing.T) {
				t.Parallel()
				times := min(perStore, n-first)
				count := killStore(t, hostOf(first/perStore), times, own)
				t.Logf("%d kills, %d acknowledged messages so far", killed.Add(int64(times)), acknowledged.Add(int64(count)))
			})
		}
	})
	t.Logf("%d kills, %d acknowledged messages, in %v", killed.Load(), acknowledged.Load(), time.Since(began).Round(time.Second))
}

// killStore kills the server of one store so many times, and returns how many
// messages it acknowledged.
func killStore(t *testing.T, host string, times int, random *rand.Rand) int {
	dir := t.TempDir()
	if _, err := embedded.CreateKeys(inventoryOf(dir, "")); err != nil {
		t.Fatal(err)
	}
	known := newStored()
	for kill := range times {
		address := freeAddress(t, host)
		p := start(t, dir, address)
		if random.IntN(5) == 0 { // while it starts
			time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
			p.kill()
			continue
		}
		if err := p.up(); err != nil {
			t.Fatalf("kill %d: %v\n%s", kill, err, logOf(dir))
		}
		check(t, known, dir, address, kill)
		loaded := make(chan error)
		go func() { loaded <- known.load(dir, address, random) }()
		// By what was stored, since a busy machine stores little in any given time.
		for enough := known.total() + 1 + random.IntN(200); known.total() < enough; {
			select {
			case <-known.grew:
			case err := <-loaded:
				t.Fatalf("kill %d: the load ended before its server: %v\n%s", kill, err, logOf(dir))
			}
		}
		time.Sleep(time.Duration(random.IntN(5000)) * time.Microsecond)
		p.kill()
		if err := <-loaded; err != nil && !strings.Contains(err.Error(), "connect") && !strings.Contains(err.Error(), "EOF") {
			t.Logf("load: %v", err)
		}
	}
	address := freeAddress(t, host)
	p := start(t, dir, address)
	if err := p.up(); err != nil {
		t.Fatalf("after kill %d: %v\n%s", times, err, logOf(dir))
	}
	check(t, known, dir, address, times)
	p.kill()
	return known.total()
}

// hostOf is a loopback address of the store's own: on a shared one another store's
// server could take the port of one that was killed.
func hostOf(store int) string { return fmt.Sprintf("127.1.%d.%d", store/250, store%250+1) }

func freeAddress(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// check fails the test if the server does not hold what was acknowledged.
func check(t *testing.T, known *stored, dir, address string, kill int) {
	t.Helper()
	b, err := join(dir, address, bus.Provisioner)
	if err != nil {
		t.Fatal(err)
	}
	defer b.NATS.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // a busy machine takes long to read it all
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

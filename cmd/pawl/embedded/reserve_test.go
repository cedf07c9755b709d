package embedded

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestReserveIsHeldWhileTheDiskIsFull: what is held back then helps nobody.
func TestReserveIsHeldWhileTheDiskIsFull(t *testing.T) {
	at := onItsOwnDisk(t, 64)
	if at == "" {
		return
	}
	inv := &inventory.Inventory{DataDir: at}
	conditions := &condition.Set{}
	d, err := newDisk(Options{Inventory: inv, Log: slog.New(slog.DiscardHandler), Conditions: conditions})
	if err != nil {
		t.Fatal(err)
	}
	space := func() uint64 {
		t.Helper()
		now, err := spaceOf(at)
		if err != nil {
			t.Fatal(err)
		}
		return now.free
	}
	before := space()
	d.guard()
	if got := before - space(); got != 4<<20 {
		t.Fatalf("the reserve takes %d bytes of a disk of 64 MiB, not 4 MiB", got)
	}
	if list := conditions.List(); len(list) != 1 || list[0].Failing { // less than 1 GiB is free
		t.Errorf("with a reserve: %v", list)
	}
	x := torture{t: t}
	x.fill(filepath.Join(at, "filler"))
	d.guard()
	if got := space(); got < 4<<20 {
		t.Errorf("%d bytes are free once the disk is full", got)
	}
	if err := conditions.Err(); err == nil || !strings.Contains(err.Error(), "is full") {
		t.Errorf("on a full disk: %v", err)
	}
	d.guard() // what is free now is not made a reserve again
	if d.held() {
		t.Error("the reserve was made again on a full disk")
	}
	if err := os.Remove(filepath.Join(at, "filler")); err != nil {
		t.Fatal(err)
	}
	d.guard()
	if !d.held() || conditions.Err() != nil {
		t.Errorf("once there is space: held %v, %v", d.held(), conditions.Err())
	}
}

// TestFailedRestartIsNotTriedAgain: the address is taken while the server
// restarts, and free again later.
func TestFailedRestartIsNotTriedAgain(t *testing.T) {
	conditions := &condition.Set{}
	s, inv := startOn(t, t.TempDir(), conditions)
	s.stop()
	s.watching.Wait() // from here on the test watches
	s.end()
	l := listen(t, inv.NATS.Listen)
	ended := make(chan struct{})
	go func() { defer close(ended); s.restore(t.Context(), "a test") }()
	for conditions.Err() == nil || !strings.Contains(conditions.Err().Error(), "address already in use") {
		select {
		case <-ended:
			t.Fatal("it restarted on an address that is taken")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if _, err := s.InProcessConn(); err == nil {
		t.Error("it connects to a server that does not run")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := conditions.Err(); err != nil {
		t.Error(err)
	}
	publish(t, inv, s)
}

// grown is what was measured last.
func (d *disk) grown() (bytes uint64, days float64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bytes, d.days
}

// TestDaysLeftForgetsTheDayAtARestart: growth is read from the streams.
func TestDaysLeftForgetsTheDayAtARestart(t *testing.T) {
	dir := t.TempDir()
	s, inv := startOn(t, dir, nil)
	if err := s.disk.grow(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, days := s.disk.grown(); days != 0 {
		t.Errorf("%v days are left though nothing grows", days)
	}
	for range 50 {
		publish(t, inv, s)
	}
	measured := func() (bytes uint64, days float64) {
		t.Helper()
		s.disk.guard()
		if err := s.disk.grow(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		return s.disk.grown()
	}
	bytes, days := measured()
	if bytes < 50*1000 || days <= 0 {
		t.Fatalf("%d bytes, %v days", bytes, days)
	}
	if want := float64(16<<30) / float64(bytes); days > want*1.1 { // that stream's limit, if not the disk
		t.Errorf("%v days are left at %d bytes a day, want at most %v", days, bytes, want)
	}
	s.Stop()
	s, _ = startOnIn(t, inv, nil)
	again, left := measured()
	if again != bytes || left < days/2 || left > days*2 {
		t.Errorf("after a restart %d bytes and %v days, not %d and %v", again, left, bytes, days)
	}
}

func startOn(t *testing.T, dir string, conditions *condition.Set) (*Server, *inventory.Inventory) {
	t.Helper()
	inv, err := inventory.Load(configuration(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeys(inv); err != nil {
		t.Fatal(err)
	}
	return startOnIn(t, inv, conditions)
}

func startOnIn(t *testing.T, inv *inventory.Inventory, conditions *condition.Set) (*Server, *inventory.Inventory) {
	t.Helper()
	s, err := Start(t.Context(), Options{Inventory: inv, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Conditions: conditions})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s, inv
}

// publish stores a note of about 1 KB.
func publish(t *testing.T, inv *inventory.Inventory, s *Server) {
	t.Helper()
	o, err := bus.For(inv, bus.Operator)
	if err != nil {
		t.Fatal(err)
	}
	o.Server = s
	b, err := bus.Connect(o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.NATS.Close()
	if err := b.Publish(t.Context(), bus.NoteSubject(bus.Operator), &pawlv1.Note{Kind: "test", Text: strings.Repeat("x", 1000)}, nil); err != nil {
		t.Fatal(err)
	}
}

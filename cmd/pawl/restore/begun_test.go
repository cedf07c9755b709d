package restore

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/bus"
)

// TestRestoreDeletesNoStoreThatItHasNotBegun: a person has given up a restore, and
// put the store back by hand.
func TestRestoreDeletesNoStoreThatItHasNotBegun(t *testing.T) {
	t.Parallel()
	i := install(t)
	file := filepath.Join(t.TempDir(), "backup")
	i.up(func(join func(string) *bus.Bus) { i.fill(join); i.backup(file) })
	if err := os.WriteFile(provision.Restoring(i.inv), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := i.restore(file); !errors.Is(err, ErrUsage) {
		t.Fatalf("%v", err)
	}
	if err := os.Remove(provision.Restoring(i.inv)); err != nil {
		t.Fatal(err)
	}
	i.up(func(join func(string) *bus.Bus) {
		if all := i.contents(join(bus.Provisioner))[bus.StreamLog]; len(all) < messages {
			t.Errorf("%d events are left", len(all))
		}
	})
}

// TestSecondRestoreLeavesTheFirstAlone, at whatever moment it comes.
func TestSecondRestoreLeavesTheFirstAlone(t *testing.T) {
	t.Parallel()
	i := install(t)
	file := filepath.Join(t.TempDir(), "backup")
	i.up(func(join func(string) *bus.Bus) { i.fill(join); i.backup(file) })
	i.lose()
	var wait sync.WaitGroup
	done := make(chan struct{})
	wait.Go(func() {
		for refused := 0; ; refused++ {
			if _, err := os.Stat(filepath.Join(i.inv.DataDir, "nats", "jetstream")); err == nil {
				if _, err := i.restore(file); err == nil {
					t.Error("two restores at once")
				}
				return
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	_, err := i.restore(file)
	close(done)
	wait.Wait()
	if err != nil {
		t.Fatal(err)
	}
}

package bus_test

import (
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
)

// TestServiceThatWasConnectedDuringARestoreSeesItsMark: the one that says that all is
// in doubt is replaced in the end.
func TestServiceThatWasConnectedDuringARestoreSeesItsMark(t *testing.T) {
	server := bustest.Start(t)
	service, provisioner := server.Connect(t, saga.SecretPublisher), server.Connect(t, bus.Provisioner)
	if mark, err := service.Restored(t.Context()); mark != nil || err != nil {
		t.Fatalf("%v, %v", mark, err)
	}
	for _, log := range []uint64{bus.Everything, 7} {
		if err := bus.Mark(t.Context(), provisioner.JetStream, bus.RestoreMark{At: time.Now(), Backup: time.Now(), Log: log}); err != nil {
			t.Fatal(err)
		}
		for until := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			mark, err := service.Restored(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if mark != nil && mark.Log == log {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("the service sees %v, want up to %d", mark, log)
			}
		}
	}
}

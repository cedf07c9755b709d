package natsconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// TestServerWithAnotherStoreKeyLosesNothing: such a server comes up as if it were
// new, and would delete what it cannot read when its streams are made again.
func TestServerWithAnotherStoreKeyLosesNothing(t *testing.T) {
	i := install(t)
	s := i.serve()
	i.mustProvision()
	if _, err := i.join(saga.Scheduler).Append(t.Context(), "c", "r1", saga.Requested, begin(), nil, 0); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	s.WaitForShutdown()

	key := filepath.Join(i.opts.Out, i.node.Name, "store-key.conf")
	if err := os.Rename(key, key+".right"); err != nil {
		t.Fatal(err)
	}
	i.write() // makes another
	s = i.serve()
	err := i.provision()
	for _, want := range []string{bus.StreamLog, "is not here any more", "nothing was made in its place", "store key", "delete " + provision.Record(i.inv)} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	s.Shutdown()
	s.WaitForShutdown()

	if err := os.Rename(key+".right", key); err != nil {
		t.Fatal(err)
	}
	i.serve()
	i.mustProvision()
	if log, err := i.join(saga.Scheduler).ReadNewest(t.Context(), "c"); err != nil || len(log.Records) != 1 {
		t.Errorf("%v, %v", log, err)
	}
}

func TestThreeReplicasWantACluster(t *testing.T) {
	i := install(t)
	i.serve()
	i.inv.NATS.Replicas = 3
	if err := i.provision(); err == nil || !strings.Contains(err.Error(), "nats.replicas: 3, but the server belongs to no cluster") {
		t.Errorf("%v", err)
	}
}

// TestProvisioningWaitsForTheServer, as beside a server that Compose starts.
func TestProvisioningWaitsForTheServer(t *testing.T) {
	i := install(t)
	done := make(chan error)
	go func() { done <- i.provision() }()
	i.serve()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	i.mustProvision() // beside what works already
}

package natsconf

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// TestServerWithoutItsStoreLosesNothing: a server on an empty volume comes up as if it
// were new.
func TestServerWithoutItsStoreLosesNothing(t *testing.T) {
	i := install(t)
	s := i.serve()
	i.mustProvision()
	if _, err := i.join(saga.Scheduler).Append(t.Context(), "c", "r1", saga.Requested, begin(), nil, 0); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	s.WaitForShutdown()

	data := filepath.Join(i.opts.Out, i.node.Name, "data")
	if err := os.Rename(data, data+".right"); err != nil {
		t.Fatal(err)
	}
	s = i.serve()
	err := i.provision()
	for _, want := range []string{bus.StreamLog, "is not here any more", "nothing was made in its place", "volume", "delete " + provision.Record(i.inv)} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	s.Shutdown()
	s.WaitForShutdown()

	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(data+".right", data); err != nil {
		t.Fatal(err)
	}
	i.serve()
	i.mustProvision()
	if log, err := i.join(saga.Scheduler).ReadNewest(t.Context(), "c"); err != nil || len(log.Records) != 1 {
		t.Errorf("%v, %v", log, err)
	}
}

// TestConfigurationOfAnEncryptedServerIsNotReplaced: without its key the server would
// lose its streams.
func TestConfigurationOfAnEncryptedServerIsNotReplaced(t *testing.T) {
	for name, file := range map[string]string{"nats.conf": "jetstream {\n  cipher: chachapoly\n  include \"store-key.conf\"\n}\n", "store-key.conf": "key: \"00\"\n"} {
		i := install(t)
		path := filepath.Join(i.opts.Out, i.node.Name, name)
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		before := contents(t, i.opts.Out)
		if _, err := Write(i.inv, i.opts); err == nil || !strings.Contains(err.Error(), "From an encrypted store to a plain one") {
			t.Errorf("%s: %v", name, err)
		}
		if after := contents(t, i.opts.Out); !maps.Equal(before, after) {
			t.Errorf("%s: something was written", name)
		}
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

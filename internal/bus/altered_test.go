package bus_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
)

// TestStreamThatLeaksItsMessagesIsSeenAndMended: somebody with the provisioner's key
// has had the server copy what is stored to a subject of his own.
func TestStreamThatLeaksItsMessagesIsSeenAndMended(t *testing.T) {
	server := bustest.Start(t)
	provisioner := server.Connect(t, bus.Provisioner)
	alterations := func() []string {
		t.Helper()
		told, err := bus.Alterations(t.Context(), provisioner.JetStream)
		if err != nil {
			t.Fatal(err)
		}
		return told
	}
	if told := alterations(); len(told) > 0 {
		t.Fatalf("as provisioned: %v", told)
	}
	change(t, provisioner.JetStream, bus.StreamNote, func(info *jetstream.StreamInfo) {
		info.Config.MaxAge = time.Hour
		info.Config.RePublish = &jetstream.RePublish{Source: ">", Destination: "elsewhere.>"}
	})
	if told := alterations(); len(told) != 1 || told[0] != "stream PAWL_NOTE was altered: Pawl has not set republish, max_age" {
		t.Errorf("told %v", told)
	}
	sizes, err := server.Connect(t, "scheduler").Sizes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sizes {
		if (s.Altered != "") != (s.Stream == bus.StreamNote) {
			t.Errorf("%s: %q", s.Stream, s.Altered)
		}
	}
	if err := bus.Provision(t.Context(), provisioner.JetStream, bus.Settings{Replicas: 1, AckWait: bus.DefaultAckWait}); err != nil {
		t.Fatal(err)
	}
	if told := alterations(); len(told) > 0 {
		t.Errorf("after provisioning: %v", told)
	}
}

package bus_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// change changes a stream as somebody who administers NATS would.
func change(t *testing.T, js jetstream.JetStream, stream string, how func(*jetstream.StreamInfo)) {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info := s.CachedInfo()
	how(info)
	if _, err := js.UpdateStream(t.Context(), info.Config); err != nil {
		t.Fatal(err)
	}
}

// TestStreamThatRefusesWritesIsToldUntilItTakesThem: what is refused is that which a
// rotation is made of; everything else looks well.
func TestStreamThatRefusesWritesIsToldUntilItTakesThem(t *testing.T) {
	server := bustest.Start(t)
	provisioner := server.Connect(t, bus.Provisioner).JetStream
	seed, err := bus.LoadSeed(server.SeedFile(saga.Scheduler))
	if err != nil {
		t.Fatal(err)
	}
	set := &condition.Set{}
	b, err := bus.Connect(bus.ConnectOptions{URL: server.URL, User: saga.Scheduler, Seed: seed, Conditions: set, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.NATS.Close)
	tells := func(when, want string) {
		t.Helper()
		got := ""
		if err := set.Err(); err != nil {
			got = err.Error()
		}
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	begin := func(credential string, seq uint64) error {
		_, err := b.Append(t.Context(), credential, "r1", saga.Requested, &pawlv1.Event{}, nil, seq)
		return err
	}
	if err := begin("a", 0); err != nil {
		t.Fatal(err)
	}
	if err := begin("a", 7); err == nil {
		t.Error("no conflict")
	}
	tells("after a conflict", "")

	change(t, provisioner, bus.StreamLog, func(info *jetstream.StreamInfo) { info.Config.MaxMsgs = 1 })
	if err := begin("b", 0); err == nil {
		t.Error("a full stream takes a message")
	}
	tells("full", "stream PAWL_ROTATION is full")
	b.ReviewStreams(t.Context())
	tells("still full", "stream PAWL_ROTATION is full")
	change(t, provisioner, bus.StreamLog, func(info *jetstream.StreamInfo) { info.Config.MaxMsgs = -1; info.Config.MaxBytes = 1 << 30 })
	b.ReviewStreams(t.Context())
	tells("with room again, and nobody has written", "")

	change(t, provisioner, bus.StreamDead, func(info *jetstream.StreamInfo) { info.Config.NoAck = true }) // as on a disk that was full
	dead := func() error {
		return b.Publish(t.Context(), bus.DeadSubject(saga.Scheduler), &pawlv1.Note{Kind: "x"}, nil)
	}
	if err := dead(); err == nil {
		t.Error("acknowledged")
	}
	tells("without an acknowledgement", "stream PAWL_DEAD: takes no writes")
	b.ReviewStreams(t.Context())
	tells("soon after", "stream PAWL_DEAD: takes no writes")
	change(t, provisioner, bus.StreamDead, func(info *jetstream.StreamInfo) { info.Config.NoAck = false })
	if err := dead(); err != nil {
		t.Error(err)
	}
	tells("written again", "")
	if err := provisioner.DeleteStream(t.Context(), bus.StreamLive); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), bus.LiveSubject(saga.Scheduler), &pawlv1.Note{Kind: "live"}, nil); err == nil {
		t.Error("stored nowhere")
	}
	tells("without its stream", "it does not exist")
}

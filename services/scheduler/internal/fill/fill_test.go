package fill

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/internal/telemetry"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestStreamIsFullOrAlteredUnnoticed sees with the scheduler's own rights.
func TestStreamIsFullOrAlteredUnnoticed(t *testing.T) {
	server := bustest.Start(t)
	metrics, err := telemetry.NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	d := service.Dependencies{Bus: server.Connect(t, saga.Scheduler), Log: slog.New(slog.DiscardHandler), Metrics: metrics, Conditions: &condition.Set{}}
	w, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	look := func() []condition.Condition {
		t.Helper()
		sizes, err := d.Bus.Sizes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.see(sizes)
		return d.Conditions.List()
	}
	operator, js := server.Connect(t, bus.Operator), server.Connect(t, bus.Provisioner).JetStream
	if err := operator.Publish(t.Context(), bus.RequestSubject("app"), &pawlv1.Request{}, nil); err != nil {
		t.Fatal(err)
	}
	if list := look(); len(list) > 0 {
		t.Fatalf("nothing is near its limit: %v", list)
	}
	in, err := js.Stream(t.Context(), bus.StreamRequest)
	if err != nil {
		t.Fatal(err)
	}
	for limit, told := range map[int64]bool{int64(in.CachedInfo().State.Bytes): true, 1 << 20: false} {
		c := in.CachedInfo().Config
		c.MaxBytes = limit
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if list := look(); len(list) > 0 != told || told && (list[0].Name != Condition || list[0].Object != bus.StreamRequest || list[0].Failing) {
			t.Errorf("limit %d: %v", limit, list)
		}
	}
	c := in.CachedInfo().Config
	c.RePublish = &jetstream.RePublish{Source: ">", Destination: "elsewhere.>"}
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if list := look(); !slices.ContainsFunc(list, func(c condition.Condition) bool {
		return c.Name == ConditionAltered && c.Object == bus.StreamRequest && c.Failing
	}) {
		t.Errorf("a stream that is copied elsewhere: %v", list)
	}
}

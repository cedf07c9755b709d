package telemetry

import (
	"net"
	"testing"
)

// A health check that passes where nothing lives, or fails where something does,
// is worse than none.
func TestHealthyIsWhetherSomethingLivesThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	everywhere := net.JoinHostPort("0.0.0.0", port)
	if err := Healthy(t.Context(), everywhere); err == nil {
		t.Error("nothing is there, and it is healthy")
	}
	m, err := NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	notReady := func() error { return net.ErrClosed }
	if err := m.Serve(t.Context(), everywhere, notReady); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{everywhere, ":" + port, "127.0.0.1:" + port} {
		if err := Healthy(t.Context(), address); err != nil {
			t.Errorf("%s: a service that waits for NATS lives: %v", address, err)
		}
	}
	if err := Healthy(t.Context(), ""); err == nil {
		t.Error("no address, and it is healthy")
	}
}

package telemetry

import (
	"net"
	"net/http"
	"testing"
)

// A page of somebody else's, whose name leads to 127.0.0.1, must read nothing.
func TestMetricsAreNotReadByRebinding(t *testing.T) {
	m, err := NewMetrics()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Serve(t.Context(), address, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
		for host, want := range map[string]int{"evil.example.org": 421, "127.0.0.1.evil.example.org": 421, "localhost:9464": 200, address: 200} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Host = host
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close() // its status is all that matters
			if answer.StatusCode != want {
				t.Errorf("%s of %s: %d, not %d", path, host, answer.StatusCode, want)
			}
		}
	}
}

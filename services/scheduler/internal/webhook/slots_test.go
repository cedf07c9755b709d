package webhook

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"pawl.dev/internal/bus/bustest"
)

// TestSlowStrangersTakeNoSlotFromWhoIsKnown: they begin webhooks and never end them.
func TestSlowStrangersTakeNoSlotFromWhoIsKnown(t *testing.T) {
	p := newPost(t, bustest.Start(t))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	p.url = "http://" + listener.Addr().String()

	// From another address of this machine's: half a webhook that a signature is to
	// prove, half a header, and nothing at all.
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for i := range 2 * perConnection {
		conn, err := from.DialContext(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		half := []string{"POST /alerts/g HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", "POST /alerts/am HTTP/1.1\r\nHos", ""}[i%3]
		_, _ = fmt.Fprint(conn, half) // it may be closed already: they are too many
	}
	await(t, "all that one address may read", func() bool { return p.server.reading.takenBy("127.0.0.2") == perAddress })
	for name, w := range map[string]webhook{"alertmanager": alertmanagers(payloadOf("4", 0)), "grafana": grafanas(payloadOf("1", 0), time.Now())} {
		if status, told := p.send(w); status != 200 {
			t.Errorf("%s: %d %s", name, status, told)
		}
	}
}

func (s *slots) takenBy(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken[key]
}

func await(t *testing.T, what string, there func() bool) {
	t.Helper()
	for until := time.Now().Add(5 * time.Second); !there(); time.Sleep(time.Millisecond) { // nobody tells
		if time.Now().After(until) {
			t.Fatalf("%s: it does not come", what)
		}
	}
}

package service_test

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// deafener stands between a client and NATS. It makes the server forget
// subscriptions of consumers, which the client goes on holding for valid.
type deafener struct {
	mu          sync.Mutex
	connections int
	deafen      func(connection int) bool // also later subscriptions of that connection
	forget      []func()                  // the subscriptions of consumers so far
}

// before starts a deafener in front of the server.
func (d *deafener) before(t *testing.T, server *bustest.Server) *bustest.Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			nats, err := net.Dial("tcp", strings.TrimPrefix(server.URL, "nats://"))
			if err != nil {
				_ = client.Close()
				return
			}
			d.mu.Lock()
			d.connections++
			n := d.connections
			d.mu.Unlock()
			go func() { _, _ = io.Copy(client, nats); _ = client.Close() }()
			go func() { d.pass(n, nats, client); _ = nats.Close() }()
		}
	}()
	there := *server
	there.URL = "nats://" + l.Addr().String()
	return &there
}

// pass forwards what the client says, message by message.
func (d *deafener) pass(connection int, nats io.Writer, client io.Reader) {
	said := bufio.NewReader(client)
	for {
		line, err := said.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		d.mu.Lock()
		_, err = io.WriteString(nats, line)
		switch {
		case err != nil:
		case words[0] == "PUB" || words[0] == "HPUB":
			var length int
			for _, c := range words[len(words)-1] {
				length = 10*length + int(c-'0')
			}
			_, err = io.CopyN(nats, said, int64(length+2))
		case words[0] == "SUB" && strings.HasPrefix(words[1], "_INBOX") && !strings.HasSuffix(words[1], "*"): // else it is of all requests
			forget := func() { _, _ = io.WriteString(nats, "UNSUB "+words[len(words)-1]+"\r\n") }
			if d.forget = append(d.forget, forget); d.deafen != nil && d.deafen(connection) {
				forget()
			}
		}
		d.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (d *deafener) now(deafen func(connection int) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deafen = deafen
	for _, forget := range d.forget {
		forget()
	}
}

// TestDeafConsumerHearsAgainOrEndsTheService: the server does not know the
// subscription any more, for whatever reason, and nobody tells the client.
func TestDeafConsumerHearsAgainOrEndsTheService(t *testing.T) {
	for name, c := range map[string]struct {
		deafen func(connection int) bool
		ends   bool
	}{
		"bound again":           {deafen: func(int) bool { return false }},
		"on another connection": {deafen: func(connection int) bool { return connection == 1 }},
		"never":                 {deafen: func(int) bool { return true }, ends: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, between := bustest.Start(t), &deafener{}
			rotator := server.Connect(t, saga.DBRotator)
			heard, ended, set := make(chan string, 10), make(chan error, 10), &condition.Set{}
			stop, err := service.Consume(t.Context(), service.Dependencies{Bus: between.before(t, server).Connect(t, saga.SecretPublisher), Log: slog.New(slog.DiscardHandler),
				Conditions: set, End: func(err error) { ended <- err }},
				bus.StreamLog, saga.SecretPublisher, func(m service.Message) {
					heard <- m.Subject()
					if err := m.DoubleAck(t.Context()); err != nil {
						t.Error(err)
					}
				})
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			ask := func(credential string) {
				if err := rotator.Publish(t.Context(), bus.LogSubject(credential, "r", saga.Staged), &pawlv1.Event{}, nil); err != nil {
					t.Fatal(err)
				}
			}
			ask("before")
			<-heard
			between.now(c.deafen)
			ask("after")
			tells(t, set, "deaf", true)
			select {
			case <-heard:
				if c.ends {
					t.Error("heard")
				}
				tells(t, set, "deaf", false)
			case err := <-ended:
				if !c.ends || !strings.Contains(err.Error(), "PAWL_ROTATION/secret-publisher is not heard") {
					t.Error(err)
				}
			case <-time.After(2 * time.Minute):
				t.Error("nothing is done about it")
			}
		})
	}
}

// tells waits until a condition is raised, or cleared.
func tells(t *testing.T, set *condition.Set, name string, raised bool) {
	t.Helper()
	began := time.Now()
	for time.Since(began) < time.Minute {
		is := false
		for _, c := range set.List() {
			is = is || c.Name == name && c.Failing
		}
		if is == raised {
			t.Logf("%s: %v after %v", name, raised, time.Since(began).Round(100*time.Millisecond))
			return
		}
		time.Sleep(20 * time.Millisecond) // nobody signals it
	}
	t.Fatalf("%s is to be told: %v; told: %v", name, raised, set.List())
}

// TestHandlerThatHangsIsTold: alerts are decided one at a time.
func TestHandlerThatHangsIsTold(t *testing.T) {
	t.Parallel()
	server := bustest.Start(t)
	hangs, set := make(chan struct{}), &condition.Set{}
	stop, err := service.Consume(t.Context(), service.Dependencies{Bus: server.Connect(t, saga.Scheduler), Log: slog.New(slog.DiscardHandler), Conditions: set},
		bus.StreamAlert, bus.ConsumerAlerts, func(m service.Message) {
			<-hangs
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Error(err)
			}
		})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for range 2 {
		if err := server.Connect(t, bus.Operator).Publish(t.Context(), bus.AlertSubject("siem"), &pawlv1.Alert{Fingerprint: "f", StartsAt: timestamppb.Now()}, nil); err != nil {
			t.Fatal(err)
		}
	}
	tells(t, set, "lagging", true)
	close(hangs)
	tells(t, set, "lagging", false)
}

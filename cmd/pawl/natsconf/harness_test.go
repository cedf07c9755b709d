package natsconf

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/telemetry"
)

// installation is one with a NATS of its own, as it is configured.
type installation struct {
	t    *testing.T
	inv  *inventory.Inventory
	node Node
	opts Options
}

func install(t *testing.T) *installation {
	t.Helper()
	dir := t.TempDir()
	port := freePort(t)
	i := &installation{t: t, inv: &inventory.Inventory{DataDir: filepath.Join(dir, "data"), KeysDir: filepath.Join(dir, "keys"),
		NATS:   inventory.NATS{URL: "tls://localhost:" + port, Replicas: 1},
		Alerts: inventory.Alerts{Rules: []inventory.AlertRule{{Source: "siem"}}}}}
	i.node = Node{Name: "localhost", Listen: "127.0.0.1:" + port, Monitor: "127.0.0.1:" + freePort(t)}
	i.opts = Options{Out: filepath.Join(dir, "nats"), Nodes: []Node{i.node}}
	if _, err := bus.CreateSeeds(i.inv); err != nil {
		t.Fatal(err)
	}
	i.write()
	return i
}

func (i *installation) write() []string {
	i.t.Helper()
	written, err := Write(i.inv, i.opts)
	if err != nil {
		i.t.Fatal(err)
	}
	return written
}

// serve starts the server that the configuration describes.
func (i *installation) serve() *server.Server {
	i.t.Helper()
	options, err := server.ProcessConfigFile(filepath.Join(i.opts.Out, i.node.Name, "nats.conf"))
	if err != nil {
		i.t.Fatal(err)
	}
	options.NoSigs, options.NoLog = true, true
	s, err := server.NewServer(options)
	if err != nil {
		i.t.Fatal(err)
	}
	s.Start()
	i.t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(15 * time.Second) {
		i.t.Fatal("the server did not start")
	}
	return s
}

func (i *installation) provision() error {
	return provision.Server(i.t.Context(), provision.Options{Inventory: i.inv, Log: telemetry.NewLogger(os.Stderr, "test", 12), Wait: 20 * time.Second})
}

func (i *installation) mustProvision() {
	i.t.Helper()
	if err := i.provision(); err != nil {
		i.t.Fatal(err)
	}
}

// join connects as a user, with its own key and certificate.
func (i *installation) join(user string) *bus.Bus {
	i.t.Helper()
	o, err := bus.For(i.inv, user)
	if err != nil {
		i.t.Fatal(err)
	}
	o.Log = telemetry.NewLogger(os.Stderr, "test", 12)
	b, err := bus.Connect(o)
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(b.NATS.Close)
	return b
}

// denied does something and returns whether the server says that it refuses that
// subject. The bus tries refused subscriptions again meanwhile: where the last
// refusal is of another subject, ours may have been told before it.
func denied(t *testing.T, b *bus.Bus, subject string, do func() error) bool {
	t.Helper()
	for range 20 {
		if err := do(); err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		if err := b.NATS.Flush(); err != nil { // the server has read it, and said what it thinks of it
			t.Fatalf("%s: %v", subject, err)
		}
		last := b.NATS.LastError()
		if last == nil || !strings.Contains(strings.ToLower(last.Error()), "permissions violation") {
			return false
		}
		if strings.Contains(last.Error(), `"`+subject+`"`) {
			return true
		}
	}
	return false
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

package natsconf

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
)

// TestWhoIsNotKnownIsNotLetIn: each of the three things that a user shows is asked
// for.
func TestWhoIsNotKnownIsNotLetIn(t *testing.T) {
	i, stranger := install(t), install(t)
	i.serve()
	right := func() bus.ConnectOptions {
		o, err := bus.For(i.inv, saga.Verifier)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	if b, err := bus.Connect(right()); err != nil {
		t.Fatal(err)
	} else {
		b.NATS.Close()
	}
	ca, key := filepath.Join(i.inv.TLSDir(), "ca.pem"), right().Seed
	pair, err := nkeys.FromSeed(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	me := nats.Nkey(public, pair.Sign)
	unknown, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := unknown.Seed()
	if err != nil {
		t.Fatal(err)
	}
	url := "localhost:" + strings.TrimPrefix(i.inv.NATS.URL, "tls://localhost:")
	for name, connect := range map[string]func() error{
		"without TLS":           func() error { _, err := nats.Connect("nats://"+url, me, nats.TLSHandshakeFirst()); return err },
		"without a certificate": func() error { _, err := nats.Connect("tls://"+url, me, nats.RootCAs(ca)); return err },
		"TLS 1.2": func() error {
			_, err := nats.Connect("tls://"+url, me, nats.Secure(&tls.Config{MaxVersion: tls.VersionTLS12}), nats.RootCAs(ca), nats.ClientCert(userCert(i, saga.Verifier)))
			return err
		},
		"another authority's": func() error {
			_, err := nats.Connect("tls://"+url, me, nats.RootCAs(ca), nats.ClientCert(userCert(stranger, saga.Verifier)))
			return err
		},
		"without a key": func() error {
			_, err := nats.Connect("tls://"+url, nats.RootCAs(ca), nats.ClientCert(userCert(i, saga.Verifier)))
			return err
		},
		"an unknown key":                  func() error { o := right(); o.Seed = seed; _, err := bus.Connect(o); return err },
		"a server of another authority's": func() error { o := right(); o.TLSDir = stranger.inv.TLSDir(); _, err := bus.Connect(o); return err },
	} {
		if err := connect(); err == nil {
			t.Errorf("%s: let in", name)
		}
	}
}

func userCert(i *installation, user string) (certificate, key string) {
	base := filepath.Join(i.inv.TLSDir(), user)
	return base + ".pem", base + ".key"
}

// TestUserIsNoServer: where servers of the cluster come in, nobody asks for a
// key. A user's certificate must not do.
func TestUserIsNoServer(t *testing.T) {
	i := install(t)
	second := Node{Name: "second", Host: "localhost", Listen: "127.0.0.1:" + freePort(t), Cluster: "127.0.0.1:" + freePort(t), Monitor: "127.0.0.1:" + freePort(t)}
	i.opts.Nodes[0].Cluster = "127.0.0.1:" + freePort(t)
	i.opts.Nodes, i.opts.Out = append(i.opts.Nodes, second), t.TempDir()
	i.write()
	first := i.serve()
	conn, err := tls.Dial("tcp", i.opts.Nodes[0].Cluster, clusterTLS(t, i))
	if err != nil {
		t.Fatal(err) // the certificate itself is right: it is the name that it lacks
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(`CONNECT {"verbose":false,"name":"evil","cluster":"pawl","server_id":"x"}` + "\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 1<<16)
	var all string
	for !strings.Contains(all, "-ERR") {
		n, err := conn.Read(said)
		if all += string(said[:n]); err != nil {
			break
		}
	}
	if !strings.Contains(all, "Authorization Violation") {
		t.Errorf("the route said %.300q", all)
	}
	options, err := server.ProcessConfigFile(filepath.Join(i.opts.Out, second.Name, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	options.NoSigs, options.NoLog = true, true
	other, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	other.Start()
	t.Cleanup(func() { other.Shutdown(); other.WaitForShutdown() })
	await(t, func() bool { return first.NumRoutes() > 0 })
}

func clusterTLS(t *testing.T, i *installation) *tls.Config {
	certificate, err := tls.LoadX509KeyPair(userCert(i, saga.Restarter))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	raw, err := os.ReadFile(filepath.Join(i.inv.TLSDir(), "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(raw)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}, ServerName: "localhost"}
}

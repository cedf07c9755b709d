package postgres

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pawl.dev/internal/pgserver"
)

// selfSigned writes a certificate for the names, which is its own authority.
func selfSigned(t *testing.T, dir string, names ...string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// encrypted starts a server that speaks TLS, and returns its certificate.
func encrypted(t *testing.T, names ...string) (s *pgserver.Server, certificate string) {
	t.Helper()
	s, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	certificate, key := selfSigned(t, s.Dir, names...)
	info, err := os.Stat(s.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	for _, file := range []string{certificate, key} {
		if err := os.Chown(file, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	conn := connect(t, Target{Host: s.Host, Port: s.Port, Database: "postgres", User: s.Superuser, Password: s.Password, SSLMode: "disable"})
	for _, sql := range []string{"ALTER SYSTEM SET ssl_cert_file = " + literal(certificate), "ALTER SYSTEM SET ssl_key_file = " + literal(key), "ALTER SYSTEM SET ssl = on"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(clean(err))
		}
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, certificate
}

// between stands before the server, until the test ends: it takes TLS away from
// its clients, or, with a certificate of its own, ends theirs and begins another.
func between(t *testing.T, s *pgserver.Server, own *tls.Config) (port uint16) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	serve := func(client net.Conn) error {
		defer client.Close()
		server, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", net.JoinHostPort(s.Host, itoa(s.Port)))
		if err != nil {
			return err
		}
		defer server.Close()
		first := make([]byte, 8)
		if _, err := io.ReadFull(client, first); err != nil {
			return err
		}
		const sslRequest = 80877103
		asked := binary.BigEndian.Uint32(first[4:]) == sslRequest
		switch {
		case !asked:
			if _, err := server.Write(first); err != nil {
				return err
			}
		case own == nil:
			if _, err := client.Write([]byte{'N'}); err != nil {
				return err
			}
		default:
			if _, err := client.Write([]byte{'S'}); err != nil {
				return err
			}
			client = tls.Server(client, own)
			answer := make([]byte, 1)
			if _, err := server.Write(first); err != nil {
				return err
			}
			if _, err := io.ReadFull(server, answer); err != nil {
				return err
			}
			server = tls.Client(server, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is the attacker
		}
		done := make(chan error, 2)
		for to, from := range map[net.Conn]net.Conn{client: server, server: client} {
			go func() { _, err := io.Copy(to, from); done <- err }()
		}
		return <-done
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = serve(client) }() // the login tells what came of it
		}
	}()
	return uint16(listener.Addr().(*net.TCPAddr).Port)
}

func itoa(port uint16) string { return big.NewInt(int64(port)).String() }

// TestNobodyBetweenTakesOverASession: each setting, before one who takes TLS away
// and before one with a certificate of their own.
func TestNobodyBetweenTakesOverASession(t *testing.T) {
	s, authority := encrypted(t, "127.0.0.1", "localhost")
	certificate, key := selfSigned(t, t.TempDir(), "127.0.0.1", "localhost")
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	strips, pretends := between(t, s, nil), between(t, s, &tls.Config{Certificates: []tls.Certificate{pair}})
	for _, c := range []struct {
		mode, binding            string
		direct, stripped, forged bool // whether it logs in
	}{
		{"disable", "", true, true, true},
		{"prefer", "", true, true, true}, // the binding fails, and it is tried again without TLS
		{"prefer", "disable", true, true, true},
		{"require", "", true, false, false},
		{"require", "disable", true, false, true},
		{"verify-ca", "", true, false, false},
		{"verify-ca", "disable", true, false, false},
		{"verify-full", "", true, false, false},
		{"verify-full", "prefer", true, false, false},
	} {
		for what, at := range map[string]struct {
			port uint16
			want bool
		}{"directly": {s.Port, c.direct}, "without TLS": {strips, c.stripped}, "by a forger": {pretends, c.forged}} {
			target := Target{Host: "127.0.0.1", Port: at.port, Database: "postgres", User: s.Superuser, Password: s.Password, SSLMode: c.mode, ChannelBinding: c.binding}
			if c.mode != "require" { // which with an authority is verify-ca, as in libpq
				target.SSLRootCert = authority
			}
			conn, err := Login(t.Context(), target)
			if err == nil {
				conn.Close(context.Background())
			}
			if (err == nil) != at.want {
				t.Errorf("sslmode %s, channel_binding %q, %s: logged in %v, want %v (%v)", c.mode, c.binding, what, err == nil, at.want, err)
			}
		}
	}
}

func TestServersOnOtherMachinesWantVerifiedTLS(t *testing.T) {
	for host, want := range map[string]string{"db.example.org": "verify-full require", "10.0.0.1": "verify-full require", "::ffff:10.0.0.1": "verify-full require",
		"127.0.0.1": "prefer prefer", "127.9.9.9": "prefer prefer", "::1": "prefer prefer", "localhost": "prefer prefer", "/run/postgresql": "prefer prefer"} {
		mode, binding := Target{Host: host}.wire()
		if got := mode + " " + binding; got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
	exposed := map[Target]bool{
		{Host: "db"}: false, {Host: "db", SSLMode: "disable"}: true, {Host: "db", SSLMode: "prefer"}: true, {Host: "db", SSLMode: "require"}: true,
		{Host: "db", SSLMode: "verify-full", ChannelBinding: "prefer"}: true, {Host: "127.0.0.1", SSLMode: "disable"}: false,
	}
	for target, want := range exposed {
		if got := target.Exposed(); (got != "") != want {
			t.Errorf("%+v: %q", target, got)
		}
	}
}

// TestFailedTLSNamesTheFix: a server without TLS, an authority that is not known,
// another name than the certificate's.
func TestFailedTLSNamesTheFix(t *testing.T) {
	named, authority := encrypted(t, "elsewhere.example.org")
	unknown, _ := encrypted(t, "127.0.0.1")
	for _, c := range []struct {
		what string
		port uint16
		root string
		want string
	}{
		{"no TLS", server.Port, "", "ssl = on"},
		{"unknown authority", unknown.Port, "", "sslrootcert"},
		{"another name", named.Port, authority, "does not name 127.0.0.1"},
	} {
		target := Target{Host: "127.0.0.1", Port: c.port, Database: "postgres", User: named.Superuser, Password: named.Password, SSLMode: "verify-full", SSLRootCert: c.root}
		_, err := Login(t.Context(), target)
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, new(*Unreachable)) {
			t.Errorf("%s: %v; want %q", c.what, err, c.want)
		}
	}
}

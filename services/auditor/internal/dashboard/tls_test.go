package dashboard

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/inventory"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	c.SerialNumber, c.Subject = big.NewInt(a.n), pkix.Name{CommonName: a.t.Name()}
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = c, key
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) server() (*x509.Certificate, *ecdsa.PrivateKey) {
	return a.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

func (a *authority) client(until time.Time) tls.Certificate {
	cert, key := a.sign(&x509.Certificate{NotBefore: until.Add(-time.Hour), NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a *authority) write(path string, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	a.t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{path + ".crt": {Type: "CERTIFICATE", Bytes: cert.Raw}, path + ".key": {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

// visit fetches a page over a new connection, by a client that trusts the
// authority and shows the certificates.
func (s *served) visit(a *authority, certificates ...tls.Certificate) (code int, serial int64, err error) {
	trusted := x509.NewCertPool()
	trusted.AddCert(a.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted, Certificates: certificates}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 30 * time.Second, CheckRedirect: s.client.CheckRedirect}
	answer, err := client.Get(strings.Replace(s.url, "http:", "https:", 1) + "/trail")
	if err != nil {
		return 0, 0, err
	}
	return answer.StatusCode, answer.TLS.PeerCertificates[0].SerialNumber.Int64(), answer.Body.Close()
}

func TestPagesByTLSAreForWhoeverHasTheTokenAndARenewedCertificateIsUsed(t *testing.T) {
	a, at := newAuthority(t), filepath.Join(t.TempDir(), "server")
	cert, key := a.server()
	a.write(at, cert, key)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(strings.Repeat("a1", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(d *inventory.Dashboard) { d.CertFile, d.KeyFile, d.TokenFile = at+".crt", at+".key", token })
	if code, serial, err := s.visit(a); code != http.StatusUnauthorized || serial != cert.SerialNumber.Int64() {
		t.Errorf("without the token: %d, certificate %d, %v", code, serial, err)
	}
	if c := s.guard.cookie("x"); !c.Secure {
		t.Error("the session's cookie goes over the network in clear, too")
	}
	if code, _, err := s.visit(newAuthority(t)); err == nil {
		t.Errorf("a client that does not trust the certificate has seen a page: %d", code)
	}
	if answer, err := http.Get(s.url); err == nil && answer.StatusCode != http.StatusBadRequest {
		t.Errorf("without TLS: %s", answer.Status)
	}
	renewed, key := a.server()
	a.write(at, renewed, key)
	if code, serial, err := s.visit(a); code != http.StatusUnauthorized || serial != renewed.SerialNumber.Int64() {
		t.Errorf("after it was renewed: %d, certificate %d, %v", code, serial, err)
	}
	if err := os.Remove(at + ".key"); err != nil {
		t.Fatal(err)
	}
	if code, _, err := s.visit(a); err == nil {
		t.Errorf("without a key: %d", code)
	}
}

func TestPagesByMutualTLSAreForClientsOfTheAuthority(t *testing.T) {
	a, clients, dir := newAuthority(t), newAuthority(t), t.TempDir()
	cert, key := a.server()
	a.write(filepath.Join(dir, "server"), cert, key)
	clients.write(filepath.Join(dir, "clients"), clients.cert, clients.key)
	s := serve(t, func(d *inventory.Dashboard) {
		d.CertFile, d.KeyFile, d.ClientCAFile = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"), filepath.Join(dir, "clients.crt")
	})
	if code, _, err := s.visit(a, clients.client(time.Now().Add(time.Minute))); code != http.StatusOK {
		t.Errorf("a client of the authority: %d, %v", code, err)
	}
	for who, shown := range map[string][]tls.Certificate{
		"nobody":              nil,
		"another authority's": {newAuthority(t).client(time.Now().Add(time.Minute))},
		"the server's own":    {a.client(time.Now().Add(time.Minute))},
		"one that has ended":  {clients.client(time.Now().Add(-time.Minute))},
	} {
		if code, _, err := s.visit(a, shown...); err == nil {
			t.Errorf("%s: %d", who, code)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "clients.crt"), []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, err := s.visit(a, clients.client(time.Now().Add(time.Minute))); err == nil {
		t.Errorf("without an authority: %d", code)
	}
	if _, err := New(s.d); err == nil || !strings.Contains(err.Error(), "dashboard.tls.client_ca_file: ") {
		t.Errorf("a start without an authority: %v", err)
	}
}

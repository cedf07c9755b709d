package postgres

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCertificateWithoutChannelBindingNamesTheFix: none is defined for Ed25519.
func TestCertificateWithoutChannelBindingNamesTheFix(t *testing.T) {
	s, authority := encrypted(t, "127.0.0.1")
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, crypto.Signer(private))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{authority: {Type: "CERTIFICATE", Bytes: der}, strings.TrimSuffix(authority, ".crt") + ".key": {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for binding, want := range map[string]string{"": "channel_binding: disable", "prefer": "channel_binding: disable", "disable": ""} {
		conn, err := Login(t.Context(), Target{Host: "127.0.0.1", Port: s.Port, Database: "postgres", User: s.Superuser, Password: s.Password, SSLMode: "verify-full", SSLRootCert: authority, ChannelBinding: binding})
		if conn != nil {
			_ = conn.Close(t.Context())
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("channel_binding %q: %v; want %q", binding, err, want)
		}
	}
}

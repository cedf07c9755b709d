package natsconf

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	authorityFor   = 20 * 365 * 24 * time.Hour
	certificateFor = 2 * 365 * 24 * time.Hour
	// renewedBefore its end, a certificate is made again.
	renewedBefore = 90 * 24 * time.Hour
)

// authority vouches for the servers and the users of one bus, and for nothing
// else. Without its private key, as with a PKI of one's own, it makes nothing,
// and says what would have to be made.
type authority struct {
	file        string
	certificate *x509.Certificate
	keyFile     string
	key         crypto.Signer // nil: not here
}

// openAuthority opens the authority, or makes it where there is none.
func openAuthority(w *writer, keyFile, file string) (*authority, error) {
	a := &authority{file: file, keyFile: keyFile}
	var err error
	a.certificate, err = readCertificate(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	a.key, err = readKey(keyFile)
	switch {
	case err == nil && a.certificate != nil && !sameKey(a.certificate, a.key):
		return nil, fmt.Errorf("%s is not the key of %s: name the right one with --ca-key", keyFile, file)
	case err == nil, a.certificate != nil && errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrNotExist):
		if a.key, err = newKey(w, keyFile); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	if a.certificate != nil && (a.key == nil || time.Until(a.certificate.NotAfter) > certificateFor) {
		return a, nil
	}
	// Made again with the same key and name, it still vouches for what it has signed.
	plan := valid(authorityFor)
	plan.Subject = pkix.Name{CommonName: "Pawl bus"}
	plan.IsCA, plan.BasicConstraintsValid, plan.MaxPathLenZero = true, true, true
	plan.KeyUsage = x509.KeyUsageCertSign
	return a, a.sign(w, file, plan, plan, a.key, func(c *x509.Certificate) { a.certificate = c })
}

// certify makes base.key where it is missing, and base.pem for it where that is
// missing, about to end, or lacks one of the hosts. hosts are a server's; a
// user's certificate has none, so that it is no server's.
func (a *authority) certify(w *writer, base, name string, hosts []string) error {
	file, keyFile := base+".pem", base+".key"
	key, err := readKey(keyFile)
	if errors.Is(err, fs.ErrNotExist) && a.key != nil {
		key, err = newKey(w, keyFile)
	}
	if err != nil {
		return a.explain(err, file)
	}
	why := a.faultOf(file, key, hosts)
	if why == nil {
		return nil
	}
	if a.key == nil {
		return a.explain(why, file)
	}
	plan := valid(certificateFor)
	plan.Subject = pkix.Name{CommonName: name}
	plan.KeyUsage = x509.KeyUsageDigitalSignature
	plan.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if hosts != nil {
		plan.ExtKeyUsage = append(plan.ExtKeyUsage, x509.ExtKeyUsageServerAuth) // it is a client of the other nodes, too
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			plan.IPAddresses = append(plan.IPAddresses, ip)
		} else {
			plan.DNSNames = append(plan.DNSNames, h)
		}
	}
	return a.sign(w, file, plan, a.certificate, key, nil)
}

// explain says what to do where the authority cannot sign.
func (a *authority) explain(err error, file string) error {
	if a.key != nil {
		return err
	}
	return fmt.Errorf("%w: put the authority's key back in %s, or name it with --ca-key; where the authority is your own, have it make %s", err, a.keyFile, file)
}

// faultOf returns why the certificate cannot stay, nil where it can.
func (a *authority) faultOf(file string, key crypto.Signer, hosts []string) error {
	c, err := readCertificate(file)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	between := x509.NewCertPool()
	if raw, err := os.ReadFile(file); err == nil {
		between.AppendCertsFromPEM(raw) // the chain of a PKI of one's own
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if !sameKey(c, key) {
		return fmt.Errorf("%s is of another key than the one beside it", file)
	}
	if left := time.Until(c.NotAfter); left < renewedBefore {
		return fmt.Errorf("%s ends on %s", file, c.NotAfter.Format(time.DateOnly))
	}
	for _, h := range hosts {
		if err := c.VerifyHostname(h); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// certificatesOf gives a node's folder its own certificate and the authority's.
func (w *writer) certificatesOf(a *authority, dir string, n Node) error {
	hosts := []string{n.Name}
	for _, h := range []string{n.Host, "localhost", "127.0.0.1", "::1"} {
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	if err := a.certify(w, filepath.Join(dir, "server"), "nats-server "+n.Name, hosts); err != nil {
		return err
	}
	raw, err := os.ReadFile(a.file)
	if err != nil {
		return err
	}
	return w.put(filepath.Join(dir, "ca.pem"), raw, 0o644)
}

// valid begins a certificate, from an hour ago on, since clocks differ.
func valid(length time.Duration) *x509.Certificate {
	return &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(length)}
}

func (a *authority) sign(w *writer, file string, plan, parent *x509.Certificate, key crypto.Signer, then func(*x509.Certificate)) error {
	der, err := x509.CreateCertificate(rand.Reader, plan, parent, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if then != nil {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		then(c)
	}
	return w.put(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func newKey(w *writer, file string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := w.create(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, err
	}
	return readKey(file) // another may have been first
}

// readKey reads a private key, as PKCS #8 or in one of OpenSSL's older forms.
func readKey(file string) (crypto.Signer, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		for _, parse := range []func([]byte) (any, error){
			x509.ParsePKCS8PrivateKey,
			func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) },
			func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) },
		} {
			if key, err := parse(block.Bytes); err == nil {
				if signer, ok := key.(crypto.Signer); ok {
					return signer, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("%s holds no private key in PEM", file)
}

func readCertificate(file string) (*x509.Certificate, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func sameKey(c *x509.Certificate, key crypto.Signer) bool {
	mine, err := x509.MarshalPKIXPublicKey(key.Public())
	return err == nil && bytes.Equal(c.RawSubjectPublicKeyInfo, mine)
}

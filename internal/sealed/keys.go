package sealed

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"pawl.dev/internal/newfile"
	"pawl.dev/internal/saga"
)

// Recipients are the services that may open a credential.
var Recipients = []string{saga.DBRotator, saga.SecretPublisher, saga.Verifier}

// Keys are what one service holds: everybody's public keys, its own private
// one (services that open nothing have none), and the fingerprint key.
type Keys struct {
	identity    age.Identity
	recipients  map[string]age.Recipient
	fingerprint []byte
}

// Files in the keys directory: SERVICE.agekey (private), SERVICE.agepub
// (public), fingerprint.key. Private files are 0600.
func privateFile(dir, service string) string { return filepath.Join(dir, "sealing", service+".agekey") }
func publicFile(dir, service string) string  { return filepath.Join(dir, "sealing", service+".agepub") }
func fingerprintFile(dir string) string      { return filepath.Join(dir, "sealing", "fingerprint.key") }

// CreateKeys makes the key files that are missing and returns their paths; it
// never overwrites.
func CreateKeys(dir string) (created []string, err error) {
	if err := os.MkdirAll(filepath.Join(dir, "sealing"), 0o700); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	for _, service := range append([]string{incident}, Recipients...) {
		if service == incident && exists(publicFile(dir, service)) {
			continue // its private half may lie elsewhere
		}
		if exists(privateFile(dir, service)) {
			if err := completeKey(dir, service); err != nil {
				return created, err
			}
			continue
		}
		identity, err := age.GenerateX25519Identity()
		if err != nil {
			return created, fmt.Errorf("make key: %w", err)
		}
		if err := writeNew(privateFile(dir, service), identity.String()+"\n"); err != nil {
			return created, err
		}
		if err := writeNew(publicFile(dir, service), identity.Recipient().String()+"\n"); err != nil {
			return created, err
		}
		created = append(created, privateFile(dir, service))
	}
	if _, err := os.Stat(fingerprintFile(dir)); errors.Is(err, os.ErrNotExist) {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return created, fmt.Errorf("make key: %w", err)
		}
		if err := writeNew(fingerprintFile(dir), hex.EncodeToString(key)+"\n"); err != nil {
			return created, err
		}
		created = append(created, fingerprintFile(dir))
	}
	return created, nil
}

// completeKey writes the public half that a crash has left unwritten.
func completeKey(dir, service string) error {
	if exists(publicFile(dir, service)) {
		return nil
	}
	raw, err := os.ReadFile(privateFile(dir, service))
	if err != nil {
		return fmt.Errorf("sealing key of %s: %w", service, err)
	}
	identity, err := age.ParseX25519Identity(strings.TrimSpace(string(raw)))
	if err != nil {
		return fmt.Errorf("sealing key %s: not an age private key", privateFile(dir, service))
	}
	return writeNew(publicFile(dir, service), identity.Recipient().String()+"\n")
}

// LoadKeys reads what service may hold. A service outside Recipients gets no
// private key and no fingerprint key.
func LoadKeys(dir, service string) (*Keys, error) {
	k := &Keys{recipients: map[string]age.Recipient{}}
	for _, name := range Recipients {
		raw, err := os.ReadFile(publicFile(dir, name))
		if err != nil {
			return nil, fmt.Errorf("sealing key of %s: %w (`pawl init` makes it)", name, err)
		}
		recipient, err := age.ParseX25519Recipient(strings.TrimSpace(string(raw)))
		if err != nil {
			return nil, fmt.Errorf("sealing key %s: not an age public key", publicFile(dir, name))
		}
		k.recipients[name] = recipient
		if name != service {
			continue
		}
		raw, err = os.ReadFile(privateFile(dir, name))
		if err != nil {
			return nil, fmt.Errorf("sealing key of %s: %w (`pawl init` makes it)", name, err)
		}
		identity, err := age.ParseX25519Identity(strings.TrimSpace(string(raw)))
		if err != nil {
			return nil, fmt.Errorf("sealing key %s: not an age private key", privateFile(dir, name))
		}
		if identity.Recipient().String() != recipient.String() {
			return nil, fmt.Errorf("sealing keys of %s do not belong together: %s and %s", name, privateFile(dir, name), publicFile(dir, name))
		}
		k.identity = identity
		if raw, err = os.ReadFile(fingerprintFile(dir)); err != nil {
			return nil, fmt.Errorf("fingerprint key: %w (`pawl init` makes it)", err)
		}
		if k.fingerprint, err = hex.DecodeString(strings.TrimSpace(string(raw))); err != nil || len(k.fingerprint) < 32 {
			return nil, fmt.Errorf("fingerprint key %s: want 64 hexadecimal digits", fingerprintFile(dir))
		}
	}
	return k, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func writeNew(path, text string) error {
	if err := newfile.Write(path, []byte(text)); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

package sealed

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"filippo.io/age"
)

// incident names the key that evidence is sealed to: incident.agepub is what
// services and `pawl emergency --break-glass` need, incident.agekey only whoever
// reads it.
const incident = "incident"

// ErrNoIncidentKey is returned by Open where the private half is not here.
var ErrNoIncidentKey = errors.New("the incident key is not here")

// IncidentKey seals what emergencies leave to read, and opens it where its
// private half is there.
type IncidentKey struct{ keys Keys }

// LoadIncidentKey reads the public half, and the private one if it is there.
func LoadIncidentKey(dir string) (*IncidentKey, error) {
	raw, err := os.ReadFile(publicFile(dir, incident))
	if err != nil {
		return nil, fmt.Errorf("incident key: %w (`pawl init` makes it)", err)
	}
	recipient, err := age.ParseX25519Recipient(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("incident key %s: not an age public key", publicFile(dir, incident))
	}
	k := &IncidentKey{Keys{recipients: map[string]age.Recipient{incident: recipient}}}
	raw, err = os.ReadFile(privateFile(dir, incident))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("incident key: %w", err)
	}
	identity, err := age.ParseX25519Identity(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("incident key %s: not an age private key", privateFile(dir, incident))
	}
	k.keys.identity = identity
	return k, nil
}

// Seal encrypts to the key.
func (k *IncidentKey) Seal(plaintext []byte) ([]byte, error) {
	return k.keys.seal(incident, plaintext)
}

// Open is the inverse of Seal: ErrNoIncidentKey without the private half,
// ErrWrongKey with another's.
func (k *IncidentKey) Open(box []byte) ([]byte, error) {
	if k.keys.identity == nil {
		return nil, ErrNoIncidentKey
	}
	return k.keys.open(box)
}

// IncidentKeyFile is where the private half is looked for.
func IncidentKeyFile(dir string) string { return privateFile(dir, incident) }

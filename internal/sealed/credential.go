// Package sealed keeps credentials at rest: one write-once envelope per
// recipient and rotation, encrypted to that recipient's own key (age, X25519),
// on pawl.sealed.CREDENTIAL.ROTATION.RECIPIENT. Only the db-rotator writes and
// deletes them; each recipient can open its own and no other.
package sealed

import (
	"encoding/json"
	"fmt"

	"pawl.dev/internal/secret"
)

// Credential is what an envelope holds. Before and Earlier are only in the
// db-rotator's own, Verifier in the secret-publisher's as well: poolers need it.
type Credential struct {
	Credential string
	Rotation   string
	Generation uint64
	User       string
	Password   secret.String
	Verifier   secret.String
	// Before is the login that was overwritten, exactly as it was, by node.
	Before map[string]Login
	// Earlier are fingerprints of what the credential's logins carried before:
	// passwords and verifiers that may come back from a backup or with a late
	// standby. The newest come first.
	Earlier []string
	// Compromised are those of them that are known to strangers: whoever carries
	// one may not log in, wherever it comes back. Only in the db-rotator's own.
	Compromised []string
	// Settings are those that its logins must have, by node: as adoption found them.
	// A node without an entry was never looked at; an envelope from before that was
	// recorded has none. Only in the db-rotator's own.
	Settings map[string][]Setting
}

// Setting is a parameter that ALTER ROLE … SET has given to a login.
type Setting struct {
	Database string // in which it applies; empty: in all
	Name     string
	Value    secret.String
}

// MaxEarlier bounds Earlier: two or three of each rotation.
const MaxEarlier = 64

// Login is what the database holds of a login role.
type Login struct {
	Exists   bool
	CanLogin bool
	Verifier secret.String // zero: no password
}

type wireCredential struct {
	Credential, Rotation, User, Password, Verifier string
	Generation                                     uint64
	Before                                         map[string]wireLogin     `json:",omitempty"`
	Earlier                                        []string                 `json:",omitempty"`
	Compromised                                    []string                 `json:",omitempty"`
	Settings                                       map[string][]wireSetting `json:",omitempty"`
}

type wireSetting struct{ Database, Name, Value string }

type wireLogin struct {
	Exists, CanLogin bool
	Verifier         string
}

// reveal writes the plaintext that goes into an envelope, and nowhere else.
func (c *Credential) reveal() ([]byte, error) {
	w := wireCredential{c.Credential, c.Rotation, c.User, c.Password.Reveal(), c.Verifier.Reveal(), c.Generation, map[string]wireLogin{}, c.Earlier, c.Compromised, map[string][]wireSetting{}}
	for node, login := range c.Before {
		w.Before[node] = wireLogin{login.Exists, login.CanLogin, login.Verifier.Reveal()}
	}
	for node, settings := range c.Settings {
		w.Settings[node] = []wireSetting{}
		for _, s := range settings {
			w.Settings[node] = append(w.Settings[node], wireSetting{s.Database, s.Name, s.Value.Reveal()})
		}
	}
	return json.Marshal(w)
}

func parse(plaintext []byte) (*Credential, error) {
	var w wireCredential
	if err := json.Unmarshal(plaintext, &w); err != nil {
		return nil, fmt.Errorf("envelope holds no credential") // the JSON error could quote it
	}
	c := &Credential{
		Credential: w.Credential, Rotation: w.Rotation, Generation: w.Generation, User: w.User,
		Password: secret.New(w.Password), Verifier: secret.New(w.Verifier), Earlier: w.Earlier, Compromised: w.Compromised, Before: map[string]Login{}, Settings: map[string][]Setting{},
	}
	for node, settings := range w.Settings {
		c.Settings[node] = nil
		for _, s := range settings {
			c.Settings[node] = append(c.Settings[node], Setting{s.Database, s.Name, secret.New(s.Value)})
		}
	}
	for node, login := range w.Before {
		c.Before[node] = Login{login.Exists, login.CanLogin, secret.New(login.Verifier)}
	}
	return c, nil
}

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

// Credential is what an envelope holds. Verifier, Before and Generation are
// only in the db-rotator's own.
type Credential struct {
	Credential string
	Rotation   string
	Generation uint64
	User       string
	Password   secret.String
	Verifier   secret.String
	// Before is the login that was overwritten, exactly as it was.
	Before Login
}

// Login is what the database holds of a login role.
type Login struct {
	Exists   bool
	CanLogin bool
	Verifier secret.String // zero: no password
}

type wireCredential struct {
	Credential, Rotation, User, Password, Verifier string
	Generation                                     uint64
	Before                                         wireLogin
}

type wireLogin struct {
	Exists, CanLogin bool
	Verifier         string
}

// reveal writes the plaintext that goes into an envelope, and nowhere else.
func (c *Credential) reveal() ([]byte, error) {
	return json.Marshal(wireCredential{
		c.Credential, c.Rotation, c.User, c.Password.Reveal(), c.Verifier.Reveal(), c.Generation,
		wireLogin{c.Before.Exists, c.Before.CanLogin, c.Before.Verifier.Reveal()},
	})
}

func parse(plaintext []byte) (*Credential, error) {
	var w wireCredential
	if err := json.Unmarshal(plaintext, &w); err != nil {
		return nil, fmt.Errorf("envelope holds no credential") // the JSON error could quote it
	}
	return &Credential{
		w.Credential, w.Rotation, w.Generation, w.User, secret.New(w.Password), secret.New(w.Verifier),
		Login{w.Before.Exists, w.Before.CanLogin, secret.New(w.Before.Verifier)},
	}, nil
}

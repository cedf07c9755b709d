package sink

import (
	"context"
	"slices"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// Known are the logins of a credential that Pawl wrote or adopted. Only these may be
// replaced, because somebody else may have no other copy of any other login.
type Known struct {
	Credential *inventory.Credential
	Logins     []Content // what is sealed
	Earlier    []string  // fingerprints of the passwords and verifiers before those
	// InUse is the login by which a lookup sink is judged. PostgreSQL refuses the other
	// one, so nobody can use that line.
	InUse string
	// Unsure is set if a sealed credential could not be opened: any login may be that one.
	Unsure      bool
	Fingerprint func(user string, value secret.String) string
}

// Admit returns a Refusal if the sink holds a login that is not known. A sink that
// holds none, such as a new one, may be written.
func Admit(ctx context.Context, s Sink, k *Known) error {
	held, err := s.Held(ctx)
	if err != nil {
		return err
	}
	return k.Admit(s, held)
}

// Admit judges what was read of the sink.
func (k *Known) Admit(s Sink, held []Content) error {
	foreign := slices.ContainsFunc(held, func(h Content) bool {
		return !(s.Lookup() && h.User != k.InUse) && !k.Has(h)
	})
	if !foreign || k.Unsure {
		return nil
	}
	fix := "delete that password there, and nothing else, and try again"
	if _, closed := s.(Unreadable); closed {
		fix = "give the service back the secret that Pawl made"
	}
	return refuse("%s holds a login that Pawl neither wrote nor adopted; it was left as it is. Fix: if applications use that login, run `pawl adopt %s`; if not, %s", s.Name(), k.Credential.Name, fix)
}

// Has reports whether one login that was read from a sink is known. A sink that
// names no user may mean either login.
func (k *Known) Has(h Content) bool {
	value, users := h.Password, []string{h.User}
	if value.IsZero() {
		value = h.Verifier
	}
	if h.User == "" {
		users = both(k.Credential)
	}
	if slices.ContainsFunc(k.Logins, func(l Content) bool {
		return h.Fingerprint != "" && h.Fingerprint == l.Fingerprint ||
			!value.IsZero() && slices.Contains(users, l.User) && (value.Equal(l.Password) || value.Equal(l.Verifier))
	}) {
		return true
	}
	return slices.Contains(k.Earlier, h.Fingerprint) || !value.IsZero() && slices.ContainsFunc(users, func(user string) bool {
		return slices.Contains(k.Earlier, k.Fingerprint(user, value))
	})
}

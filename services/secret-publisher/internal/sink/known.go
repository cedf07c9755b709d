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
	Logins     []Content // those that were opened so far
	Earlier    []string  // fingerprints of the passwords and verifiers before those
	// Others adds the other logins that are sealed. Opening costs time, and sinks mostly
	// hold a login of which those at hand tell, so Admit asks once, and only if they do
	// not. nil: there are no others.
	Others func(context.Context, *Known) error
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
	return k.Admit(ctx, s, held)
}

// Admit judges what was read of the sink. An error that is no Refusal says that the
// other logins could not be opened now.
func (k *Known) Admit(ctx context.Context, s Sink, held []Content) error {
	foreign := func(h Content) bool { return !(s.Lookup() && h.User != k.InUse) && !k.Has(h) }
	if others := k.Others; others != nil && slices.ContainsFunc(held, foreign) {
		if err := others(ctx, k); err != nil {
			return err
		}
		k.Others = nil
	}
	if k.Unsure || !slices.ContainsFunc(held, foreign) {
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

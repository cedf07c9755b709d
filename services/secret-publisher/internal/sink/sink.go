// Package sink writes logins to the places where applications read them. Each
// kind of sink implements Sink, and passes the one conformance suite.
package sink

import (
	"context"
	"errors"
	"fmt"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/published"
	"pawl.dev/internal/secret"
)

// Sink is one place that takes a login in one atomic write.
type Sink interface {
	// Name such as "dotenv:/srv/app/.env". No secret.
	Name() string
	// Lookup reports whether the sink maps login names to secrets, and its readers
	// know from elsewhere which login to use. What it holds of the other login
	// stays, when one is restored, too: applications come with either until they
	// were restarted, and then the servers refuse what a line is left of. The next
	// rotation writes over that line.
	Lookup() bool
	// Check touches nothing. It returns what a person should know, and an error
	// where Write would now be refused.
	Check(ctx context.Context, want Content) (warnings []string, err error)
	// Read returns what readers of the sink now get: one login, or, of a lookup
	// sink, each of the credential's that it holds, as often as it does.
	Read(ctx context.Context) ([]Content, error)
	// Held returns every login that Write could replace, also where readers could make
	// nothing of it. A value that is empty or absent is none.
	Held(ctx context.Context) ([]Content, error)
	// Write makes the sink hold want, at once or not at all, and durably.
	// Nothing is written where it holds it already; changed tells. A Refusal
	// says that the sink, as it is, cannot take it; other errors may pass.
	Write(ctx context.Context, want Content, guard Guard) (changed bool, err error)
}

// Reloader is a sink whose reader must be told of a write. What it has read the
// sink cannot show, so it is told after each Write, one that changed nothing
// among them: the process that wrote may have died before it told.
type Reloader interface {
	// Reload returns once the reader uses what the sink holds. Idempotent.
	Reload(ctx context.Context) error
}

// Cutter is a sink whose reader goes on serving whom it has let in once, whatever
// the sink holds since.
type Cutter interface {
	// Cut ends what the reader has of the credential's logins. Idempotent.
	Cut(ctx context.Context) error
}

// Unreadable is a sink of which nobody can read what it holds. What it held before
// Pawl is taken to be what is adopted, and said so.
type Unreadable interface {
	// Take marks what readers of the sink get now as the adopted login, where
	// nothing tells whose it is. Idempotent.
	Take(ctx context.Context, want Content, stillDue func(context.Context) error) error
}

// Keeper is a sink that keeps earlier logins beside what its readers get.
type Keeper interface {
	// Forget removes those that nothing can come back to any more; compromised:
	// it first takes care that nothing can. Idempotent.
	Forget(ctx context.Context, want Content, compromised bool, stillDue func(context.Context) error) error
}

// Content is what is published. What is read from a sink has one of password,
// verifier and fingerprint, and no generation.
type Content struct {
	inventory.Login
	Verifier    secret.String // what the nodes hold of the password; zero: not known
	Generation  uint64
	Rotation    string // under which it is sealed
	Fingerprint string // of user and password, keyed
}

// Holds returns nil where the readers of a sink get want, or else why not.
func Holds(ctx context.Context, s Sink, want Content) error {
	logins, err := s.Read(ctx)
	if err != nil {
		return err
	}
	if err := want.in(logins); err != nil {
		return fmt.Errorf("%s holds %w", s.Name(), err)
	}
	return nil
}

// in returns nil where whoever looks for the login among what was read finds it,
// and nothing else.
func (want Content) in(read []Content) error {
	absent := fmt.Errorf("another login than that of %s", want.User)
	for _, found := range read {
		switch {
		case found.User != "" && found.User != want.User:
			continue
		case found.Fingerprint != "" && found.Fingerprint == want.Fingerprint:
		case found.Fingerprint != "":
			return absent
		case found.Verifier.IsZero() && found.Password.Equal(want.Password):
		case !found.Verifier.IsZero() && found.Verifier.Equal(want.Verifier):
		case !postgres.Matches(want.User, want.Password, found.Verifier):
			return fmt.Errorf("another password of %s", want.User)
		case !want.Verifier.IsZero():
			return fmt.Errorf("another verifier of the password of %s than PostgreSQL: it lets clients in, but cannot pass their login on: put rolpassword of pg_authid there", want.User)
		}
		absent = nil
	}
	return absent
}

// Guard is called by Write while nobody else can write the sink, in another goroutine
// maybe, and never after Write has returned.
type Guard struct {
	// Admit judges what the sink holds and Write is about to replace. Its error
	// prevents the write.
	Admit func(held []Content) error
	// Backup keeps what is about to be replaced (empty: there was nothing).
	// Its error prevents the write.
	Backup func(ctx context.Context, old []byte) error
	// StillDue is called last before the change. Its error prevents it, so that
	// a publisher that was thought dead does not write late.
	StillDue func(ctx context.Context) error
}

// Refusal is a fault of the sink that only a person can mend.
type Refusal struct{ error }

func (r Refusal) Unwrap() error { return r.error }

func refuse(format string, args ...any) error { return Refusal{fmt.Errorf(format, args...)} }

// IsRefusal reports whether err is, or wraps, a Refusal.
func IsRefusal(err error) bool { return errors.As(err, new(Refusal)) }

// Of returns the sinks of a credential, in the order of the configuration, but
// lookup sinks before all others: whoever reads a new login must be let in with
// it. The entries for one file that holds one login are one sink: one write, one
// backup.
func Of(c *inventory.Credential) []Sink {
	var sinks []Sink
	for _, s := range c.Publish {
		switch {
		case s.Pgpass != nil:
			sinks = append(sinks, &file{kind: "pgpass", credential: c.Name, lookup: true, path: s.Pgpass.Path, format: passwords{c, s.Pgpass.Hosts}})
		case s.Pgbouncer != nil:
			list := &file{kind: "pgbouncer", credential: c.Name, lookup: true, path: s.Pgbouncer.Path, format: userlist{c}}
			sinks = append(sinks, &pooler{file: list, sink: s.Pgbouncer, credential: c})
		}
	}
	for _, entries := range published.Group(c.Publish) {
		f := &file{kind: "file", credential: c.Name, path: published.Path(entries[0]), format: whole{c, entries}}
		if entry := entries[0].File; entry != nil {
			f.mode = entry.Mode
		} else {
			f.kind = "dotenv"
		}
		for _, e := range entries {
			f.allowTracked = f.allowTracked || e.Dotenv != nil && e.Dotenv.AllowTracked
		}
		sinks = append(sinks, f)
	}
	return sinks
}

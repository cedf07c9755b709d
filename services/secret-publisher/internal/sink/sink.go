// Package sink writes logins to the places where applications read them. Each
// kind of sink implements Sink, and passes the one conformance suite.
package sink

import (
	"context"
	"errors"
	"fmt"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/published"
)

// Sink is one place that takes a whole login in one atomic write.
type Sink interface {
	// Name such as "dotenv:/srv/app/.env". No secret.
	Name() string
	// Check touches nothing. It returns what a person should know, and an error
	// where Write would now be refused.
	Check(ctx context.Context, want Content) (warnings []string, err error)
	// Read returns the login that readers of the sink now get.
	Read(ctx context.Context) (published.Login, error)
	// Write makes the sink hold want, at once or not at all, and durably.
	// Nothing is written where it holds it already; changed tells. A Refusal
	// says that the sink, as it is, cannot take it; other errors may pass.
	Write(ctx context.Context, want Content, guard Guard) (changed bool, err error)
}

// Content is what is published.
type Content struct {
	published.Login
	Generation uint64
}

// Guard is called by Write while nobody else can write the sink.
type Guard struct {
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

// Of returns the sinks of a credential, in the order of the configuration. The
// entries for one file are one sink: one write, one backup.
func Of(c *inventory.Credential) []Sink {
	var sinks []Sink
	for _, entries := range published.Group(c.Publish) {
		sinks = append(sinks, &file{credential: c, entries: entries})
	}
	return sinks
}

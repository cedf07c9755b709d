// Package restart makes one consumer read its credential again: one small
// interface, one file per kind, one conformance suite.
package restart

import (
	"context"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/restarter/internal/command"
)

// Kind is one way of restarting a consumer.
type Kind interface {
	// Restart makes the consumer read the credential. It may be called again
	// with the same cause, after a crash, and is bounded by ctx and its own
	// timeout. Its errors name what was tried and hold no secret.
	Restart(ctx context.Context, cause Cause) error
	// Check looks, touching nothing, whether Restart could do its work now: a
	// finding for people, or why not.
	Check(ctx context.Context) (finding string, err error)
}

// Cause is what a restart is for.
type Cause struct {
	Credential, Rotation, Step, Consumer string
	Left                                 []string // logins that are not used from now on
	Changed                              []string // logins of which the password changed
	// Cut ends clients of a pooler, too, that logged in with what was stolen.
	Cut bool
	// Fingerprint is that of the login that is published now; empty: not known.
	Fingerprint string
	// Show takes what shows that the consumer was restarted, from kinds that can
	// tell.
	Show func(text string)
	// At is when the sinks had been written, by the bus's clock.
	At time.Time
}

// Environ returns the environment of programs that are run for this cause.
func (c Cause) Environ() []string {
	return command.Environment("PAWL_CREDENTIAL="+c.Credential, "PAWL_ROTATION="+c.Rotation,
		"PAWL_STEP="+c.Step, "PAWL_CONSUMER="+c.Consumer)
}

// For returns the configured kind; none where nothing is configured.
func For(r inventory.Restart) Kind {
	switch {
	case r.Process != nil && r.Process.Signal != "":
		return signalled{*r.Process}
	case r.Process != nil:
		return replaced{*r.Process}
	case r.Command != nil:
		return program{*r.Command}
	case r.HTTP != nil:
		return request{*r.HTTP}
	case r.Pgbouncer != nil:
		return pooler{*r.Pgbouncer}
	}
	return none{}
}

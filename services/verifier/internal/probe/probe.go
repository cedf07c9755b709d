// Package probe holds the checks of a new login, each of one thing, behind one
// interface. They run on a connection that the new login has just made.
package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
)

// Login is what is probed: the connection, and what it is held against.
type Login struct {
	Conn *pgx.Conn
	User string // who logged in
	Role string // the owner, as whom it must act: under in-place, itself
	Old  string // the login that it replaces; empty: none to compare with
	// Another makes one more login with the same credential.
	Another func(ctx context.Context) (*pgx.Conn, error)
	// Catalogue does work on a session that is open already, in the same database:
	// in one that has just begun, catalogue queries cost more than the login. Nil:
	// on Conn.
	Catalogue func(ctx context.Context, work func(*pgx.Conn) error) error
}

func (l *Login) catalogue(ctx context.Context, work func(*pgx.Conn) error) error {
	if l.Catalogue == nil {
		return work(l.Conn)
	}
	return l.Catalogue(ctx, work)
}

// Probe checks one thing. Probes may be run any number of times.
type Probe interface {
	// Name is short and holds no secret: it stands in events and spans.
	Name() string
	// Run returns nil where all is well, saga.Permanent with the fault and its
	// fix where it is not, any other error where it could not find out.
	Run(ctx context.Context, l *Login) error
}

// For returns the probes of a credential in the order to run them: those that
// every login must pass, then the configured ones.
func For(c *inventory.Credential) []Probe {
	probes := []Probe{Identity{}, Privileges{}}
	for i, p := range c.Verify {
		if p.Pool != nil {
			probes = append(probes, Pool{Index: i, Connections: p.Pool.Connections})
		} else {
			probes = append(probes, SQL{Index: i, Text: p.SQL})
		}
	}
	return probes
}

// ForStandby returns the probes of a login on a standby. The others would write
// there, or read the catalogue that the primary has.
func ForStandby() []Probe { return []Probe{Identity{}} }

// Explain says what the server answered to what, and whether that is permanent
// or passes: the server going away, or being too busy.
func Explain(what string, err error) error {
	var state, message string
	answer, refused := new(pgconn.PgError), new(postgres.Refused)
	switch {
	case errors.As(err, &answer):
		state, message = answer.Code, answer.Message
	case errors.As(err, &refused):
		state, message = refused.SQLSTATE, refused.Message
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
	explained := fmt.Errorf("%s: SQLSTATE %s: %s", what, state, message)
	if passes(state) {
		return explained
	}
	return saga.Permanent(explained)
}

// passes reports whether an SQLSTATE speaks of the moment, not of the login:
// the classes of connection, resources, system and operator, and lost races.
// statement_timeout (57014) is none of them.
func passes(state string) bool {
	return slices.ContainsFunc([]string{"08", "40", "53", "57P", "58"}, func(class string) bool { return strings.HasPrefix(state, class) })
}

// quote writes an SQL identifier.
func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

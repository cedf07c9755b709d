package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATEs that callers tell apart. NoLogin and NoSlot come after the password
// was accepted (but NoLogin is also "no pg_hba line").
const (
	WrongPassword = "28P01" // also: no such role, no password, expired
	NoLogin       = "28000"
	NoSlot        = "53300"
	NotPermitted  = "42501"

	noTable    = "42P01"
	noSchema   = "3F000"
	noFunction = "42883"
)

// Refused is the server's own refusal. It never holds SQL text.
type Refused struct {
	SQLSTATE string
	Message  string
}

func (r *Refused) Error() string { return fmt.Sprintf("%s (SQLSTATE %s)", r.Message, r.SQLSTATE) }

// IsRefused reports whether err holds the server's refusal with one of these
// SQLSTATEs.
func IsRefused(err error, sqlstates ...string) bool {
	refused := new(Refused)
	if !errors.As(err, &refused) {
		return false
	}
	for _, state := range sqlstates {
		if refused.SQLSTATE == state {
			return true
		}
	}
	return false
}

// Unreachable is a failure to speak with the server: network, TLS, a server
// that starts or stops, an authentication method other than SCRAM. Trying again
// may help.
type Unreachable struct {
	Reason   string
	Starting bool // the server is there, and takes connections soon
}

// IsCrowded reports whether the server is there and lets nobody in for now: every slot
// is taken, or it is starting.
func IsCrowded(err error) bool {
	away := new(Unreachable)
	return IsRefused(err, NoSlot) || errors.As(err, &away) && away.Starting
}

func (u *Unreachable) Error() string { return u.Reason }

// clean turns an error of pgx into one of ours: pgx's own carry the whole
// configuration, password included, and the SQL.
func clean(err error) error {
	if err == nil {
		return nil
	}
	if answer := new(pgconn.PgError); errors.As(err, &answer) {
		message := answer.Message
		if strings.Contains(message, "SCRAM-SHA-256$") {
			message = "refused"
		}
		if strings.HasPrefix(answer.Code, "57P") { // starting, stopping, crashed
			return &Unreachable{fmt.Sprintf("%s (SQLSTATE %s)", message, answer.Code), answer.Code == "57P03"}
		}
		return &Refused{SQLSTATE: answer.Code, Message: message}
	}
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	if failed := new(pgconn.ConnectError); errors.As(err, &failed) {
		err = failed.Unwrap()
	}
	return &Unreachable{Reason: strings.Join(reasons(err), "; ")}
}

// reasons are those of several attempts, with and without TLS, or at each
// address of a name: each once, and with its address once.
func reasons(err error) (all []string) {
	if attempts, ok := err.(interface{ Unwrap() []error }); ok {
		for _, attempt := range attempts.Unwrap() {
			for _, reason := range reasons(attempt) {
				if !slices.Contains(all, reason) {
					all = append(all, reason)
				}
			}
		}
		return all
	}
	if network := new(net.OpError); errors.As(err, &network) && network.Addr != nil {
		return []string{fmt.Sprintf("%s: %v", network.Addr, network.Err)}
	}
	return []string{strings.ReplaceAll(err.Error(), "\n", "; ")}
}

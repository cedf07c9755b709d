// Package postgres is what Pawl does to PostgreSQL: logins that prove a
// password, SCRAM verifiers, a fenced and quiet transaction, and looks at roles
// and sessions. No error, log line or statement text of this package holds a
// password.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// loginTimeout bounds one attempt to log in.
const loginTimeout = 5 * time.Second

// ApplicationName is how Pawl's own sessions show in pg_stat_activity.
const ApplicationName = "pawl"

// Target is where, and as whom, to log in.
type Target struct {
	Host            string
	Port            uint16
	Database        string
	User            string
	Password        secret.String
	SSLMode         string // as libpq names them; empty: verify-full, or prefer on this machine (TLS)
	SSLRootCert     string
	ChannelBinding  string // require, prefer or disable; empty: require where SSLMode demands TLS
	ApplicationName string // empty: "pawl"
	// Own marks a session of one of Pawl's own accounts: nothing that the owner of
	// the database has set there changes what its statements mean.
	Own      bool
	ReadOnly bool   // of an Own one: its transactions may not write
	Role     string // of an Own one: as whom it acts; empty: as itself
}

// accountTarget is where the account logs in on the node. The password is left
// out.
func accountTarget(node inventory.Node, account inventory.Account) Target {
	t := CredentialTarget(node, account)
	t.User, t.Database, t.Own = account.User, account.Database, true
	return t
}

// CredentialTarget is how a credential's login reaches the node: protected on its
// way as the account is. Who logs in, and where, is left out.
func CredentialTarget(node inventory.Node, account inventory.Account) Target {
	return Target{Host: node.Host, Port: node.Port, SSLMode: account.SSLMode, SSLRootCert: account.SSLRootCert, ChannelBinding: account.ChannelBinding}
}

// as is the target for one of the account's logins. The second login of an account
// that Pawl rotates acts as the first, which has the rights.
func (t Target) as(login inventory.Login, account inventory.Account) Target {
	t.User, t.Password, t.Role = login.User, login.Password, actsAs(login, account)
	return t
}

func actsAs(login inventory.Login, account inventory.Account) (role string) {
	if account.Credential != "" && login.User != account.User {
		return account.User
	}
	return ""
}

// Login opens a connection, by SCRAM only: a login that the server would grant
// without the password (trust, peer) proves nothing and is an *Unreachable. The
// server's own refusal is a *Refused. The caller closes the connection.
func Login(ctx context.Context, t Target) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(t.conninfo())
	if err != nil {
		return nil, t.invalid(err)
	}
	t.fill(config)
	config.Password = t.Password.Reveal()
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, t.wireFix(clean(err))
	}
	if t.Own {
		if _, err := conn.Exec(ctx, pinLater); err != nil {
			_ = conn.Close(ctx) // the session is of no use
			return nil, clean(err)
		}
	}
	return conn, nil
}

// conninfo names every parameter that pgx would otherwise take from PG*
// variables, ~/.pgpass or ~/.postgresql, so that nothing of the environment
// leaks in. User, database and password are set later, in the configuration.
func (t Target) conninfo() string {
	mode, binding := t.wire()
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace
	return fmt.Sprintf(`host='%s' port='%d' user=later password=later database=later sslmode='%s' sslrootcert='%s' `+
		`sslcert='' sslkey='' sslpassword='' sslcertmode=disable sslsni=1 sslnegotiation=postgres `+
		`passfile='' target_session_attrs=any channel_binding=%s connect_timeout=%d `+
		`min_protocol_version='' max_protocol_version='' require_auth=scram-sha-256`,
		quote(t.Host), t.Port, quote(mode), quote(t.SSLRootCert), binding, int(loginTimeout.Seconds()))
}

// fill completes a configuration that was parsed from conninfo.
func (t Target) fill(config *pgx.ConnConfig) {
	name := t.ApplicationName
	if name == "" {
		name = ApplicationName
	}
	config.User, config.Database, config.Password = t.User, t.Database, ""
	config.RuntimeParams = map[string]string{}
	if t.Own {
		config.RuntimeParams = pinned(t.Role, t.ReadOnly)
	}
	config.RuntimeParams["application_name"] = name
	// Nothing is prepared by name or described ahead: a batch reaches the server
	// as the statements stand in it.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
}

// invalid says what is wrong with a target without quoting the connection string.
func (t Target) invalid(err error) error {
	if service := os.Getenv("PGSERVICE"); service != "" {
		return fmt.Errorf("PGSERVICE=%s is set: unset it, Pawl takes connections from pawl.yaml alone", service)
	}
	if parse := new(pgconn.ParseConfigError); errors.As(err, &parse) && parse.Unwrap() != nil {
		return fmt.Errorf("%s:%d: sslmode %q, sslrootcert %q: %w", t.Host, t.Port, t.SSLMode, t.SSLRootCert, parse.Unwrap())
	}
	return fmt.Errorf("%s:%d: sslmode %q: want disable, allow, prefer, require, verify-ca or verify-full", t.Host, t.Port, t.SSLMode)
}

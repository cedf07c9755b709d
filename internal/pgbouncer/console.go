// Package pgbouncer speaks with pgbouncer's admin console and edits its
// userlist. No error of this package holds a password or verifier.
package pgbouncer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
)

// commandTimeout bounds one command; pgbouncer answers those used here at once.
const commandTimeout = 5 * time.Second

// Console is a session on the admin console. It is not safe for concurrent use.
type Console struct {
	name    string
	account inventory.Account
	conn    *pgx.Conn
}

// Open logs in to the console, by SCRAM. The caller closes it.
func Open(ctx context.Context, c inventory.Console) (*Console, error) {
	name := "pgbouncer console " + c.Address()
	login, err := c.Login()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	conn, err := postgres.Login(ctx, postgres.Target{
		Host: c.Host, Port: c.Port, Database: c.Database, User: login.User, Password: login.Password, SSLMode: c.SSLMode, SSLRootCert: c.SSLRootCert, ChannelBinding: c.ChannelBinding,
	})
	switch {
	case postgres.IsRefused(err, notAllowed) && strings.Contains(err.Error(), "not allowed"):
		return nil, notAdmin(name, c.User)
	case postgres.IsRefused(err, postgres.WrongPassword, notAllowed):
		return nil, &Refused{fmt.Sprintf("%s: log in as %q: %v: correct what %s holds, or the line of %q in the userlist", name, c.User, err, c.PasswordSource(), c.User)}
	case err != nil && strings.Contains(err.Error(), notSCRAM):
		return nil, &Refused{fmt.Sprintf("%s: log in as %q: pgbouncer asks for no SCRAM proof of the password: set auth_type = scram-sha-256, and RELOAD", name, c.User)}
	case err != nil:
		return nil, fmt.Errorf("%s: log in as %q: %w", name, c.User, err)
	}
	return &Console{name, c.Account, conn}, nil
}

// notAllowed is what pgbouncer says to whoever is none of its admins or
// statisticians, and of much else.
const notAllowed = "08P01"

// notSCRAM begins pgx's text for a server that asks for another proof, or none;
// it has no type of its own.
const notSCRAM = "authentication method requirement"

// Refused is for what only a person can mend; its text says how.
type Refused struct{ reason string }

func (r *Refused) Error() string { return r.reason }

func notAdmin(console, user string) *Refused {
	return &Refused{fmt.Sprintf("%s: %q is none of admin_users: add it there, and RELOAD", console, user)}
}

// Close ends the session.
func (c *Console) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.conn.Close(ctx) // it changes nothing any more
}

// Reload has pgbouncer read its configuration and userlist anew. Idempotent.
func (c *Console) Reload(ctx context.Context) error {
	_, err := c.run(ctx, "RELOAD")
	return err
}

// Reconnect has every server connection of the database closed once its client
// lets go of it. Idempotent.
func (c *Console) Reconnect(ctx context.Context, database string) error {
	_, err := c.run(ctx, "RECONNECT "+pgx.Identifier{database}.Sanitize())
	return err
}

// CloseIdle has server connections of every pool closed once they have been idle
// for about a second, until undo is called; a RELOAD undoes it, too. Those that
// clients hold, or that are just being opened, are left alone: RECONNECT breaks
// the latter, and the clients that wait for them.
func (c *Console) CloseIdle(ctx context.Context) (undo func(context.Context) error, err error) {
	settings, err := c.Config(ctx)
	if err != nil {
		return nil, err
	}
	const name = "server_idle_timeout"
	set := func(ctx context.Context, value string) error {
		_, err := c.run(ctx, "SET "+name+" = '"+value+"'")
		return err
	}
	if err := set(ctx, "1"); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return set(ctx, settings[name]) }, nil
}

// Config returns the settings.
func (c *Console) Config(ctx context.Context) (map[string]string, error) {
	rows, err := c.run(ctx, "SHOW CONFIG")
	settings := map[string]string{}
	for _, row := range rows {
		settings[row["key"]] = row["value"]
	}
	return settings, err
}

// Admin returns a *Refused unless the console's user is an administrator by
// these settings.
func (c *Console) Admin(settings map[string]string) error {
	admins := strings.FieldsFunc(settings["admin_users"], func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
	if !slices.Contains(admins, c.account.User) {
		return notAdmin(c.name, c.account.User)
	}
	return nil
}

// Forced returns the databases for which pgbouncer itself logs in as one of
// the users, whoever its client is.
func (c *Console) Forced(ctx context.Context, users []string) (databases []string, err error) {
	rows, err := c.run(ctx, "SHOW DATABASES")
	for _, row := range rows {
		if slices.Contains(users, row["force_user"]) {
			databases = append(databases, row["name"])
		}
	}
	return databases, err
}

// Server is one of pgbouncer's connections to PostgreSQL.
type Server struct {
	User, Database string
	State          string // active: a client holds it; idle, used, tested, new
	Closing        bool   // to be closed once its client lets go of it
	id             string
}

// Servers lists the server connections of these users.
func (c *Console) Servers(ctx context.Context, users []string) ([]Server, error) {
	rows, err := c.run(ctx, "SHOW SERVERS")
	var servers []Server
	for _, row := range rows {
		if !slices.Contains(users, row["user"]) {
			continue
		}
		servers = append(servers, Server{
			User: row["user"], Database: row["database"], State: row["state"], Closing: row["close_needed"] == "1",
			id: strings.Join([]string{row["addr"], row["port"], row["local_addr"], row["local_port"], row["remote_pid"], row["connect_time"]}, " "),
		})
	}
	return servers, err
}

// Cut ends every connection, clients' and servers', of the databases in which one
// of the users has any, and lets new ones in. It returns how many databases that
// were. One that another attempt left closed is opened.
func (c *Console) Cut(ctx context.Context, users []string) (databases int, err error) {
	used := map[string]bool{}
	for _, show := range []string{"SHOW CLIENTS", "SHOW SERVERS"} {
		rows, err := c.run(ctx, show)
		if err != nil {
			return 0, err
		}
		for _, row := range rows {
			if slices.Contains(users, row["user"]) {
				used[row["database"]] = true
			}
		}
	}
	for name := range used { // SHOW DATABASES may lack one that the configuration does not name
		if _, err := c.run(ctx, "KILL "+pgx.Identifier{name}.Sanitize()); err != nil {
			return databases, err
		}
		databases++
	}
	rows, err := c.run(ctx, "SHOW DATABASES")
	if err != nil {
		return databases, err
	}
	for _, row := range rows {
		if row["paused"] == "1" {
			used[row["name"]] = true
		}
	}
	for name := range used {
		if _, err := c.run(ctx, "RESUME "+pgx.Identifier{name}.Sanitize()); err != nil {
			return databases, err
		}
	}
	return databases, nil
}

// Is reports whether both are the same connection.
func (s Server) Is(other Server) bool { return s.id == other.id }

// run sends one command by the simple protocol: the console knows no other.
func (c *Console) run(ctx context.Context, command string) ([]map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	results, err := c.conn.PgConn().Exec(ctx, command).ReadAll()
	if err != nil {
		if answer := new(pgconn.PgError); errors.As(err, &answer) {
			if answer.Message == "admin access needed" {
				return nil, notAdmin(c.name, c.account.User)
			}
			err = errors.New(answer.Message)
		}
		return nil, fmt.Errorf("%s: %s: %w", c.name, command, err)
	}
	var rows []map[string]string
	for _, result := range results {
		for _, values := range result.Rows {
			row := map[string]string{}
			for i, column := range result.FieldDescriptions {
				row[column.Name] = string(values[i])
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

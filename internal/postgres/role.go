package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/secret"
)

// Role is what the catalogue holds of a role.
type Role struct {
	Name        string
	Exists      bool
	Superuser   bool
	CanLogin    bool
	Replication bool
	ConnLimit   int           // -1: none
	ValidUntil  string        // as PostgreSQL writes it; empty: for ever
	Verifier    secret.String // zero: no password
	At          time.Time     // the server's clock when this was read
}

// Session is one row of pg_stat_activity.
type Session struct {
	PID          int
	User         string
	Application  string
	Client       string // address; "local" over a Unix socket
	BackendStart time.Time
	State        string
}

// String names a session as people look for it.
func (s Session) String() string { return fmt.Sprintf("%s@%s pid %d", s.Application, s.Client, s.PID) }

// querier is a session or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// RoleState reads a role; one that does not exist is no error. It needs to read
// pg_authid, or pawl.verifier of AdminSQL.
func (a *Admin) RoleState(ctx context.Context, name string) (role Role, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		role, err = a.role(ctx, c, name)
		return err
	})
	return role, err
}

func (a *Admin) role(ctx context.Context, q querier, name string) (Role, error) {
	roles, err := a.roles(ctx, q, name)
	return roles[name], err
}

// RoleStates reads several roles at once, as RoleState does each.
func (a *Admin) RoleStates(ctx context.Context, names ...string) (roles map[string]Role, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		roles, err = a.roles(ctx, c, names...)
		return err
	})
	return roles, err
}

func (a *Admin) roles(ctx context.Context, q querier, names ...string) (map[string]Role, error) {
	stored := "pawl.verifier(r.rolname)"
	if a.catalog.Load() {
		stored = "(SELECT rolpassword FROM pg_catalog.pg_authid a WHERE a.oid = r.oid)"
	}
	roles, err := a.rolesWith(ctx, q, stored, names...)
	if IsRefused(err, NotPermitted, noSchema, noFunction) {
		return nil, &hint{err, "the account cannot read verifiers: run what `pawl init --admin-sql` prints"}
	}
	return roles, err
}

// rolesWith reads roles, and their verifiers by the expression stored.
func (a *Admin) rolesWith(ctx context.Context, q querier, stored string, names ...string) (map[string]Role, error) {
	roles := map[string]Role{}
	for _, name := range names {
		roles[name] = Role{Name: name}
	}
	rows, err := q.Query(ctx, `SELECT rolname, rolsuper, rolcanlogin, rolreplication, rolconnlimit, coalesce(rolvaliduntil::text, ''), coalesce(left(`+stored+`, 1024), ''), clock_timestamp()
		FROM pg_catalog.pg_roles r WHERE rolname = ANY ($1)`, names)
	if err == nil {
		role, verifier := Role{Exists: true}, ""
		read := []any{&role.Name, &role.Superuser, &role.CanLogin, &role.Replication, &role.ConnLimit, &role.ValidUntil, &verifier, &role.At}
		_, err = pgx.ForEachRow(rows, read, func() error {
			role.Verifier = secret.New(verifier)
			roles[role.Name] = role
			return nil
		})
	}
	return roles, a.named(err)
}

// IsMember reports whether role may act as owner.
func (a *Admin) IsMember(ctx context.Context, role, owner string) (member bool, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		member, err = a.member(ctx, c, role, owner)
		return err
	})
	return member, err
}

func (a *Admin) member(ctx context.Context, q querier, role, owner string) (member bool, err error) {
	err = q.QueryRow(ctx, `SELECT pg_has_role($1::name, $2::name, 'MEMBER')`, role, owner).Scan(&member)
	return member, a.named(err)
}

// Sessions lists who is logged in as one of the users on this node; the workers
// of a parallel query are no logins. Without pg_monitor all but user and application is empty.
func (a *Admin) Sessions(ctx context.Context, users []string) (sessions []Session, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		sessions, err = a.sessions(ctx, c, users)
		return err
	})
	return sessions, err
}

func (a *Admin) sessions(ctx context.Context, q querier, users []string) ([]Session, error) {
	rows, err := q.Query(ctx, `SELECT pid, usename::text, coalesce(application_name, ''), coalesce(host(client_addr), 'local'),
			coalesce(backend_start, 'epoch'), coalesce(state, '')
		FROM pg_catalog.pg_stat_activity WHERE usename = ANY ($1::text[])
			AND backend_type IS DISTINCT FROM 'parallel worker' ORDER BY backend_start, pid`, users)
	if err != nil {
		return nil, a.named(err)
	}
	sessions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Session])
	return sessions, a.named(err)
}

package site

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// Own is the file from which Pawl reads the login of a credential that is its
// own.
func (s *Site) Own(credential string) string {
	return filepath.Join(s.Dir, "apps", credential, "admin.json")
}

// own makes the credential the admin of a cluster of its own, which is the same
// server, and has it published where Pawl reads it. It is published in the .env
// as well, for whoever watches.
func (s *Site) own(c *Credential) {
	c.Cluster = fmt.Sprintf("{environment: test, admin: {user: %q, password_file: %q, database: %q, sslmode: disable}, nodes: {primary: {host: 127.0.0.1, port: %d}}}",
		c.DatabaseRole(), s.Own(c.Name), "of_"+c.DatabaseRole(), s.Postgres.Port)
	c.Publish = fmt.Sprintf("[{file: {path: %q, format: json}}, {dotenv: {path: %q, user: DB_USER, password: DB_PASSWORD}}]", s.Own(c.Name), s.Env(c.Name))
}

// setUpOwn does what a superuser does once: it gives the role its rights, in a
// database of its own, and writes its file.
func (s *Site) setUpOwn(ctx context.Context, super *pgx.Conn, c Credential, password secret.String) error {
	account := inventory.Account{User: c.DatabaseRole(), Database: "of_" + c.DatabaseRole(), Credential: c.Name}
	if _, err := super.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{account.Database}.Sanitize()); err != nil {
		return err
	}
	config := super.Config().Copy()
	config.Database = account.Database
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect to %s", account.Database) // pgx's own error holds the configuration
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, postgres.AdminSQL(account, inventory.Account{}, account.Logins()), pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	text, err := json.Marshal(map[string]string{"user": account.User, "password": password.Reveal()})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.Own(c.Name)), 0o700); err != nil {
		return err
	}
	return os.WriteFile(s.Own(c.Name), text, 0o600)
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/published"
	"pawl.dev/internal/secret"
)

// admin is whom Pawl logs in as: no superuser.
const admin = "pawl_admin"

// stage is what the demo runs on. All of it is in one temporary directory.
type stage struct {
	dir      string
	binaries string
	nats     string // address
	postgres *pgserver.Server
	apps     map[string]*application
	pawl     *child
	children []*child
}

func newStage(binaries string) (*stage, error) {
	binaries, err := filepath.Abs(binaries)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pawl-demo-")
	return &stage{dir: dir, binaries: binaries, apps: map[string]*application{}}, err
}

// setUp does what the README tells a user to do, step by step.
func (s *stage) setUp(ctx context.Context) (err error) {
	say("%s\n\n", paint(bold, "Pawl: three rotations"))
	if s.postgres, err = pgserver.Start(ctx, pgserver.Options{}); err != nil {
		return err
	}
	superuser, err := s.logIn(ctx, inventory.Login{User: s.postgres.Superuser, Password: s.postgres.Password})
	if err != nil {
		return err
	}
	defer superuser.Close(context.WithoutCancel(ctx))
	version, _, _ := strings.Cut(superuser.PgConn().ParameterStatus("server_version"), " ")
	say("  PostgreSQL %s on %s:%d, thrown away afterwards\n", version, s.postgres.Host, s.postgres.Port)
	if err := s.createRoles(ctx, superuser); err != nil {
		return err
	}
	for _, a := range acts {
		if s.apps[a.Credential], err = s.startApplication(ctx, a.Credential); err != nil {
			return err
		}
	}
	say("  %d applications, each with a pool of connections\n", len(acts))
	if err := s.installPawl(ctx, superuser); err != nil {
		return err
	}
	if s.pawl, err = s.start("pawl up", "pawl", "up", "-c", s.file()); err != nil {
		return err
	}
	if err := s.pawl.await(ctx, "pawl is up"); err != nil {
		return err
	}
	say("  pawl up: six services and NATS on %s, in one process\n", s.nats)
	for _, a := range acts {
		if _, err := s.command(ctx, "adopt", a.Credential); err != nil {
			return err
		}
	}
	say("  pawl adopt: it has taken over the passwords there were, and changed none\n")
	// From now on the smoke test of this act fails.
	_, err = superuser.Exec(ctx, "INSERT INTO demo.block_rotation VALUES (true)")
	return err
}

// createRoles makes the roles with their first passwords, and their .env files.
func (s *stage) createRoles(ctx context.Context, superuser *pgx.Conn) error {
	for _, role := range append([]string{admin}, names()...) {
		password, err := secret.Generate(secret.DefaultLength)
		if err != nil {
			return err
		}
		verifier, err := postgres.Verifier(password)
		if err != nil {
			return err
		}
		if _, err := superuser.Exec(ctx, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", role, verifier.Reveal())); err != nil {
			return fmt.Errorf("create role %s: %w", role, err)
		}
		file, text := s.env(role), fmt.Sprintf("# Settings of %s\nDB_USER=%[1]s\nDB_PASSWORD=%s\n", role, password.Reveal())
		if role == admin {
			file, text = filepath.Join(s.dir, admin), password.Reveal()+"\n"
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
	}
	_, err := superuser.Exec(ctx, smokeTest)
	return err
}

// smokeTest is what the third credential's probe calls.
const smokeTest = `
CREATE SCHEMA demo;
CREATE TABLE demo.block_rotation (blocked boolean);
CREATE FUNCTION demo.smoke_test() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM demo.block_rotation) THEN
		RAISE EXCEPTION 'the smoke test fails, because the demo wants it to';
	END IF;
	RETURN true;
END $$;
GRANT USAGE ON SCHEMA demo TO billing;
GRANT SELECT ON demo.block_rotation TO billing;`

// installPawl writes pawl.yaml and the keys, and gives Pawl its rights.
func (s *stage) installPawl(ctx context.Context, superuser *pgx.Conn) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.nats = listener.Addr().String()
	if err := listener.Close(); err != nil {
		return err
	}
	var text bytes.Buffer
	if err := pawlYAML.Execute(&text, map[string]any{"NATS": s.nats, "Postgres": s.postgres, "Admin": admin, "Acts": acts, "Apps": s.apps}); err != nil {
		return err
	}
	if err := os.WriteFile(s.file(), text.Bytes(), 0o600); err != nil {
		return err
	}
	if _, err := s.command(ctx, "init"); err != nil {
		return err
	}
	rights, err := s.command(ctx, "init", "--admin-sql")
	if err != nil {
		return err
	}
	if _, err := superuser.Exec(ctx, string(rights)); err != nil {
		return fmt.Errorf("pawl init --admin-sql: %w", err)
	}
	return nil
}

var pawlYAML = template.Must(template.New("pawl.yaml").Parse(`
nats: {listen: "{{.NATS}}"}
telemetry: {metrics: "127.0.0.1:0"}
environments:
  development: {rotate_every: 90d}
clusters:
  demo:
    environment: development
    admin: {user: {{.Admin}}, password_file: {{.Admin}}, sslmode: disable}
    nodes:
      primary: {host: {{.Postgres.Host}}, port: {{.Postgres.Port}}}
credentials:
{{- range .Acts}}
  {{.Credential}}:
    cluster: demo
    role: {{.Credential}}
    strategy: {{.Strategy}}
    drain: 1s
    keep: 1h
    publish:
      - dotenv: {path: {{.Credential}}.env, user: DB_USER, password: DB_PASSWORD}
    consumers:
      - name: {{.Credential}}-app
        restart: {process: {pid_file: {{.Credential}}.pid, signal: HUP}}
        health: {http: "http://{{(index $.Apps .Credential).Address}}/healthz"}
    verify:
{{- range .Probes}}
      - {{.}}
{{- end}}
{{- end}}
`))

func (s *stage) file() string                 { return filepath.Join(s.dir, "pawl.yaml") }
func (s *stage) env(credential string) string { return filepath.Join(s.dir, credential+".env") }
func (s *stage) path(name string) string      { return filepath.Join(s.dir, name) }

// published reads what the credential's .env says now.
func (s *stage) published(credential string) (inventory.Login, error) {
	return published.Read(inventory.Sink{Dotenv: &inventory.Dotenv{Path: s.env(credential), User: "DB_USER", Password: "DB_PASSWORD"}})
}

func (s *stage) logIn(ctx context.Context, l inventory.Login) (*pgx.Conn, error) {
	return postgres.Login(ctx, postgres.Target{Host: s.postgres.Host, Port: s.postgres.Port, Database: "postgres",
		User: l.User, Password: l.Password, SSLMode: "disable", ApplicationName: "demo"})
}

// close ends everything, newest first, and removes it.
func (s *stage) close() error {
	var faults []error
	for _, c := range slices.Backward(s.children) {
		faults = append(faults, c.stop())
	}
	if s.postgres != nil {
		faults = append(faults, s.postgres.Stop())
	}
	return errors.Join(append(faults, os.RemoveAll(s.dir))...)
}

// showLogs prints the end of what the processes had to say that still should run.
func (s *stage) showLogs() {
	for _, c := range s.children {
		if c.stopped {
			continue
		}
		raw, err := os.ReadFile(c.log)
		if lines := strings.Split(strings.TrimSpace(string(raw)), "\n"); err == nil && len(raw) > 0 {
			fmt.Fprintf(os.Stderr, "\n%s said last:\n  %s\n", c.name, strings.Join(lines[max(0, len(lines)-10):], "\n  "))
		}
	}
}

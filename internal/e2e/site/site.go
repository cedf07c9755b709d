// Package site builds whole Pawl installations for tests, benchmarks and the
// demo: a PostgreSQL, a pawl.yaml, keys, .env files, and applications that use
// the credentials.
package site

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/jackc/pgx/v5"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/dotenv"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
)

// Credential is one to be set up: a role in PostgreSQL, a .env file, an entry
// in pawl.yaml.
type Credential struct {
	Name     string
	Strategy string   // alternating or in-place
	Probes   []string // SQL
	Keep     string   // default 0s: erased at once
	Drain    string   // default 0s: one empty look
	Port     uint16   // of the node as Pawl sees it; default: the server's own
	Restart  string   // YAML of the consumer's restart; empty: no consumer
	Consumer string   // its name; default: Name and -app
	Group    string   // default: none
	Login    string   // the database role; default: Role(Name)
	Cluster  string   // YAML of a cluster of its own; default: main, or by Port
	Publish  string   // YAML of the sinks; default: the .env file
	Own      bool     // it is the admin of a cluster of its own, with what `pawl init --admin-sql` gives it
}

// DatabaseRole is the name of the credential's role in PostgreSQL.
func (c Credential) DatabaseRole() string { return cmp.Or(c.Login, Role(c.Name)) }

// OwnCluster is where the credential's role is, if not in main.
func (c Credential) OwnCluster() string {
	if c.Cluster == "" && c.Port != 0 {
		return fmt.Sprintf("{environment: test, admin: {user: postgres, password_file: admin.password, sslmode: disable}, nodes: {primary: {host: 127.0.0.1, port: %d}}}", c.Port)
	}
	return c.Cluster
}

// Site is an installation.
type Site struct {
	Dir       string
	Postgres  *pgserver.Server
	File      string // pawl.yaml
	Inventory *inventory.Inventory
}

// New creates a role per credential on the server, and writes the rest. Spans
// go to the OTLP/HTTP endpoint, where one is named.
func New(ctx context.Context, dir string, server *pgserver.Server, otlp string, credentials []Credential) (*Site, error) {
	s := &Site{Dir: dir, Postgres: server, File: filepath.Join(dir, "pawl.yaml")}
	return s, s.write(ctx, otlp, credentials)
}

// Env is the .env file of a credential.
func (s *Site) Env(credential string) string {
	return filepath.Join(s.Dir, "apps", credential, ".env")
}

// Superuser connects as PostgreSQL's superuser.
func (s *Site) Superuser(ctx context.Context) (*pgx.Conn, error) {
	return postgres.Login(ctx, postgres.Target{Host: s.Postgres.Host, Port: s.Postgres.Port, Database: "postgres",
		User: s.Postgres.Superuser, Password: s.Postgres.Password, SSLMode: "disable", ApplicationName: "site"})
}

// Connect joins the bus as a user.
func (s *Site) Connect(user string) (*bus.Bus, error) {
	seed, err := bus.LoadSeed(bus.SeedFile(s.Inventory, user))
	if err != nil {
		return nil, err
	}
	return bus.Connect(bus.ConnectOptions{URL: "nats://" + s.Inventory.NATS.Listen, User: user, Seed: seed})
}

func (s *Site) write(ctx context.Context, otlp string, credentials []Credential) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "admin.password"), []byte(s.Postgres.Password.Reveal()+"\n"), 0o600); err != nil {
		return err
	}
	credentials = slices.Clone(credentials)
	for i := range credentials {
		if c := &credentials[i]; c.Own {
			s.own(c)
		}
	}
	var text bytes.Buffer
	if err := pawlYAML.Execute(&text, map[string]any{"Site": s, "NATS": port, "OTLP": otlp, "Credentials": credentials}); err != nil {
		return err
	}
	if err := os.WriteFile(s.File, text.Bytes(), 0o600); err != nil {
		return err
	}
	if err := s.roles(ctx, credentials); err != nil {
		return err
	}
	if s.Inventory, err = inventory.Load(s.File); err != nil {
		return err
	}
	_, err = embedded.CreateKeys(s.Inventory)
	return err
}

// roles creates each credential's role and .env with the same first password.
func (s *Site) roles(ctx context.Context, credentials []Credential) error {
	conn, err := s.Superuser(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	// These roles were there before Pawl: how they got their passwords is not its
	// affair, and must not look as if it were.
	for _, quiet := range []string{"log_statement = 'none'", "log_min_duration_statement = -1", "pg_stat_statements.track_utility = off"} {
		if _, err := conn.Exec(ctx, "SET "+quiet); err != nil {
			return err
		}
	}
	for _, c := range credentials {
		password, err := secret.Generate(secret.DefaultLength)
		if err != nil {
			return err
		}
		verifier, err := postgres.Verifier(password)
		if err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", pgx.Identifier{c.DatabaseRole()}.Sanitize(), verifier.Reveal())); err != nil {
			return fmt.Errorf("role of %s: %w", c.Name, err)
		}
		if c.Own {
			if err := s.setUpOwn(ctx, conn, c, password); err != nil {
				return fmt.Errorf("admin of %s: %w", c.Name, err)
			}
		}
		if err := os.MkdirAll(filepath.Dir(s.Env(c.Name)), 0o700); err != nil {
			return err
		}
		env, err := dotenv.Parse(fmt.Appendf(nil, "# settings of %s\nDB_USER=\nDB_PASSWORD=%s\n", c.Name, password.Reveal()))
		if err != nil {
			return err
		}
		_ = env.Set("DB_USER", c.DatabaseRole()) // a name that no .env file can hold is published elsewhere
		if err := os.WriteFile(s.Env(c.Name), env.Bytes(), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Role is the database role of a credential.
func Role(credential string) string { return strings.ReplaceAll(credential, "-", "_") }

// Keys returns the keys of one service, for tests that look into envelopes.
func (s *Site) Keys(service string) (*sealed.Keys, error) {
	return sealed.LoadKeys(s.Inventory.KeysDir, service)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

var pawlYAML = template.Must(template.New("pawl.yaml").Funcs(template.FuncMap{"quote": quote}).Parse(`
nats: {listen: "127.0.0.1:{{.NATS}}"}
telemetry: {metrics: "127.0.0.1:0"{{if .OTLP}}, otlp: {{quote .OTLP}}{{end}}}
environments:
  test: {rotate_every: 90d}
clusters:
  main:
    environment: test
    admin: {user: postgres, password_file: admin.password, sslmode: disable}
    nodes:
      primary: {host: 127.0.0.1, port: {{.Site.Postgres.Port}}}
{{- range .Credentials}}{{if .OwnCluster}}
  of-{{.Name}}: {{.OwnCluster}}
{{- end}}{{end}}
credentials:
{{- range .Credentials}}
  {{.Name}}:
    cluster: {{if .OwnCluster}}of-{{.Name}}{{else}}main{{end}}
    database: postgres
    role: {{quote .DatabaseRole}}
    strategy: {{.Strategy}}
    drain: {{or .Drain "0s"}}
    drain_deadline: 10m
    keep: {{or .Keep "0s"}}
{{- with .Group}}
    group: {{.}}
{{- end}}
    publish: {{with .Publish}}{{.}}{{else}}[{dotenv: {path: "apps/{{.Name}}/.env", user: DB_USER, password: DB_PASSWORD}}]{{end}}
{{- if .Restart}}
    consumers:
      - name: {{or .Consumer (printf "%s-app" .Name)}}
        restart: {{.Restart}}
{{- end}}
{{- if .Probes}}
    verify:
{{- range .Probes}}
      - sql: {{quote .}}
{{- end}}{{end}}
{{- end}}
`))

func quote(s string) string { return fmt.Sprintf("%q", s) }

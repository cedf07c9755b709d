// Package site builds whole Pawl installations for tests, benchmarks and the
// demo: a PostgreSQL or several, a pawl.yaml, keys, .env files, and applications
// that use the credentials.
package site

import (
	"bytes"
	"cmp"
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

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/cmd/pawl/natsconf"
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
	Every    string   // rotate_every; default: the environment's, 90d
	Port     uint16   // of the node as Pawl sees it; default: the server's own
	Restart  string   // YAML of the consumer's restart; empty: no consumer
	Consumer string   // its name; default: Name and -app
	Pooler   string   // YAML of the restart of a pooler before the server; empty: none
	Group    string   // default: none
	Login    string   // the database role; default: Role(Name)
	Cluster  string   // YAML of a cluster of its own; default: main, or by Port
	Nodes    []string // of the cluster main; default: every primary
	Salted   bool     // each node has the first password under a salt of its own
	Publish  string   // YAML of the sinks; default: the .env file
	Database string   // default: postgres
	Own      bool     // it is the admin of a cluster of its own, with what `pawl init --admin-sql` gives it
}

// Node is a server of the cluster main. All have the same superuser.
type Node struct {
	Name      string
	Server    *pgserver.Server
	Port      uint16 // as Pawl sees it, on 127.0.0.1; default: the server's own
	ReplicaOf string
}

// Address is where Pawl sees the node.
func (n Node) Address() inventory.Node {
	return inventory.Node{Name: n.Name, Host: n.Server.Host, Port: cmp.Or(n.Port, n.Server.Port), ReplicaOf: n.ReplicaOf}
}

// Direct is where the node's server is, past whatever stands before it.
func (n Node) Direct() inventory.Node {
	return inventory.Node{Name: n.Name, Host: n.Server.Host, Port: n.Server.Port, ReplicaOf: n.ReplicaOf}
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
	Nodes     []Node           // of the cluster main
	Postgres  *pgserver.Server // of the first node
	File      string           // pawl.yaml
	Inventory *inventory.Inventory
	Servers   []natsconf.Node // of the bus; none: the embedded one

	routes partitions // between Servers
}

// New is NewCluster with one node, "primary".
func New(ctx context.Context, dir string, server *pgserver.Server, otlp string, credentials []Credential) (*Site, error) {
	return NewCluster(ctx, dir, []Node{{Name: "primary", Server: server}}, otlp, credentials)
}

// NewCluster creates a role per credential on its primaries, and writes the
// rest. Spans go to the OTLP/HTTP endpoint, where one is named.
func NewCluster(ctx context.Context, dir string, nodes []Node, otlp string, credentials []Credential) (*Site, error) {
	s := &Site{Dir: dir, Nodes: nodes, Postgres: nodes[0].Server, File: filepath.Join(dir, "pawl.yaml")}
	return s, s.write(ctx, otlp, credentials)
}

// Node returns a node of the cluster main by name.
func (s *Site) Node(name string) Node {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	panic("no node " + name)
}

// Env is the .env file of a credential.
func (s *Site) Env(credential string) string {
	return filepath.Join(s.Dir, "apps", credential, ".env")
}

// Superuser connects to the first node as PostgreSQL's superuser.
func (s *Site) Superuser(ctx context.Context) (*pgx.Conn, error) {
	return s.SuperuserAt(ctx, s.Nodes[0])
}

// SuperuserAt connects to a node as PostgreSQL's superuser.
func (s *Site) SuperuserAt(ctx context.Context, n Node) (*pgx.Conn, error) {
	return LoginAt(ctx, n.Direct(), inventory.Login{User: n.Server.Superuser, Password: n.Server.Password}, "site")
}

// Connect joins the bus as a user.
func (s *Site) Connect(user string) (*bus.Bus, error) {
	o, err := bus.For(s.Inventory, user)
	if err != nil {
		return nil, err
	}
	return bus.Connect(o)
}

func (s *Site) write(ctx context.Context, otlp string, credentials []Credential) error {
	where, err := s.bus()
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if !n.Server.Password.Equal(s.Postgres.Password) {
			return fmt.Errorf("%s has another superuser than %s: start both with the same PostgreSQL", n.Name, s.Nodes[0].Name)
		}
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
	if err := pawlYAML.Execute(&text, map[string]any{"Site": s, "NATS": where, "OTLP": otlp, "Credentials": credentials}); err != nil {
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
	if _, err = embedded.CreateKeys(s.Inventory); err != nil || s.Servers == nil {
		return err
	}
	_, err = natsconf.Write(s.Inventory, natsconf.Options{Out: s.natsDir(), Nodes: s.Servers})
	return err
}

// roles creates each credential's role and .env with the same first password.
func (s *Site) roles(ctx context.Context, credentials []Credential) error {
	conns := map[string]*pgx.Conn{}
	for _, n := range s.Nodes {
		if n.ReplicaOf != "" {
			continue
		}
		conn, err := s.quiet(ctx, n)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		conns[n.Name] = conn
	}
	for _, c := range credentials {
		password, err := secret.Generate(secret.DefaultLength)
		if err != nil {
			return err
		}
		var verifier secret.String
		for _, node := range s.on(c) {
			if verifier.IsZero() || c.Salted {
				if verifier, err = postgres.Verifier(password); err != nil {
					return err
				}
			}
			if _, err := conns[node].Exec(ctx, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", pgx.Identifier{c.DatabaseRole()}.Sanitize(), verifier.Reveal())); err != nil {
				return fmt.Errorf("role of %s on %s: %w", c.Name, node, err)
			}
		}
		if c.Own {
			if err := s.setUpOwn(ctx, conns[s.on(c)[0]], c, password); err != nil {
				return fmt.Errorf("admin of %s: %w", c.Name, err)
			}
		}
		if err := s.firstEnv(c, password); err != nil {
			return err
		}
	}
	return nil
}

// quiet connects as superuser. What comes now was there before Pawl: how it got
// its password is not its affair, and must not look as if it were.
func (s *Site) quiet(ctx context.Context, n Node) (*pgx.Conn, error) {
	conn, err := s.SuperuserAt(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Name, err)
	}
	for _, quiet := range []string{"log_statement = 'none'", "log_min_duration_statement = -1", "pg_stat_statements.track_utility = off"} {
		if _, err := conn.Exec(ctx, "SET "+quiet); err != nil {
			return nil, errors.Join(err, conn.Close(ctx))
		}
	}
	return conn, nil
}

// on names the primaries that the credential's role is created on.
func (s *Site) on(c Credential) []string {
	if c.OwnCluster() != "" {
		return []string{s.Nodes[0].Name}
	}
	if c.Nodes != nil {
		return c.Nodes
	}
	var primaries []string
	for _, n := range s.Nodes {
		if n.ReplicaOf == "" {
			primaries = append(primaries, n.Name)
		}
	}
	return primaries
}

func (s *Site) firstEnv(c Credential, password secret.String) error {
	if err := os.MkdirAll(filepath.Dir(s.Env(c.Name)), 0o700); err != nil {
		return err
	}
	env, err := dotenv.Parse(fmt.Appendf(nil, "# settings of %s\nDB_USER=\nDB_PASSWORD=%s\n", c.Name, password.Reveal()))
	if err != nil {
		return err
	}
	_ = env.Set("DB_USER", c.DatabaseRole()) // a name that no .env file can hold is published elsewhere
	return os.WriteFile(s.Env(c.Name), env.Bytes(), 0o600)
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

var pawlYAML = template.Must(template.New("pawl.yaml").Funcs(template.FuncMap{"quote": quote, "join": func(s []string) string { return strings.Join(s, ", ") }}).Parse(`
nats: { {{- .NATS -}} }
telemetry: {metrics: "127.0.0.1:0"{{if .OTLP}}, otlp: {{quote .OTLP}}{{end}}}
environments:
  test: {rotate_every: 90d}
clusters:
  main:
    environment: test
    admin: {user: postgres, password_file: admin.password, sslmode: disable}
    nodes:
{{- range .Site.Nodes}}
      {{.Name}}: {host: {{.Address.Host}}, port: {{.Address.Port}}{{with .ReplicaOf}}, replica_of: {{.}}{{end}}}
{{- end}}
{{- range .Credentials}}{{if .OwnCluster}}
  of-{{.Name}}: {{.OwnCluster}}
{{- end}}{{end}}
credentials:
{{- range .Credentials}}
  {{.Name}}:
    cluster: {{if .OwnCluster}}of-{{.Name}}{{else}}main{{end}}
{{- with .Nodes}}
    nodes: [{{join .}}]
{{- end}}
    database: {{or .Database "postgres"}}
    role: {{quote .DatabaseRole}}
    strategy: {{.Strategy}}
    drain: {{or .Drain "0s"}}
    drain_deadline: 10m
    keep: {{or .Keep "0s"}}
{{- with .Every}}
    rotate_every: {{.}}
{{- end}}
{{- with .Group}}
    group: {{.}}
{{- end}}
    publish: {{with .Publish}}{{.}}{{else}}[{dotenv: {path: "apps/{{.Name}}/.env", user: DB_USER, password: DB_PASSWORD}}]{{end}}
{{- if .Restart}}
    consumers:
      - name: {{or .Consumer (printf "%s-app" .Name)}}
        restart: {{.Restart}}
{{- with .Pooler}}
      - name: pooler
        restart: {{.}}
{{- end}}{{end}}
{{- if .Probes}}
    verify:
{{- range .Probes}}
      - sql: {{quote .}}
{{- end}}{{end}}
{{- end}}
`))

func quote(s string) string { return fmt.Sprintf("%q", s) }

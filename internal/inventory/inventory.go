// Package inventory is pawl.yaml: what there is to rotate, where each
// credential is published and who must restart. Load checks all of it before
// anything runs; what it returns is complete, with every default filled in.
package inventory

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"pawl.dev/internal/secret"
)

// Inventory is a whole configuration file.
type Inventory struct {
	File         string // absolute path of pawl.yaml
	NATS         NATS
	DataDir      string // absolute
	KeysDir      string // absolute; never inside DataDir
	Telemetry    Telemetry
	Contacts     map[string]string
	Environments map[string]Environment
	Clusters     map[string]*Cluster
	Credentials  map[string]*Credential
	Schedule     Schedule
	// ReconcileEvery is how often what every node and sink holds is compared with
	// what it should; default 30s, from 1s.
	ReconcileEvery time.Duration
	Alerts         Alerts
	WatchLogins    WatchLogins
	Dashboard      Dashboard
	Docker         Docker
	Backup         Backup

	// Warnings are what a person should read and what does not stop anything,
	// one line each, in the order of the file.
	Warnings []string

	digest string
}

// Telemetry overrides the standard OTEL_* variables.
type Telemetry struct {
	OTLP    string // OTLP/HTTP base endpoint, such as http://127.0.0.1:4318; empty: not exported
	Jaeger  string // base URL of the UI, for links
	Metrics string // address of /metrics, /healthz and /readyz; default 127.0.0.1:9464
}

// Environment is a rotation policy.
type Environment struct {
	RotateEvery time.Duration
	Policy
	PasswordLength   int
	PasswordAlphabet string
}

// Cluster is a set of PostgreSQL nodes that one admin manages.
type Cluster struct {
	Name        string
	Environment string
	Admin       Account
	Observer    Account // default: Admin; its database, sslmode and sslrootcert default to Admin's
	Unobserved  bool    // observer: none. Nobody is to look into applications' databases
	Nodes       map[string]Node
}

// Account is how Pawl itself logs in. Exactly one of PasswordFile and
// PasswordEnv is set; Login reads it anew at each call, so that a rotated
// admin needs no restart.
type Account struct {
	User         string // the role; where Pawl turns it, Login says which of its two logins
	PasswordFile string // absolute; the password alone, or a JSON object with user and password
	PasswordEnv  string
	Database     string // default "postgres"; holds Pawl's fence table
	SSLMode      string // libpq's names; empty: by the server's host, see postgres.Target
	SSLRootCert  string // absolute
	// ChannelBinding is require, prefer or disable; empty: require where sslmode
	// demands TLS.
	ChannelBinding string
	Credential     string // the credential by which Pawl turns this account; empty: somebody else does
}

// Login is what a session is opened with. User is empty if it was read from a sink
// that carries only a password.
type Login struct {
	User     string
	Password secret.String
}

// Carries reports whether l, read from a sink, is the login that was meant: the
// same password, and the same user if the sink carries one.
func (l Login) Carries(want Login) bool {
	return l.Password.Equal(want.Password) && (l.User == "" || l.User == want.User)
}

// Node is one PostgreSQL server.
type Node struct {
	Name      string
	Host      string
	Port      uint16
	ReplicaOf string
}

// Strategies of rotation.
const (
	Alternating = "alternating"
	InPlace     = "in-place"
)

const siblingSuffix = "_b"

// Credential is one login of applications, and everything that must follow
// when it turns.
type Credential struct {
	Name             string
	Cluster          *Cluster
	Nodes            []Node // primaries, in the configured order; default: every primary of the cluster, by name; physical replicas follow them
	Database         string // what applications connect to; default "postgres"
	Role             string // any PostgreSQL name, unquoted here
	Strategy         string
	RotateEvery      time.Duration // default: the environment's
	Drain            time.Duration // default 2m; 0: one empty look
	DrainDeadline    time.Duration // default 24h
	Keep             time.Duration // default 1h
	PasswordLength   int           // default: as many as hold 256 bits, 43; at least 32
	PasswordAlphabet string        // the characters themselves; default secret.Base62
	Publish          []Sink
	Consumers        []Consumer
	Verify           []Probe
	Group            string // credentials of one group turn together; empty: none
	Policy
	Apart    []string      // credentials that no schedule turns near this one, in the order of names; it is theirs, too
	Promotes string        // the credential that must have been turned before a schedule turns this one; empty: none
	Within   time.Duration // how long before, at most; default 7d
}

// Sink is one place where the credential is published; exactly one field is set.
type Sink struct {
	Dotenv    *Dotenv
	File      *File
	Pgpass    *Pgpass
	Pgbouncer *Userlist
	// DockerSecret cannot be read back.
	DockerSecret *DockerSecret
}

// Lookup reports whether the sink maps login names to secrets: it holds both
// logins of a credential and tells nobody which one to use.
func (s Sink) Lookup() bool { return s.Pgpass != nil || s.Pgbouncer != nil }

// Dotenv publishes into a .env file. Keys are as written in the file; a
// Password of the form KEY[n] is the n-th member, from 0, of a comma-separated
// list.
type Dotenv struct {
	Path          string // absolute
	User          string // key of the user name; may be empty under in-place
	Password      string // key of the password, or KEY[n]; this, DSN or both
	DSN           string // key of a postgres:// URL
	AllowTracked  bool   // do not warn where git tracks the file
	MissingKeysOK bool   // append keys that the file lacks instead of refusing
}

// Formats of a File.
const (
	FormatDSN      = "dsn"      // postgres://user:password@host:port/database
	FormatJSON     = "json"     // {"user","password","host","port","database","generation"}
	FormatPassword = "password" // the password alone, no newline
)

// File publishes into a file of its own, in one format.
type File struct {
	Path   string // absolute
	Format string
	Mode   uint32 // of a file that does not exist yet; default 0600
}

// Pgpass publishes into a password file of libpq: to the lines of the
// credential's logins.
type Pgpass struct {
	Path  string   // absolute
	Hosts []string // host:port as the file's readers name the servers, either may be *; default: the nodes and their replicas
}

// Userlist publishes verifiers into the auth_file of a pgbouncer, and has it
// read anew.
type Userlist struct {
	Path     string // absolute
	AuthFile string // what pgbouncer calls it; default: Path
	Console  Console
}

// Console is the admin console of a pgbouncer.
type Console struct {
	Account        // one of admin_users
	Host    string // default 127.0.0.1
	Port    uint16 // default 6432
}

// Consumer is an application that uses the credential.
type Consumer struct {
	Name            string
	ApplicationName string // default: Name
	Instances       int    // default 1; 0, the default of pgbouncer: has no sessions of its own to be proven
	Restart         Restart
	Health          Health
}

// Restart is how a consumer is made to read the credential; at most one field
// is set, none means that it reads by itself.
type Restart struct {
	Process   *Process
	Command   *Command
	HTTP      *HTTPCall
	Pgbouncer *Reconnect
	Swarm     *SwarmService
	Container *Container
	Compose   *Compose
}

// Process signals, or stops and starts, a local process.
type Process struct {
	PIDFile string        // absolute
	User    string        // whose the process is; default: whoever owns the pid file
	Signal  string        // HUP, USR1, USR2, INT, TERM …: sent instead of stop and start
	Start   []string      // argv; with Start, the process is sent TERM, awaited, and started anew
	Dir     string        // working directory of Start, absolute; default: the configuration's
	Timeout time.Duration // default 30s: how long the process may take to end
}

// Command runs a program, without a shell.
type Command struct {
	Argv    []string
	Dir     string        // absolute; default: the configuration's
	Timeout time.Duration // default 1m
}

// HTTPCall sends one request.
type HTTPCall struct {
	URL       string
	Method    string        // default POST
	Timeout   time.Duration // default 10s
	TokenFile string        // absolute; sent as a bearer token
}

// Reconnect has a pgbouncer replace its server connections.
type Reconnect struct {
	Console Console
	Timeout time.Duration // default 30s: how long its clients may keep the old ones
}

// Health is the gate after each consumer's restart; zero: no gate.
type Health struct {
	HTTP    string        // must answer 2xx
	Command []string      // must exit 0
	Timeout time.Duration // default 30s: how long it may take to become healthy
}

// Probe is one check of the new credential; exactly one field is set.
type Probe struct {
	SQL  string
	Pool *Pool
}

// Pool opens this many connections at once.
type Pool struct{ Connections int }

// ContactText appends the contacts to a sentence: "; on_call: devops@example.org".
func (i *Inventory) ContactText() (text string) {
	for _, name := range slices.Sorted(maps.Keys(i.Contacts)) {
		text += fmt.Sprintf("; %s: %s", name, i.Contacts[name])
	}
	return text
}

// Digest identifies the bytes that were loaded: the first 16 hexadecimal digits
// of their SHA-256.
func (i *Inventory) Digest() string { return i.digest }

// Sibling is the second login of an alternating credential.
func (c *Credential) Sibling() string { return c.Role + siblingSuffix }

// Logins lists the database logins that the credential owns: the role, and
// under alternating its sibling.
func (c *Credential) Logins() []string {
	if c.Strategy == Alternating {
		return []string{c.Role, c.Sibling()}
	}
	return []string{c.Role}
}

// Primary is the first node: what a file that names one server names.
func (c *Credential) Primary() Node { return c.Nodes[0] }

// Members lists every server on which the credential can log in: its primaries,
// each followed by its physical replicas.
func (c *Credential) Members() []Node {
	var all []Node
	for _, primary := range c.Nodes {
		all = append(append(all, primary), c.Cluster.Replicas(primary)...)
	}
	return all
}

// Address is host:port, an IPv6 host in brackets.
func (c Console) Address() string { return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))) }

// Address is host:port, an IPv6 host in brackets.
func (n Node) Address() string {
	return net.JoinHostPort(n.Host, strconv.Itoa(int(n.Port)))
}

// Login reads the account's login. Its errors name the file or the variable,
// never what stands there.
func (a Account) Login() (Login, error) { return a.readLogin() }

// Logins lists the logins that the account may have: two, where Pawl turns it.
func (a Account) Logins() []string {
	if a.Credential != "" {
		return []string{a.User, a.User + siblingSuffix}
	}
	return []string{a.User}
}

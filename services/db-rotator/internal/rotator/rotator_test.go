package rotator

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// server logs and counts everything it may; super is a session of its superuser
// that stays out of that.
var (
	server *pgserver.Server
	super  *pgx.Conn
)

var loud = map[string]string{
	"log_statement": "all", "log_min_duration_statement": "0", "log_transaction_sample_rate": "1", "log_connections": "on",
	"max_prepared_transactions": "10", "authentication_timeout": "20s",
	"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all",
}

func TestMain(m *testing.M) {
	var err error
	server, err = pgserver.Start(context.Background(), pgserver.Options{NoSync: true, Settings: loud})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	super, err = postgres.Login(context.Background(), target(server.Superuser, server.Password))
	if err == nil {
		_, err = super.Exec(context.Background(), "SET log_transaction_sample_rate = 0; SET log_statement = 'none'; SET log_min_duration_statement = -1;"+
			"SET pg_stat_statements.track_utility = off; CREATE EXTENSION pg_stat_statements", pgx.QueryExecModeSimpleProtocol)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	for _, s := range append(started, server) {
		if err := s.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// memory is a sealed store without a bus.
type memory struct {
	mu        sync.Mutex
	envelopes map[string]map[string]*sealed.Credential // by rotation, by recipient
	secrets   []secret.String                          // all there ever were
	afterSeal func()                                   // called after our own is sealed, if set
	logins    []inventory.Login                        // what the newest rotation began from
}

func (m *memory) Open(_ context.Context, credential, rotation string) (*sealed.Credential, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	envelope, ok := m.envelopes[rotation][saga.DBRotator]
	if !ok {
		return nil, fmt.Errorf("%s under %s: %w", credential, rotation, sealed.ErrNotFound)
	}
	found := *envelope
	return &found, nil
}

func (m *memory) Seal(_ context.Context, recipient string, c *sealed.Credential) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.envelopes[c.Rotation] == nil {
		m.envelopes[c.Rotation] = map[string]*sealed.Credential{}
	}
	first := m.envelopes[c.Rotation][recipient] == nil
	if first {
		kept := *c
		m.envelopes[c.Rotation][recipient] = &kept
		m.secrets = append(m.secrets, c.Password, c.Verifier)
		if recipient == saga.DBRotator && m.afterSeal != nil {
			m.afterSeal()
		}
	}
	return first, nil
}

func (m *memory) Rotations(context.Context, string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.envelopes)), nil
}

func (m *memory) Erase(_ context.Context, _, rotation string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.envelopes, rotation)
	return nil
}

func (m *memory) Logins(context.Context, string) ([]inventory.Login, error) { return m.logins, nil }

func (m *memory) Fingerprint(user string, password secret.String) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(user+password.Reveal())))
}

// world is one credential, adopted, on the real server.
type world struct {
	t *testing.T
	*Rotator
	envelopes  *memory
	credential *inventory.Credential
	file       string // the sink
	generation uint64
	others     []*pgserver.Server // that it is on, too
	earlier    bool               // the admin has what earlier versions gave it
	// what is current
	basis, user string
}

func newWorld(t *testing.T, role string, strategy string) *world {
	t.Helper()
	w := bareWorld(t, role, strategy)
	password, verifier := newPassword(t)
	w.sql("CREATE ROLE " + pgx.Identifier{role}.Sanitize() + " LOGIN PASSWORD '" + verifier.Reveal() + "'")
	w.publish(role, password)
	w.adopt()
	return w
}

func bareWorld(t *testing.T, role string, strategy string) *world {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "admin")
	if err := os.WriteFile(file, []byte(server.Password.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, envelopes: &memory{envelopes: map[string]map[string]*sealed.Credential{}}, file: filepath.Join(dir, "login.json")}
	cluster := &inventory.Cluster{Name: "ruvector", Admin: inventory.Account{User: server.Superuser, PasswordFile: file, Database: "postgres", SSLMode: "disable"}}
	w.credential = &inventory.Credential{
		Name: "app", Cluster: cluster, Role: role, Strategy: strategy, Database: "postgres", PasswordLength: secret.DefaultLength,
		Nodes:   []inventory.Node{{Name: "coordinator", Host: server.Host, Port: server.Port}},
		Publish: []inventory.Sink{{File: &inventory.File{Path: w.file, Format: inventory.FormatJSON}}},
	}
	w.Rotator = w.replica()
	t.Cleanup(w.assertQuiet)
	return w
}

// replica is another process of the same service.
func (w *world) replica() *Rotator {
	r := New(w.envelopes, nil)
	w.t.Cleanup(r.Close)
	return r
}

func newPassword(t *testing.T) (password, verifier secret.String) {
	t.Helper()
	password, err := secret.Generate(secret.DefaultLength)
	if err != nil {
		t.Fatal(err)
	}
	if verifier, err = postgres.Verifier(password); err != nil {
		t.Fatal(err)
	}
	return password, verifier
}

func (w *world) publish(user string, password secret.String) {
	w.t.Helper()
	text, err := json.Marshal(map[string]any{"user": user, "password": password.Reveal(), "host": server.Host, "port": server.Port, "database": "postgres", "generation": 1})
	if err == nil {
		err = os.WriteFile(w.file, text, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// rotation is a folded log that has got to step.
func (w *world) rotation(id, flow string, generation uint64, log ...saga.Event) *service.Rotation {
	w.t.Helper()
	entries := []saga.Entry{{Event: saga.Requested, Seq: 1}}
	events := map[saga.Event]*pawlv1.Event{saga.Requested: {Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{
		Flow: flow, Generation: generation, Basis: w.basis, BasisUser: w.user, Role: w.credential.Role, Drain: durationpb.New(0),
	}}}}
	for i, e := range log {
		entries = append(entries, saga.Entry{Event: e, Seq: uint64(i + 2)})
		events[e] = &pawlv1.Event{}
	}
	state, err := saga.Fold(flow, entries)
	if err != nil {
		w.t.Fatal(err)
	}
	return &service.Rotation{ID: id, Credential: w.credential, State: state, Step: state.Next(), Events: events,
		StillDue: func(context.Context) error { return nil }}
}

func (w *world) next(flow string) *service.Rotation {
	w.generation++
	return w.rotation(fmt.Sprint("r", w.generation), flow, w.generation)
}

func (w *world) adopt() {
	w.t.Helper()
	r := w.next(saga.Adopt)
	e, err := w.Adopt(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.basis, w.user = r.ID, e.GetStaged().GetUser()
}

// do runs a step that must succeed, and puts its event into the rotation.
func (w *world) do(step service.Handler, r *service.Rotation, emits saga.Event) *pawlv1.Event {
	w.t.Helper()
	e, err := step(w.t.Context(), r)
	if err != nil {
		w.t.Fatalf("%s: %v", emits, err)
	}
	if e == nil {
		e = &pawlv1.Event{}
	}
	r.Events[emits] = e
	return e
}

// rotate runs the db-rotator's share of a rotation and makes it current.
func (w *world) rotate(flow string) *service.Rotation {
	w.t.Helper()
	r := w.next(flow)
	user := w.do(w.Stage, r, saga.Staged).GetStaged().GetUser()
	w.do(w.Retire, r, saga.Retired)
	w.basis, w.user = r.ID, user
	return r
}

// completed is r's log with the events that say so.
func (w *world) completed(r *service.Rotation) *service.Rotation {
	w.t.Helper()
	done := w.rotation(r.ID, r.State.Flow.Name, r.Requested().GetGeneration(),
		saga.Staged, saga.Published, saga.Restarted, saga.Verified, saga.Retired, saga.Confirmed, saga.Completed)
	maps.Copy(done.Events, r.Events)
	return done
}

func (w *world) envelope(rotation string) *sealed.Credential {
	w.t.Helper()
	c, err := w.envelopes.Open(w.t.Context(), w.credential.Name, rotation)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func target(user string, password secret.String) postgres.Target {
	return postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres", User: user, Password: password, SSLMode: "disable", ApplicationName: "api"}
}

// logsIn asserts what becomes of a login with the sealed password.
func (w *world) logsIn(c *sealed.Credential, sqlstate string) {
	w.t.Helper()
	conn, err := postgres.Login(w.t.Context(), target(c.User, c.Password))
	if err == nil {
		var user string
		if err := conn.QueryRow(w.t.Context(), "SELECT current_user").Scan(&user); err != nil || user != w.credential.Role {
			w.t.Errorf("%q acts as %q, %v; want %q", c.User, user, err, w.credential.Role)
		}
		w.hangUp(conn)
	}
	if (sqlstate == "") != (err == nil) || (err != nil && !postgres.IsRefused(err, sqlstate)) {
		w.t.Errorf("login of %q: %v; want SQLSTATE %q", c.User, err, sqlstate)
	}
}

func (w *world) connect(user string, password secret.String) *pgx.Conn {
	w.t.Helper()
	conn, err := postgres.Login(w.t.Context(), target(user, password))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// hangUp closes a session and waits until the server has noticed.
func (w *world) hangUp(conn *pgx.Conn) {
	w.t.Helper()
	pid := conn.PgConn().PID()
	conn.Close(w.t.Context())
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for there := true; there; <-tick.C {
		if err := super.QueryRow(w.t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid).Scan(&there); err != nil {
			w.t.Fatal(err)
		}
	}
}

// sql runs statements as the superuser, unlogged.
func (w *world) sql(statements ...string) {
	w.t.Helper()
	for _, s := range statements {
		if _, err := super.Exec(context.Background(), s, pgx.QueryExecModeSimpleProtocol); err != nil { // also in Cleanup
			w.t.Fatal(err)
		}
	}
}

func (w *world) role(name string) postgres.Role {
	w.t.Helper()
	admin, err := w.admin(w.credential, w.credential.Primary())
	if err != nil {
		w.t.Fatal(err)
	}
	role, err := admin.RoleState(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	role.At = time.Time{}
	return role
}

// through sends the rotator through a cutter.
func (w *world) through() *pgserver.Cutter {
	w.t.Helper()
	cutter, err := pgserver.NewCutter(net.JoinHostPort(server.Host, strconv.Itoa(int(server.Port))))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cutter.Close() })
	w.Close()
	w.credential.Nodes[0].Port = cutter.Port
	return cutter
}

// assertQuiet searches the server's log and statistics for every secret there was.
func (w *world) assertQuiet() {
	var log []byte
	for _, s := range append([]*pgserver.Server{server}, w.others...) {
		one, err := os.ReadFile(s.LogFile)
		if err != nil {
			w.t.Fatal(err)
		}
		log = append(log, one...)
	}
	var counted string
	if err := super.QueryRow(context.Background(), "SELECT string_agg(query, ' ') FROM pg_stat_statements").Scan(&counted); err != nil {
		w.t.Fatal(err)
	}
	if !strings.Contains(string(log), "INSERT INTO pawl.fence") && !strings.Contains(string(log), "pg_roles") {
		w.t.Error("the log holds nothing of Pawl's: this search proves nothing")
	}
	for _, s := range w.envelopes.secrets {
		if !s.IsZero() && (strings.Contains(string(log), s.Reveal()) || strings.Contains(counted, s.Reveal())) {
			w.t.Error("the server's log or pg_stat_statements holds a secret")
		}
	}
}

package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/verifier/internal/pgtest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Run(m, pgserver.Options{HBA: []string{
		"host all trusted 127.0.0.1/32 trust",
	}}))
}

const node = "coordinator"

// envelope is a sealed store of one credential.
type envelope sealed.Credential

func (e *envelope) Open(context.Context, string, string) (*sealed.Credential, error) {
	return (*sealed.Credential)(e), nil
}

// bed is a rotation that has come to verify, on a real database.
type bed struct {
	*app
	role, observer string
	rotation       *service.Rotation
	recorder       effect.Recorder
	notes          chan *pawlv1.Note
}

func newBed(t *testing.T, flow string) *bed {
	t.Helper()
	b := &bed{role: pgtest.Name(), observer: pgtest.Name() + " observer", notes: make(chan *pawlv1.Note, 1000)}
	user := b.role
	pgtest.Create(t, b.role, "")
	pgtest.Create(t, b.observer, "IN ROLE pg_monitor")
	if flow == saga.Alternating {
		user = pgtest.Sibling(t, b.role, "")
	}
	b.app = &app{sealed: &envelope{User: user, Password: secret.New(pgtest.Password)}, note: func(_ context.Context, n *pawlv1.Note) { b.notes <- n }}
	t.Cleanup(b.accounts.close)

	events := map[saga.Event]*pawlv1.Event{
		saga.Requested: {Detail: &pawlv1.Event_Requested{Requested: &pawlv1.Requested{Role: b.role, BasisUser: b.role}}},
		saga.Staged: {Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{
			User: user, CommittedAt: map[string]*timestamppb.Timestamp{node: timestamppb.New(pgtest.Now(t))},
		}}},
	}
	if flow == saga.Adopt {
		events[saga.Adopted] = &pawlv1.Event{Detail: &pawlv1.Event_Staged{Staged: &pawlv1.Staged{User: user}}}
		delete(events, saga.Staged)
	}
	table, _ := saga.FlowByName(flow)
	b.rotation = &service.Rotation{
		ID: "r1", Credential: b.credential(t, flow), State: saga.State{Flow: table}, Step: &saga.Step{Name: "verify"}, Events: events,
		Deadline: time.Now().Add(time.Minute),
	}
	return b
}

func (b *bed) credential(t *testing.T, flow string) *inventory.Credential {
	t.Helper()
	account := func(user, password string) inventory.Account {
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
		return inventory.Account{User: user, PasswordFile: file, Database: "postgres", SSLMode: "disable"}
	}
	strategy := inventory.InPlace
	if flow == saga.Alternating {
		strategy = inventory.Alternating
	}
	return &inventory.Credential{
		Name: "app", Role: b.role, Database: "postgres", Strategy: strategy,
		Cluster: &inventory.Cluster{
			Name:  "main",
			Admin: account(pgtest.Server.Superuser, pgtest.Server.Password.Reveal()), Observer: account(b.observer, pgtest.Password),
		},
		Nodes: []inventory.Node{{Name: node, Host: pgtest.Server.Host, Port: pgtest.Server.Port}},
	}
}

func (b *bed) user() string { return b.rotation.Staged().GetUser() }

func (b *bed) run(t *testing.T, step service.Handler) (*pawlv1.Event, error) {
	t.Helper()
	ctx, cancel := context.WithDeadline(effect.With(t.Context(), &b.recorder), b.rotation.Deadline)
	defer cancel()
	event, err := step(ctx, b.rotation)
	if err != nil && strings.Contains(err.Error(), pgtest.Password) {
		t.Error("the error holds the password")
	}
	return event, err
}

// fails demands a permanent failure that says all of names.
func (b *bed) fails(t *testing.T, names ...string) {
	t.Helper()
	_, err := b.run(t, b.verify)
	if !saga.IsPermanent(err) {
		t.Fatalf("got %v; want a permanent failure", err)
	}
	for _, want := range names {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q; want it to say %q", err, want)
		}
	}
}

// consumes adds a consumer.
func (b *bed) consumes(name string, instances int) {
	b.rotation.Credential.Consumers = append(b.rotation.Credential.Consumers,
		inventory.Consumer{Name: name, ApplicationName: name + " application", Instances: instances})
}

// soon lets the step run out of time: enough for its look, no more.
func (b *bed) soon() { b.rotation.Deadline = time.Now().Add(2 * time.Second) }

func (b *bed) operations(name string) (targets []string) {
	for _, op := range b.recorder.Operations() {
		if op.GetName() == name {
			targets = append(targets, op.GetTarget())
		}
	}
	return targets
}

func serverLog(t *testing.T) string {
	t.Helper()
	log, err := os.ReadFile(pgtest.Server.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

func TestVerifyMakesOneLoginPerNode(t *testing.T) {
	b := newBed(t, saga.Alternating)
	b.rotation.Credential.Verify = []inventory.Probe{{SQL: "SELECT 1"}, {SQL: "SELECT 2"}}
	b.consumes("api", 1)
	pgtest.Login(t, b.user(), "api application")
	before := serverLog(t)
	event, err := b.run(t, b.verify)
	if err != nil {
		t.Fatal(err)
	}
	if said := serverLog(t)[len(before):]; strings.Contains(said, "ERROR") || strings.Contains(said, "WARNING") {
		t.Errorf("verify provokes errors in the server's log: %s", said)
	}
	if got := b.operations("log in"); !slices.Equal(got, []string{node}) {
		t.Errorf("logins %q, want one", got)
	}
	if got, want := b.operations("probe"), []string{"coordinator identity", "coordinator privileges", "coordinator sql 0", "coordinator sql 1"}; !slices.Equal(got, want) {
		t.Errorf("probes %q, want %q", got, want)
	}
	if got := event.GetProof().GetConsumers(); len(got) != 1 || got[0].GetName() != "api" || len(got[0].GetSessions()) != 1 {
		t.Errorf("proof %v; want one session of api", got)
	}
	if event.GetProof().GetOutage() != nil {
		t.Error("alternating has no outage")
	}
}

func TestTrustedLoginProvesNothing(t *testing.T) {
	b := newBed(t, saga.InPlace)
	pgtest.Create(t, "trusted", "")
	defer pgtest.Exec(t, "DROP ROLE trusted")
	b.rotation.Staged().User, b.sealed = "trusted", &envelope{User: "trusted", Password: secret.New(pgtest.Password)}
	b.fails(t, "coordinator", `"trusted"`, "pg_hba", "scram-sha-256")
}

func TestWrongPasswordIsTriedOnce(t *testing.T) {
	b := newBed(t, saga.InPlace)
	b.sealed = &envelope{User: b.role, Password: secret.New("another-c4nary")}
	b.rotation.Credential.Verify = []inventory.Probe{{Pool: &inventory.Pool{Connections: 5}}}
	b.fails(t, "28P01")
	if got := b.operations("log in"); len(got) != 1 {
		t.Errorf("%d logins; a failed one feeds alarms", len(got))
	}
}

func TestMissingMembershipIsCaught(t *testing.T) {
	b := newBed(t, saga.Alternating)
	pgtest.Exec(t, fmt.Sprintf("REVOKE %s FROM %s", pgtest.Quote(b.role), pgtest.Quote(b.user())))
	b.fails(t, "GRANT "+pgtest.Quote(b.role)+" TO "+pgtest.Quote(b.user()))
}

func TestDifferingSettingIsCaught(t *testing.T) {
	b := newBed(t, saga.Alternating)
	pgtest.Exec(t, fmt.Sprintf("ALTER ROLE %s SET search_path TO elsewhere", pgtest.Quote(b.role)))
	b.fails(t, "search_path")
}

func TestFailingProbeIsNamed(t *testing.T) {
	b := newBed(t, saga.InPlace)
	b.rotation.Credential.Verify = []inventory.Probe{{SQL: "SELECT 1"}, {SQL: "SELECT no_such_column"}}
	b.fails(t, "coordinator", "verify[1] (sql)", "42703", "no_such_column")
}

func TestOneOfTwoInstancesIsNotEnough(t *testing.T) {
	t.Parallel()
	b := newBed(t, saga.Alternating)
	b.consumes("api", 2)
	b.consumes("worker", 1)
	pgtest.Login(t, b.user(), "api application")
	left := pgtest.Login(t, b.role, "worker application").PgConn().PID()
	b.soon()
	b.fails(t, "api: 1 of 2 instances on the new login",
		fmt.Sprintf("worker: 0 of 1 instances on the new login; 1 session still on the old one: pid %d on coordinator", left))
}

func TestConsumerWithoutInstancesNeedsNoProof(t *testing.T) {
	t.Parallel()
	b := newBed(t, saga.Alternating)
	b.consumes("pooler", 0)
	pgtest.Login(t, b.role, "pooler application") // of a client that calls itself so
	event, err := b.run(t, b.verify)
	if err != nil || len(event.GetProof().GetConsumers()) > 0 {
		t.Errorf("%v, %v", event.GetProof(), err)
	}
	if finding(b.examine(t.Context(), b.rotation.Credential), false, "pooler") {
		t.Error("examined")
	}
}

func TestParallelWorkersAreNoInstances(t *testing.T) {
	t.Parallel()
	b := newBed(t, saga.InPlace)
	b.consumes("api", 2)
	slow := pgtest.Quote(b.role + " slow")
	pgtest.Exec(t, "CREATE FUNCTION "+slow+"() RETURNS void LANGUAGE sql PARALLEL SAFE AS 'SELECT pg_sleep(600)'")
	conn := pgtest.Login(t, b.role, "api application")
	if _, err := conn.Exec(t.Context(), "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(ctx, "SELECT "+slow+"()")
		ended <- err
	}()
	pgtest.Await(t, "SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = $1 AND backend_type = 'parallel worker'", b.role)
	b.soon()
	b.fails(t, "api: 1 of 2 instances")
	cancel()
	<-ended
}

func TestSessionOfTheOldLoginHoldsVerifyBack(t *testing.T) {
	b := newBed(t, saga.Alternating)
	b.consumes("api", 1)
	pgtest.Login(t, b.user(), "api application")
	old := pgtest.Login(t, b.role, "api application")
	pgtest.Login(t, b.role, "somebody else's") // not a consumer: the drain is for it

	type result struct {
		event *pawlv1.Event
		err   error
	}
	ended := make(chan result, 1)
	go func() {
		event, err := b.run(t, b.verify)
		ended <- result{event, err}
	}()
	select {
	case early := <-ended:
		t.Fatalf("verify ended before the old session did: %v", early)
	case note := <-b.notes:
		if want := fmt.Sprintf("api: 1 of 1 instances on the new login; 1 session still on the old one: pid %d", old.PgConn().PID()); note.GetKind() != "waiting" || !strings.Contains(note.GetText(), want) {
			t.Errorf("the note says %q; want %q", note.GetText(), want)
		}
	}
	pgtest.End(t, old)
	if late := <-ended; late.err != nil {
		t.Fatal(late.err)
	}
}

func TestSessionsOlderThanTheCommitProveNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, saga.InPlace)
	b.consumes("api", 1)
	old := pgtest.Login(t, b.role, "api application")
	committed := pgtest.Now(t)
	b.rotation.Staged().CommittedAt[node] = timestamppb.New(committed)
	b.soon()
	b.fails(t, "api: 0 of 1 instances with the new password; 1 session still from before it")

	pgtest.Login(t, b.role, "api application")
	b.soon()
	b.fails(t, "api: 1 of 1 instances", "1 session still from before it")

	pgtest.End(t, old)
	b.rotation.Deadline = time.Now().Add(time.Minute)
	b.rotation.Events[saga.Published] = &pawlv1.Event{Operations: []*pawlv1.Operation{
		{Name: "write sink", StartedAt: timestamppb.New(committed.Add(2 * time.Second))},
		{Name: "write sink", StartedAt: timestamppb.New(committed.Add(time.Second))},
		{Name: "back up", StartedAt: timestamppb.New(committed.Add(time.Hour))},
	}}
	event, err := b.run(t, b.verify)
	if err != nil {
		t.Fatal(err)
	}
	if got := event.GetProof().GetOutage().AsDuration(); got != 2*time.Second {
		t.Errorf("outage %v, want 2s", got)
	}
}

func TestSkewedClocksMakeNoNegativeOutage(t *testing.T) {
	b := newBed(t, saga.InPlace)
	b.rotation.Events[saga.Published] = &pawlv1.Event{Operations: []*pawlv1.Operation{
		{Name: "write sink", StartedAt: timestamppb.New(time.Unix(1, 0))},
	}}
	if got := outage(b.rotation).AsDuration(); got != 0 {
		t.Errorf("outage %v, want 0", got)
	}
}

func TestAdoptionProvesTheLoginAlone(t *testing.T) {
	b := newBed(t, saga.Adopt)
	b.consumes("api", 1)
	event, err := b.run(t, b.verify)
	if err != nil || event.GetProof() != nil {
		t.Errorf("got %v, %v; want an event without proof", event, err)
	}
}

func TestBlindObserverIsNamed(t *testing.T) {
	b := newBed(t, saga.InPlace)
	pgtest.Exec(t, "REVOKE pg_monitor FROM "+pgtest.Quote(b.observer))
	b.consumes("api", 1)
	pgtest.Login(t, b.role, "api application")
	b.fails(t, "coordinator", "GRANT pg_monitor")
}

func TestNewNodeProvesNothing(t *testing.T) {
	b := newBed(t, saga.InPlace)
	b.rotation.Staged().CommittedAt = nil
	b.fails(t, node, "not staged")
}

package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/services/verifier/internal/pgtest"
)

const replica = "replica-1"

// follow has the bed's set be these two servers: a primary by the
// configuration, and a replica.
func (b *bed) follow(t *testing.T, primary, standby *pgserver.Server) {
	t.Helper()
	b.accounts.close()
	c := b.rotation.Credential
	c.Nodes[0].Port = primary.Port
	c.Cluster.Nodes = map[string]inventory.Node{node: c.Nodes[0], replica: {Name: replica, Host: standby.Host, Port: standby.Port, ReplicaOf: node}}
	if staged := b.rotation.Staged(); staged != nil {
		staged.CommittedAt[replica] = timestamppb.New(pgtest.Now(t))
	}
}

// withReplica is a bed whose server has a standby that has replayed all.
func withReplica(t *testing.T, flow string) (*bed, *pgserver.Server) {
	t.Helper()
	b := newBed(t, flow)
	standby := pgtest.Standby(t, pgtest.Server, nil)
	b.follow(t, pgtest.Server, standby)
	b.replayed(t)
	return b, standby
}

// replayed returns once the replica has all that was committed.
func (b *bed) replayed(t *testing.T) {
	t.Helper()
	c := b.rotation.Credential
	var at [2]*postgres.Admin
	for i, name := range []string{node, replica} {
		var err error
		if at[i], err = b.accounts.admin(c, c.Cluster.Nodes[name]); err != nil {
			t.Fatal(err)
		}
	}
	lsn, err := at[0].Position(t.Context())
	if err == nil {
		_, err = at[1].AwaitReplay(t.Context(), lsn)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bed) refusesOn(t *testing.T, target, text string) {
	t.Helper()
	if lines := b.check(t.Context(), b.rotation.Credential); !findingOn(target, lines, true, text) {
		t.Errorf("no refusal of %s says %q: %v", target, text, lines)
	}
}

func TestVerifyLogsInOnReplicasToo(t *testing.T) {
	t.Parallel()
	b, standby := withReplica(t, saga.Alternating)
	c := b.rotation.Credential
	c.Verify = []inventory.Probe{{SQL: "SELECT pg_current_wal_lsn()"}, {Pool: &inventory.Pool{Connections: 2}}} // the first fails on a standby
	b.consumes("reports", 2)
	pgtest.Login(t, b.user(), "reports application")
	pgtest.LoginOn(t, standby, b.user(), "reports application")
	event, err := b.run(t, b.verify)
	if err != nil {
		t.Fatal(err)
	}
	logins, probes := b.operations("log in"), b.operations("probe")
	slices.Sort(logins)
	slices.Sort(probes)
	if want := []string{node, replica}; !slices.Equal(logins, want) {
		t.Errorf("logins on %q, want %q", logins, want)
	}
	if want := []string{"coordinator identity", "coordinator pool 1", "coordinator privileges", "coordinator sql 0", "replica-1 identity"}; !slices.Equal(probes, want) {
		t.Errorf("probes %q, want %q", probes, want)
	}
	if got := event.GetProof().GetConsumers()[0].GetSessions(); len(got) != 2 || !strings.HasPrefix(got[0], node) || !strings.HasPrefix(got[1], replica) {
		t.Errorf("proof %q; want a session on each", got)
	}

	left := pgtest.LoginOn(t, standby, b.role, "reports application")
	b.soon()
	b.fails(t, fmt.Sprintf("1 session still on the old one: pid %d on %s", left.PgConn().PID(), replica))
}

// After a failover the configuration has the names the wrong way round.
func TestProbesRunWhereWritesAreTaken(t *testing.T) {
	t.Parallel()
	b, standby := withReplica(t, saga.Alternating)
	b.follow(t, standby, pgtest.Server)
	b.rotation.Credential.Verify = []inventory.Probe{{SQL: "SELECT pg_current_wal_lsn()"}}
	if _, err := b.run(t, b.verify); err != nil {
		t.Fatal(err)
	}
	probes := b.operations("probe")
	slices.Sort(probes)
	if want := []string{"coordinator identity", "replica-1 identity", "replica-1 privileges", "replica-1 sql 0"}; !slices.Equal(probes, want) {
		t.Errorf("probes %q, want %q", probes, want)
	}
	if lines := b.check(t.Context(), b.rotation.Credential); !finding(lines, false, "warning: replica-1 takes its writes") || !finding(lines, false, "follows replica-1") {
		t.Errorf("got %v; want the failover noted, and nothing else", lines)
	}
	b.admits(t)

	b.follow(t, standby, standby) // nobody writes
	if _, err := b.run(t, b.verify); err == nil || saga.IsPermanent(err) || !strings.Contains(err.Error(), "none of its replicas takes writes") {
		t.Errorf("got %v; want to wait for a primary", err)
	}
	b.refuses(t, "no replica of it takes writes: promote one")
}

func TestEveryNodeThatRefusesIsNamed(t *testing.T) {
	t.Parallel()
	b, _ := withReplica(t, saga.InPlace)
	b.sealed = &envelope{User: b.role, Password: secret.New("another-c4nary")}
	b.fails(t, `coordinator: log in as`, `; replica-1: log in as`)
}

func TestConfirmWaitsForALateReplica(t *testing.T) {
	t.Parallel()
	b, standby := withReplica(t, saga.Alternating)
	pgtest.On(t, standby, "SELECT pg_wal_replay_pause()")
	pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.role)+" NOLOGIN")
	_, err := b.run(t, b.confirm)
	wait := new(saga.NotYet)
	if !errors.As(err, &wait) || !slices.Equal(wait.Laggards, []string{replica}) || !strings.Contains(wait.Why, "replica-1 has WAL yet to replay") {
		t.Fatalf("got %v; want to wait for the replica", err)
	}
	pgtest.On(t, standby, "SELECT pg_wal_replay_resume()")
	b.replayed(t)
	if _, err := b.run(t, b.confirm); err != nil {
		t.Error(err)
	}
	// What it has replayed is no wait, but a fault of both.
	pgtest.Exec(t, "ALTER ROLE "+pgtest.Quote(b.role)+" LOGIN")
	b.replayed(t)
	b.says(t, fmt.Sprintf("replica-1: the old login %q may log in", b.role))
}

func TestPreflightJudgesReplicas(t *testing.T) {
	t.Parallel()
	b, standby := withReplica(t, saga.Alternating)
	c := b.rotation.Credential
	b.admits(t)
	if lines := b.check(t.Context(), c); !findingOn(replica, lines, false, "follows coordinator") {
		t.Errorf("got %v", lines)
	}

	pgtest.On(t, standby, "SELECT pg_wal_replay_pause()")
	b.refusesOn(t, replica, "replay is paused")
	s := standing{node: c.Cluster.Nodes[replica], report: &report{node: replica}}
	lead := standing{node: c.Nodes[0]}
	if err := pgtest.Super(t).QueryRow(t.Context(), "SELECT '7FFFFFFF/0'::pg_lsn").Scan(&lead.position); err != nil {
		t.Fatal(err)
	}
	b.checkLag(t.Context(), c, &s, &lead, time.Hour)
	b.checkLag(t.Context(), c, &s, &lead, 0)
	if !findingOn(replica, s.report.lines, false, "each step waits for it") || !findingOn(replica, s.report.lines, true, "bytes of WAL yet to replay, and a rotation waits") {
		t.Errorf("got %v; want it borne, then not", s.report.lines)
	}
	pgtest.On(t, standby, "SELECT pg_wal_replay_resume()")

	pgtest.On(t, standby, "ALTER SYSTEM SET recovery_min_apply_delay = '31s'")
	pgtest.On(t, standby, "SELECT pg_reload_conf()")
	pgtest.AwaitOn(t, standby, "SELECT current_setting('recovery_min_apply_delay') = '31s'")
	b.accounts.close() // a session reads the file between two queries
	b.refusesOn(t, replica, "recovery_min_apply_delay is 31s, and a rotation waits for replicas at most 30s")
	pgtest.On(t, standby, "ALTER SYSTEM RESET recovery_min_apply_delay")
	pgtest.On(t, standby, "SELECT pg_reload_conf()")
	pgtest.AwaitOn(t, standby, "SELECT current_setting('recovery_min_apply_delay') = '0'")
	b.accounts.close()
	b.admits(t)

	if err := standby.Follow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	b.refusesOn(t, replica, "receives no WAL")
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.refuses(t, "coordinator and replica-1 all take writes")

	another := pgtest.Standby(t, pgtest.Server, nil)
	b.follow(t, standby, another)
	b.refusesOn(t, replica, "streams timeline 1, and coordinator writes timeline 2")

	if err := another.Stop(); err != nil {
		t.Fatal(err)
	}
	b.accounts.close()
	b.refusesOn(t, replica, "cannot log in: replica-1")
}

// The servers of these tests are copies of one, so the identifier is made up.
func TestPreflightFindsAStandbyOfAnotherServer(t *testing.T) {
	b := newBed(t, saga.InPlace)
	lead := standing{node: b.rotation.Credential.Nodes[0]}
	lead.read(t.Context(), pgtest.Super(t))
	if !lead.known || lead.system == 0 {
		t.Fatalf("no system identifier in %+v", lead)
	}
	s := standing{report: &report{node: replica}, system: lead.system + 1, timeline: lead.timeline}
	b.checkReplica(t.Context(), b.rotation.Credential, &s, &lead)
	if !findingOn(replica, s.report.lines, true, "is no copy of coordinator") {
		t.Errorf("got %v", s.report.lines)
	}
}

// A standby has its own pg_hba.conf, and its own free slots.
func TestPreflightLooksAtReplicasThemselves(t *testing.T) {
	t.Parallel()
	b := newBed(t, saga.Alternating)
	c := b.rotation.Credential
	standby := pgtest.Standby(t, pgtest.Server, map[string]string{"superuser_reserved_connections": "96"}) // 4 are left
	b.follow(t, pgtest.Server, standby)
	b.replayed(t)
	b.consumes("reports", 1)
	b.admits(t)
	for range 2 {
		pgtest.LoginOn(t, standby, b.role, "reports application")
	}
	b.refusesOn(t, replica, "2 new sessions may stand beside as many old ones, and max_connections has")

	c.Consumers = nil
	c.Cluster.Observer = c.Cluster.Admin
	pgtest.HBA(t, standby, `host all "`+b.role+`" 10.1.0.0/16 scram-sha-256`)
	b.refusesOn(t, replica, fmt.Sprintf("no line lets %q in", b.user()))
}

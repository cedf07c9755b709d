package app

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func (m memory) Rotations(context.Context, string) (all []string, _ error) {
	for rotation := range m.held {
		all = append(all, rotation)
	}
	return all, nil
}

// newPooledBench is a bench whose credential is also in a password file and in
// the userlist of a pgbouncer, whose console lets both logins in: they show what
// it has read.
func newPooledBench(t *testing.T) (*bench, *pooltest.Pooler) { return newPooledBenchAt(t, 1) }

func newPooledBenchAt(t *testing.T, server uint16) (*bench, *pooltest.Pooler) {
	b := newBench(t)
	for _, c := range b.store.held {
		var err error
		if c.Verifier, err = postgres.Verifier(c.Password); err != nil {
			t.Fatal(err)
		}
	}
	p := pooltest.Start(t, server, pooltest.Line("app", b.store.held["r1"].Verifier.Reveal()), map[string]string{"stats_users": "app, app_b"})
	pgpass := filepath.Join(filepath.Dir(b.env), ".pgpass")
	b.put(pgpass, "h:1:*:app:oldpassword\n")
	b.credential.Publish = append(b.credential.Publish,
		inventory.Sink{Pgpass: &inventory.Pgpass{Path: pgpass, Hosts: []string{"h:1"}}},
		inventory.Sink{Pgbouncer: &inventory.Userlist{Path: p.Userlist, AuthFile: p.Userlist, Console: p.Console}})
	return b, p
}

// passes reports whether the pooler lets the login of a rotation in.
func (b *bench) passes(p *pooltest.Pooler, rotation string) bool {
	c := b.store.held[rotation]
	conn, err := postgres.Login(b.Context(), p.Target(c.User, c.Password.Reveal(), "pgbouncer"))
	if err == nil {
		conn.Close(context.Background())
	}
	return err == nil
}

func (b *bench) did() (all []string) {
	for _, op := range b.recorder.Operations() {
		if op.GetName() == "write sink" || op.GetName() == "reload" {
			kind, _, _ := strings.Cut(op.GetTarget(), ":")
			all = append(all, op.GetName()+" "+kind)
		}
	}
	return all
}

var lookupsFirst = []string{"write sink pgpass", "write sink pgbouncer", "reload pgbouncer", "write sink dotenv", "write sink file"}

func TestNewLoginIsLetInBeforeAnythingTellsToUseIt(t *testing.T) {
	b, p := newPooledBench(t)
	late := errors.New("nobody may use it yet")
	looks := 0
	b.stillDue = func() error { // the third is under the lock on the .env
		if looks++; looks < 3 {
			return nil
		}
		if !b.passes(p, "r2") {
			t.Error("the .env is about to name a login that the pooler refuses")
		}
		return late
	}
	if _, err := b.run("publish", "r2", rotate); !errors.Is(err, late) {
		t.Fatal(err)
	}
	b.want(envBefore, dsnBefore)
	b.stillDue = func() error { return nil }
	event, err := b.run("publish", "r2", rotate)
	if err != nil || event.GetSummary() != "all 4 sinks hold the login of app_b, 2 written now" || !slices.Equal(b.did(), lookupsFirst) {
		t.Fatal(event.GetSummary(), err, b.did())
	}
	b.want(envAfter, dsnAfter)
	if _, err := b.run("restore", "r2", rotate); err != nil || !slices.Equal(b.did(), lookupsFirst) {
		t.Fatal(err, b.did())
	}
	b.want(envBefore, dsnBefore)
	if !b.passes(p, "r1") || !b.passes(p, "r2") {
		t.Error("a login is missing: an application may use either")
	}
}

// A thief whom the pooler has let in needs no password any more: he must be gone
// before anything tells the application of the new login, whose keys would serve
// him, too. Once something has told, it is left in peace.
func TestThiefIsCutOffThePoolerBeforeTheApplicationIsTold(t *testing.T) {
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	b, p := newPooledBenchAt(t, server.Port)
	super, err := postgres.Login(t.Context(), postgres.Target{Host: server.Host, Port: server.Port, Database: "postgres", User: server.Superuser, Password: server.Password, SSLMode: "disable"})
	if err != nil {
		t.Fatal(err)
	}
	defer super.Close(context.Background())
	for _, c := range b.store.held {
		if _, err := super.Exec(t.Context(), "CREATE ROLE "+c.User+" LOGIN PASSWORD '"+c.Verifier.Reveal()+"'"); err != nil {
			t.Fatal(err)
		}
	}
	b.fails, b.flow = "", saga.Emergency
	enter := func(rotation string) *pgx.Conn {
		c := b.store.held[rotation]
		conn, err := postgres.Login(t.Context(), p.Target(c.User, c.Password.Reveal(), "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
		return conn
	}
	alive := func(conn *pgx.Conn) bool {
		_, err := conn.PgConn().Exec(t.Context(), "SELECT 1").ReadAll()
		return err == nil
	}
	thief := enter("r1")
	late := errors.New("nobody may use it yet")
	looks := 0
	b.stillDue = func() error { // the third is under the lock on the .env
		if looks++; looks < 3 || alive(thief) {
			return nil
		}
		return late
	}
	if _, err := b.run("publish", "r2", rotate); !errors.Is(err, late) {
		t.Fatalf("%v; want the thief gone before the .env is written", err)
	}
	b.want(envBefore, dsnBefore)
	b.stillDue = func() error { return nil }
	if _, err := b.run("publish", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	application := enter("r2")
	if _, err := b.run("publish", "r2", rotate); err != nil || !alive(application) {
		t.Errorf("%v; the application was cut off by an attempt that only finished what was begun", err)
	}
}

func TestCrashBetweenWriteAndReloadReloads(t *testing.T) {
	b, p := newPooledBench(t)
	verifier := b.store.held["r2"].Verifier.Reveal()
	list, err := os.ReadFile(p.Userlist)
	if err != nil {
		t.Fatal(err)
	}
	b.put(p.Userlist, string(list)+pooltest.Line("app_b", verifier)) // all that the dead one did
	if b.passes(p, "r2") {
		t.Fatal("passes without a reload: nothing is shown here")
	}
	if _, err := b.run("publish", "r2", rotate); err != nil {
		t.Fatal(err)
	}
	if !b.passes(p, "r2") {
		t.Error("the pooler was not told")
	}
}

func TestPoolerThatIsDownDelaysAndDoesNotFailTheStep(t *testing.T) {
	b, p := newPooledBench(t)
	p.Stop()
	if _, err := b.run("publish", "r2", rotate); err == nil || saga.IsPermanent(err) || !strings.Contains(err.Error(), p.Console.Address()) {
		t.Errorf("got %v", err)
	}
	b.want(envBefore, dsnBefore)
}

func TestMatchTakesWhatThePoolerHoldsNow(t *testing.T) {
	b, p := newPooledBench(t)
	adopt := &pawlv1.Requested{Action: pawlv1.Action_ACTION_ADOPT, Generation: 1}
	if _, err := b.run("match", "r1", adopt); err != nil {
		t.Fatal(err)
	}
	p.Rewrite(t, pooltest.Line("app", "oldpassword"))
	if _, err := b.run("match", "r1", adopt); err != nil {
		t.Fatal(err)
	}
	salted, err := postgres.Verifier(b.store.held["r1"].Password)
	if err != nil {
		t.Fatal(err)
	}
	p.Rewrite(t, pooltest.Line("app", salted.Reveal()))
	if _, err := b.run("match", "r1", adopt); !saga.IsPermanent(err) || !strings.Contains(err.Error(), "cannot pass their login on") {
		t.Fatal(err)
	}
}

func TestDoctorTellsWhatEachLoginHasInALookupSink(t *testing.T) {
	b, p := newPooledBench(t)
	told := func() string {
		var all []string
		for _, line := range b.app.service().Examine(t.Context(), b.credential) {
			if kind, _, _ := strings.Cut(line.GetTarget(), ":"); strings.HasPrefix(kind, "pg") {
				all = append(all, kind+": "+line.GetFinding())
			}
			if line.GetRefused() {
				t.Errorf("refused: %v", line)
			}
		}
		return strings.Join(all, "\n")
	}
	print := func(rotation string) string {
		return b.store.Fingerprint(b.store.held[rotation].User, b.store.held[rotation].Password)
	}
	if got, want := told(), `pgpass: login "app" has `+print("r1")+"\npgpass: login \"app_b\" has no line\npgbouncer: login \"app\" has the nodes' verifier of "+print("r1")+"\npgbouncer: login \"app_b\" has no line"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	stray, err := postgres.Verifier(b.store.held["r2"].Password)
	if err != nil {
		t.Fatal(err)
	}
	p.Rewrite(t, pooltest.Line("app", "oldpassword")+pooltest.Line("app_b", stray.Reveal()))
	if got := told(); !strings.HasSuffix(got, `login "app" has `+print("r1")+"\npgbouncer: login \"app_b\" has a verifier that Pawl did not set") {
		t.Errorf("got\n%s", got)
	}
	for _, line := range b.app.service().Check(t.Context(), b.credential) {
		if line.GetRefused() || line.GetFinding() != "can be written" {
			t.Errorf("check: %v", line)
		}
	}
}

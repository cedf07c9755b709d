package restart

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// pooled is a PostgreSQL with two logins behind a pgbouncer.
type pooled struct {
	*testing.T
	server *pgserver.Server
	pool   *pooltest.Pooler
	kind   Kind
}

func newPooled(t *testing.T, timeout time.Duration) *pooled {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	p := &pooled{T: t, server: server}
	userlist := ""
	for _, login := range []string{"app", "app_b", "other"} {
		userlist += pooltest.Line(login, p.password("CREATE ROLE "+login+" LOGIN PASSWORD "))
	}
	p.pool = pooltest.Start(t, server.Port, userlist, map[string]string{"pool_mode": "transaction"})
	p.kind = For(inventory.Restart{Pgbouncer: &inventory.Reconnect{Console: p.pool.Console, Timeout: timeout}})
	return p
}

// password runs a statement with a verifier of the canary after it.
func (p *pooled) password(statement string) string {
	p.Helper()
	verifier, err := postgres.Verifier(secret.New(canary))
	if err != nil {
		p.Fatal(err)
	}
	if _, err := p.superuser().Exec(p.Context(), statement+"'"+verifier.Reveal()+"'"); err != nil {
		p.Fatal("a statement failed")
	}
	return verifier.Reveal()
}

func (p *pooled) superuser() *pgx.Conn {
	p.Helper()
	return p.login(postgres.Target{Host: p.server.Host, Port: p.server.Port, Database: "postgres", User: p.server.Superuser, Password: p.server.Password, SSLMode: "disable"})
}

func (p *pooled) login(target postgres.Target) *pgx.Conn {
	p.Helper()
	conn, err := postgres.Login(p.Context(), target)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// client logs in through the pooler.
func (p *pooled) client(user string) *pgx.Conn {
	p.Helper()
	return p.login(p.pool.Target(user, canary, "postgres"))
}

// ask runs a statement and returns the backend that answers it.
func (p *pooled) ask(conn *pgx.Conn, before string) (pid int) {
	p.Helper()
	for _, sql := range []string{before, "SELECT pg_backend_pid()"} {
		if sql == "" {
			continue
		}
		rows, err := conn.Query(p.Context(), sql, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			p.Fatal(err)
		}
		for rows.Next() {
			_ = rows.Scan(&pid)
		}
		if rows.Err() != nil {
			p.Fatal(rows.Err())
		}
	}
	return pid
}

func (p *pooled) backends(user string) (n int) {
	p.Helper()
	if err := p.superuser().QueryRow(p.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", user).Scan(&n); err != nil {
		p.Fatal(err)
	}
	return n
}

func aPgbouncer(t *testing.T) fixture {
	p := newPooled(t, 20*time.Second)
	client := p.client("app")
	first := p.ask(client, "")
	last, restarts := first, 0
	return fixture{
		kind: p.kind,
		restarts: func() int {
			if pid := p.ask(client, ""); pid != last {
				last, restarts = pid, restarts+1
			}
			return restarts
		},
		sabotage: p.pool.Stop,
		names:    p.pool.Console.Address(),
	}
}

func TestNoServerConnectionOfALoginThatIsLeftStays(t *testing.T) {
	p := newPooled(t, 20*time.Second)
	pids := map[string]int{}
	clients := map[string]*pgx.Conn{}
	for _, user := range []string{"app", "app_b", "other"} {
		clients[user] = p.client(user)
		pids[user] = p.ask(clients[user], "")
	}
	p.ask(clients["app_b"], "BEGIN") // in use: it must stay
	said := ""
	c := cause()
	c.Left, c.Changed, c.Show = []string{"app"}, nil, func(text string) { said = text }
	if err := p.kind.Restart(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if p.backends("app") > 0 || said != "1 server connections closed" {
		t.Errorf("%d are left; %q", p.backends("app"), said)
	}
	if p.ask(clients["app_b"], "COMMIT") != pids["app_b"] {
		t.Error("a connection of the login that is used was closed")
	}
	settings, err := p.pool.Open(t).Config(t.Context())
	if err != nil || settings["server_idle_timeout"] != "600" {
		t.Errorf("server_idle_timeout is left at %s (%v)", settings["server_idle_timeout"], err)
	}
}

// TestClientsThatAreJustBeingLetInAreNotFailed: RECONNECT would fail them.
func TestClientsThatAreJustBeingLetInAreNotFailed(t *testing.T) {
	p := newPooled(t, 20*time.Second)
	p.ask(p.client("app"), "")
	ctx, stop := context.WithCancel(t.Context())
	failures := make(chan error, 8)
	for range cap(failures) {
		go func() {
			var failed error
			for ctx.Err() == nil && failed == nil {
				var conn *pgx.Conn
				if conn, failed = postgres.Login(context.Background(), p.pool.Target("app_b", canary, "postgres")); failed == nil {
					_, failed = conn.Exec(context.Background(), "SELECT 1", pgx.QueryExecModeSimpleProtocol)
					conn.Close(context.Background())
				}
			}
			failures <- failed
		}()
	}
	c := cause()
	c.Left, c.Changed = []string{"app"}, nil
	err := p.kind.Restart(t.Context(), c)
	stop()
	for range cap(failures) {
		err = errors.Join(err, <-failures)
	}
	if err != nil {
		t.Error(err)
	}
}

func TestInPlacePasswordNeedsTheReconnectToBeProven(t *testing.T) {
	p := newPooled(t, 20*time.Second)
	old := p.client("app")
	before := p.ask(old, "")
	verifier := p.password("ALTER ROLE app PASSWORD ")
	list := pooltest.Line("app", verifier)
	p.pool.Rewrite(t, list)
	fresh := p.client("app") // from here on pgbouncer knows the new keys
	if p.ask(fresh, "") != before {
		t.Fatal("the server connection was not shared: nothing is shown here")
	}
	if err := p.kind.Restart(t.Context(), cause()); err != nil {
		t.Fatal(err)
	}
	if p.ask(fresh, "") == before || p.ask(old, "") == before {
		t.Error("still served by a connection from before the new password")
	}
}

// One pgbouncer before the credentials of a group: one login is left, the password
// of another has changed, and both are dealt with in one restart. Who shares the
// database with them keeps its transaction.
func TestPoolerOfAGroupLetsGoAndRecyclesAtOnce(t *testing.T) {
	p := newPooled(t, 20*time.Second)
	p.ask(p.client("app"), "")
	changed := p.client("other")
	before := p.ask(changed, "")
	busy, stop := context.WithCancel(t.Context()) // so that it never idles away
	failed := make(chan error, 1)
	go func() {
		var err error
		for busy.Err() == nil && err == nil {
			_, err = changed.Exec(context.Background(), "SELECT 1", pgx.QueryExecModeSimpleProtocol)
		}
		failed <- err
	}()
	neighbour := p.client("app_b")
	held := p.ask(neighbour, "BEGIN")
	c := cause()
	c.Left, c.Changed = []string{"app"}, []string{"other"}
	restarted := p.kind.Restart(t.Context(), c)
	stop()
	if err := errors.Join(restarted, <-failed); err != nil {
		t.Fatal(err)
	}
	if left := p.backends("app"); left > 0 || p.ask(changed, "") == before {
		t.Errorf("%d connections of the login that was left, or one from before the new password", left)
	}
	if p.ask(neighbour, "") != held {
		t.Error("a neighbour lost its transaction")
	}
	p.ask(neighbour, "COMMIT")
}

func TestClientThatHoldsOnIsNamedOnceTheTimeIsUp(t *testing.T) {
	p := newPooled(t, 2*time.Second)
	holder := p.client("app")
	held := p.ask(holder, "BEGIN")
	p.ask(p.client("app_b"), "")
	err := p.kind.Restart(t.Context(), cause())
	if err == nil || !strings.Contains(err.Error(), "not all released within 2s") || !strings.Contains(err.Error(), `1 of "app" (1 held by clients)`) {
		t.Errorf("got %v", err)
	}
	if p.ask(holder, "") != held {
		t.Error("the client lost its transaction")
	}
	p.ask(holder, "COMMIT")
	if err := p.kind.Restart(t.Context(), cause()); err != nil {
		t.Error(err)
	}
}

func TestPoolerWhoseConsoleIsRefusedIsToldBefore(t *testing.T) {
	p := newPooled(t, time.Second)
	c := p.pool.Console
	for user, want := range map[string]string{"app": `"app" is none of admin_users`, "nobody": `correct what`} {
		c.User = user
		if user == "app" {
			c.PasswordFile = ""
			c.PasswordEnv = "PAWL_TEST_CANARY"
			t.Setenv(c.PasswordEnv, canary)
		}
		kind := For(inventory.Restart{Pgbouncer: &inventory.Reconnect{Console: c, Timeout: time.Second}})
		_, err := kind.Check(t.Context())
		for _, err := range []error{err, kind.Restart(t.Context(), cause())} {
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), canary) {
				t.Errorf("%s: %v", user, err)
			}
		}
	}
}

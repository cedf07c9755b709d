package rotator

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pawl.dev/internal/pgbouncer/pooltest"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/secret"
)

// thieves have a stolen password, and do with it what they can, on a primary, on
// its replica, and through a pooler.
type thieves struct {
	*robbed
	user        string
	stolen, own secret.String // own: the password that one of them gives the login
	ownVerifier secret.String
	friend      secret.String // of a role that may act as the login
	ctx         context.Context
	stop        context.CancelFunc
	working     sync.WaitGroup
	warm        *pgx.Conn // through the pooler, and idle
	handshakes  []func() outcome
}

const (
	thief  = "thief" // the application name of all of them
	friend = "friend_of_the_thief"

	changesOwn = "ALTER ROLE CURRENT_USER PASSWORD '"
)

// rob returns once every thief has been inside. Whoever comes last makes the
// stolen password useless to the others; before PostgreSQL 16 a role that may
// replicate cannot do so.
func (w *robbed) rob(random *rand.Rand, replicates bool) *thieves {
	w.t.Helper()
	login := w.envelope(w.basis)
	t := &thieves{robbed: w, user: login.User, stolen: login.Password}
	t.ctx, t.stop = context.WithTimeout(context.Background(), 2*time.Minute)
	w.t.Cleanup(t.end)
	t.own, t.ownVerifier = newPassword(w.t)
	var verifier secret.String
	t.friend, verifier = newPassword(w.t)
	t.at(w.primary, "DO $$ BEGIN CREATE ROLE "+friend+" LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
	t.at(w.primary, "GRANT "+quoted(t.user)+" TO "+friend)
	t.at(w.primary, "ALTER ROLE "+friend+" PASSWORD '"+verifier.Reveal()+"'")
	t.prepare()
	t.warm = t.through(w.pooler, t.stolen)

	var inside sync.WaitGroup
	if replicates {
		t.at(w.primary, "ALTER ROLE "+quoted(t.user)+" REPLICATION")
		t.keepsComing(&inside, t.stolen, t.replicates)
	}
	t.keepsComing(&inside, t.stolen, t.asks(w.pooler.Target(t.user, "", "postgres"), "SELECT 1"))
	for _, s := range []*pgserver.Server{w.primary, w.standby} {
		for range 1 + random.IntN(3) {
			t.keepsComing(&inside, t.stolen, t.asks(t.to(s, t.user, t.stolen), "SELECT 1"))
		}
	}
	t.keepsComing(&inside, t.friend, t.asks(t.to(w.primary, friend, t.friend), "SET ROLE "+quoted(t.user)))
	inside.Wait()
	for range 2 + random.IntN(3) {
		t.handshakes = append(t.handshakes, w.begins(t.to(w.primary, t.user, t.stolen)))
	}
	if !replicates {
		t.keepsComing(&inside, t.stolen, t.asks(t.to(w.primary, t.user, t.stolen), changesOwn+t.ownVerifier.Reveal()+"'"))
	}
	inside.Wait()
	if t.ctx.Err() != nil {
		t.t.Fatal("a thief never came in: nothing is shown")
	}
	return t
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

func (t *thieves) to(s *pgserver.Server, user string, password secret.String) postgres.Target {
	return postgres.Target{Host: s.Host, Port: s.Port, Database: "postgres", User: user, Password: password, SSLMode: "disable", ApplicationName: thief}
}

// through logs in through the pooler, and asks something: a server connection is
// there for it then.
func (t *thieves) through(p *pooltest.Pooler, password secret.String) *pgx.Conn {
	t.t.Helper()
	to := p.Target(t.user, password.Reveal(), "postgres")
	to.ApplicationName = thief
	conn, err := postgres.Login(t.ctx, to)
	if err == nil {
		_, err = conn.Exec(t.ctx, "SELECT 1", pgx.QueryExecModeSimpleProtocol)
	}
	if err != nil {
		t.t.Fatal(err)
	}
	return conn
}

// keepsComing comes again and again, with the password that works. comes tells
// when it is inside, and returns when it is not any more.
func (t *thieves) keepsComing(inside *sync.WaitGroup, password secret.String, comes func(password secret.String, isInside func())) {
	var first sync.Once
	inside.Add(1)
	t.working.Go(func() {
		defer first.Do(inside.Done)
		for t.ctx.Err() == nil {
			for _, password := range []secret.String{password, t.own} {
				comes(password, func() { first.Do(inside.Done) })
			}
		}
	})
}

// asks does one thing for as long as it lives; that it fails ends nothing.
func (t *thieves) asks(to postgres.Target, does string) func(secret.String, func()) {
	return func(password secret.String, isInside func()) {
		to := to
		to.Password, to.ApplicationName = password, thief
		conn, err := postgres.Login(t.ctx, to)
		if err != nil {
			return
		}
		for !conn.IsClosed() && t.ctx.Err() == nil {
			if _, err := conn.Exec(t.ctx, does, pgx.QueryExecModeSimpleProtocol); err == nil {
				isInside()
			}
		}
		_ = conn.Close(context.Background()) // most are dead
	}
}

// replicates reads the WAL of everything that anybody writes.
func (t *thieves) replicates(password secret.String, isInside func()) {
	config, err := pgconn.ParseConfig("sslmode=disable")
	if err != nil {
		return
	}
	config.Host, config.Port, config.User, config.Password, config.Fallbacks = t.primary.Host, t.primary.Port, t.user, password.Reveal(), nil
	config.RuntimeParams = map[string]string{"replication": "true", "application_name": thief}
	conn, err := pgconn.ConnectConfig(t.ctx, config)
	if err != nil {
		return
	}
	defer conn.Close(context.Background())
	system, err := conn.Exec(t.ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil {
		return
	}
	conn.Frontend().Send(&pgproto3.Query{String: "START_REPLICATION PHYSICAL " + string(system[0].Rows[0][2])})
	for err = conn.Frontend().Flush(); err == nil; {
		var message pgproto3.BackendMessage
		if message, err = conn.ReceiveMessage(t.ctx); err == nil {
			if _, streams := message.(*pgproto3.CopyBothResponse); streams {
				isInside()
			}
		}
	}
}

func (t *thieves) prepare() {
	t.t.Helper()
	conn, err := postgres.Login(t.ctx, t.to(t.primary, t.user, t.stolen))
	if err == nil {
		_, err = conn.Exec(t.ctx, "BEGIN; SELECT pg_advisory_xact_lock(7); PREPARE TRANSACTION 'theirs'", pgx.QueryExecModeSimpleProtocol)
		_ = conn.Close(t.ctx) // the transaction outlives it
	}
	if err != nil {
		t.t.Fatal(err)
	}
}

func (t *thieves) end() {
	t.stop()
	t.working.Wait()
}

// inside says who is logged in; who may act as the login has one of his own.
func (t *thieves) inside() (all []string) {
	t.t.Helper()
	for name, s := range map[string]*pgserver.Server{"primary": t.primary, "replica": t.standby} {
		conn := t.session(s)
		defer conn.Close(context.Background())
		rows, err := conn.Query(context.Background(), "SELECT format('session %s of %s, %s, on the ', pid, usename, backend_type) || $3::text FROM pg_stat_activity WHERE application_name = $1 AND usename = $2", thief, t.user, name)
		var found []string
		if err == nil {
			found, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		if err != nil {
			t.t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// survivors says who is left, or can come back. The thieves come no more
// themselves then: the doors are tried one by one.
func (t *thieves) survivors() (left []string) {
	t.t.Helper()
	left = t.inside()
	t.end()
	doors := map[string]postgres.Target{"on the primary": t.to(t.primary, "", t.own), "on the replica": t.to(t.standby, "", t.own), "through the pooler": t.pooler.Target("", "", "postgres")}
	for where, to := range doors {
		for what, password := range map[string]secret.String{"stolen": t.stolen, "own": t.own} {
			for _, user := range []string{t.credential.Role, t.credential.Sibling()} {
				to.User, to.Password = user, password
				if conn, err := postgres.Login(context.Background(), to); err == nil {
					left = append(left, fmt.Sprintf("the %s password lets %s in %s", what, user, where))
					_ = conn.Close(context.Background())
				}
			}
		}
	}
	if t.warmWorks() {
		left = append(left, "a connection through the pooler")
	}
	conn := t.session(t.primary)
	defer conn.Close(context.Background())
	var prepared int
	if err := conn.QueryRow(context.Background(), "SELECT count(*) FROM pg_prepared_xacts").Scan(&prepared); err != nil {
		t.t.Fatal(err)
	}
	if prepared > 0 {
		left = append(left, "a prepared transaction")
	}
	return left
}

// warmWorks reports whether whoever has been connected to the pooler all the
// time is served.
func (t *thieves) warmWorks() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := t.warm.Exec(ctx, "SELECT 1", pgx.QueryExecModeSimpleProtocol)
	return err == nil
}

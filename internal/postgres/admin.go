package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/secret"
)

// maxSessions of one account on one node: many rotations share them.
const maxSessions = 8

// keptFor is how long the session that is kept lives: the next one may find no slot.
const keptFor = 30 * 24 * time.Hour

// maxTrusted is how long an idle session is used again unasked. An older one is
// asked first whether its server still lives, and replaced where it does not. No
// server restarts in less.
const maxTrusted = 20 * time.Millisecond

// Admin is one of Pawl's own accounts on one node: a small pool of sessions,
// opened when needed, all in one database. Safe for concurrent use.
type Admin struct {
	Node    string
	account inventory.Account
	target  Target
	logins  *logins
	pool    *pgxpool.Pool
	stop    context.CancelFunc
	catalog atomic.Bool // the account may read pg_authid itself
	looks   looks
	// observe returns the cluster's observer on this node, in any database.
	observe func(database string) (*Admin, error)
}

// NewAdmin returns the cluster's admin on the node. It keeps one session open, in the
// background, so that an emergency needs no slot where others have taken all. It
// takes no database, and nothing made from it does: the admin logs in to its own
// alone, since the owner of a database decides what a session finds there. The
// login is read anew for each session. Of an account that Pawl turns, others
// (nil: none) are tried where that does not work, and idle sessions of the old
// login end within lookEvery.
func NewAdmin(node inventory.Node, cluster *inventory.Cluster, others Others) (*Admin, error) {
	return open(accountTarget(node, cluster.Admin), node, cluster, cluster.Admin, others)
}

// NewReader is NewAdmin for work that only reads: the server refuses its
// transactions every write.
func NewReader(node inventory.Node, cluster *inventory.Cluster, others Others) (*Admin, error) {
	target := accountTarget(node, cluster.Admin)
	target.ReadOnly = true
	return open(target, node, cluster, cluster.Admin, others)
}

// NewObserver returns the account that looks into a database. It only reads. If the
// cluster has no observer, the admin stands in, in the admin's own database alone.
func NewObserver(node inventory.Node, cluster *inventory.Cluster, database string, others Others) (*Admin, error) {
	if !cluster.HasObserver() {
		if database != cluster.Admin.Database {
			return nil, fmt.Errorf("nobody may look into database %q, where the admin never logs in: add clusters.%s.observer, and run what `pawl init --admin-sql` prints", database, cluster.Name)
		}
		return NewReader(node, cluster, others)
	}
	target := accountTarget(node, cluster.Observer)
	target.Database, target.ReadOnly = database, true
	return open(target, node, cluster, cluster.Observer, others)
}

func open(target Target, node inventory.Node, cluster *inventory.Cluster, account inventory.Account, others Others) (*Admin, error) {
	config, err := pgxpool.ParseConfig(target.conninfo())
	if err != nil {
		return nil, target.invalid(err)
	}
	target.fill(config.ConnConfig)
	// Parsing and planning the catalogue queries costs the server more than
	// running them, and one plan does for all that they are asked. What holds a
	// verifier never comes this way: see Tx.exec.
	config.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	config.ConnConfig.StatementCacheCapacity = 64
	a := &Admin{Node: node.Name, account: account, target: target}
	a.observe = func(database string) (*Admin, error) { return NewObserver(node, cluster, database, others) }
	a.logins = &logins{account: account, others: others, moved: func() { a.pool.Reset() }}
	config.MaxConns = maxSessions
	config.MaxConnIdleTime = 5 * time.Minute
	if !target.ReadOnly {
		config.MinConns, config.MaxConnLifetime = 1, keptFor
	}
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		login, err := a.logins.look()
		c.User, c.Password = login.User, login.Password.Reveal()
		if role := actsAs(login, account); role != "" {
			c.RuntimeParams["role"] = role
		}
		return err
	}
	config.AfterConnect = a.prepare
	config.ShouldPing = func(_ context.Context, p pgxpool.ShouldPingParams) bool { return p.IdleDuration > maxTrusted }
	if a.pool, err = pgxpool.NewWithConfig(context.Background(), config); err != nil {
		return nil, fmt.Errorf("%s: %w", node.Name, clean(err))
	}
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	if account.Credential != "" {
		go a.logins.watch(ctx, a.try)
	}
	return a, nil
}

// Close ends the sessions.
func (a *Admin) Close() {
	a.stop()
	a.pool.Close()
}

// prepare learns once per session what the account may read. Whether the
// server's log samples a transaction is drawn when it begins, so this one
// setting cannot wait for the quiet transaction; whoever may not set it is
// refused there, if it matters.
func (a *Admin) prepare(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, pinLater, pgx.QueryExecModeExec); err != nil {
		return err
	}
	var catalog bool
	err := conn.QueryRow(ctx, `SELECT has_column_privilege('pg_catalog.pg_authid', 'rolpassword', 'select')`).Scan(&catalog)
	if err != nil {
		return err
	}
	a.logins.prove(inventory.Login{User: conn.Config().User, Password: secret.New(conn.Config().Password)})
	a.catalog.Store(catalog)
	_, err = conn.Exec(ctx, `SELECT set_config('log_transaction_sample_rate', '0', false)
		WHERE current_setting('log_transaction_sample_rate')::float8 > 0`)
	if IsRefused(clean(err), NotPermitted) {
		return nil
	}
	return err
}

// Do runs work on one session. Errors of the session itself name the node;
// those of work are returned as they are.
func (a *Admin) Do(ctx context.Context, work func(*pgx.Conn) error) error {
	conn, err := a.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return work(conn.Conn())
}

// Open reports whether a session is open, as far as is known without asking the server.
func (a *Admin) Open() bool {
	is := a.pool.Stat()
	return is.TotalConns() > is.ConstructingConns()
}

// acquire takes a session. Where the login of the file is refused, or there is
// none, it looks for another one.
func (a *Admin) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	for tries := 1; ; tries++ {
		login := a.logins.inUse()
		conn, err := a.pool.Acquire(ctx)
		err = a.named(err)
		refused := IsRefused(err, WrongPassword, NoLogin) || err != nil && login.User == ""
		if refused && tries < 3 && a.logins.search(ctx, login, a.try) {
			continue
		}
		if err != nil {
			err = a.target.wireFix(a.hinted(err))
		}
		return conn, err
	}
}

// CheckLogin finds out whether the next session could be opened, though those
// that are open do not need what the account's file holds. It logs in only where
// that is not what the newest session was opened with.
func (a *Admin) CheckLogin(ctx context.Context) error {
	err := a.logins.check(ctx, a.try)
	if err == nil || errors.As(err, new(*hint)) {
		return err
	}
	return a.hinted(fmt.Errorf("%s: %w", a.Node, err))
}

// hinted names the fix of a wrong password.
func (a *Admin) hinted(err error) error {
	if IsRefused(err, WrongPassword) {
		return &hint{err, "correct what " + a.account.PasswordSource() + " holds, or set that password in PostgreSQL (\\password)"}
	}
	return err
}

// try logs in once.
func (a *Admin) try(ctx context.Context, login inventory.Login) error {
	conn, err := Login(ctx, a.target.as(login, a.account))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// named cleans an error and says on which node it happened.
func (a *Admin) named(err error) error {
	if cleaned := clean(err); cleaned != nil && !errors.Is(cleaned, context.Canceled) {
		return fmt.Errorf("%s: %w", a.Node, cleaned)
	}
	return clean(err)
}

// Now returns the server's clock.
func (a *Admin) Now(ctx context.Context) (now time.Time, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now))
	})
	return now, err
}

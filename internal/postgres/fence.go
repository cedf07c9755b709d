package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Fence orders what rotations do to a role: a transaction passes if nothing
// with a greater (Generation, Phase) has passed before, so what a late worker
// still sends is refused by the database itself.
type Fence struct {
	Role       string // the configured role; its sibling is under the same fence
	Generation uint64
	Phase      int
	Rotation   string
	// Urgent commits without waiting for any standby, since a dead synchronous one
	// must not keep a stolen login alive, and gives up soon on locks that others
	// hold: see ErrLocked.
	Urgent bool
	// Keeps leaves the time as it is at which this very fence was last passed: for work
	// after which no login has come back anew.
	Keeps bool
	// Waits is given the process id of the session that is about to pass the fence, so
	// that Blockers can be asked what holds it up. Nil: nobody asks.
	Waits  *atomic.Uint32
	Passed time.Time     // of a stored one: when it was last passed, by the clock of the primary then
	Age    time.Duration // and how long ago that is, by this server's
}

// FencedOff is the refusal of a fence.
type FencedOff struct{ Mine, Stored Fence }

// Ahead reports whether the database is in a later rotation than the log.
func (f *FencedOff) Ahead() bool { return f.Stored.Generation > f.Mine.Generation }

func (f *FencedOff) Error() string {
	if f.Ahead() {
		return fmt.Sprintf("the database is ahead of the log: role %q is at generation %d (rotation %s), this rotation is %d: run pawl adopt",
			f.Mine.Role, f.Stored.Generation, f.Stored.Rotation, f.Mine.Generation)
	}
	return fmt.Sprintf("a later step of generation %d has already been at role %q (phase %d, this step is %d)",
		f.Mine.Generation, f.Mine.Role, f.Stored.Phase, f.Mine.Phase)
}

// ErrUnknownOutcome is wrapped where COMMIT was sent and no answer came: it may
// have landed. Look before doing anything else.
var ErrUnknownOutcome = errors.New("unknown whether COMMIT landed")

// hint adds to a refusal what to do about it.
type hint struct {
	error
	fix string
}

func (h *hint) Error() string { return h.error.Error() + ": " + h.fix }
func (h *hint) Unwrap() error { return h.error }

const createFence = `CREATE SCHEMA IF NOT EXISTS pawl;
CREATE TABLE IF NOT EXISTS pawl.fence (
	role       name PRIMARY KEY,
	generation bigint NOT NULL,
	phase      int NOT NULL,
	rotation   text NOT NULL,
	updated_at timestamptz NOT NULL,
	idle_since timestamptz,
	looked_at  timestamptz
);
`

// EnsureFence makes pawl.fence where it is missing. Idempotent.
func (a *Admin) EnsureFence(ctx context.Context) error {
	return a.Do(ctx, func(c *pgx.Conn) error {
		if _, err := a.stored(ctx, c, ""); !IsRefused(err, noTable, noSchema) {
			return err
		}
		// The lock, because two IF NOT EXISTS at once can collide.
		_, err := c.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('pawl.fence'));"+createFence, pgx.QueryExecModeSimpleProtocol)
		if err = a.named(err); IsRefused(err, NotPermitted) {
			return &hint{err, "the account cannot create pawl.fence: run what `pawl init --admin-sql` prints"}
		}
		return err
	})
}

// Stored returns the fence of the role; generation 0 where none was ever set.
func (a *Admin) Stored(ctx context.Context, role string) (fence Fence, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		fence, err = a.stored(ctx, c, role)
		return err
	})
	return fence, err
}

// StoredOf returns the fences of several roles, in one reading; those that were ever set.
func (a *Admin) StoredOf(ctx context.Context, roles ...string) (fences map[string]Fence, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		if fences, err = a.storedOf(ctx, c, roles...); IsRefused(err, noTable, noSchema) {
			return nil // of a time before Pawl
		}
		return err
	})
	return fences, err
}

func (a *Admin) stored(ctx context.Context, q querier, role string) (Fence, error) {
	fences, err := a.storedOf(ctx, q, role)
	fence := fences[role]
	fence.Role = role
	return fence, err
}

func (a *Admin) storedOf(ctx context.Context, q querier, roles ...string) (map[string]Fence, error) {
	rows, err := q.Query(ctx, `SELECT role::text, generation, phase, rotation, updated_at, extract(epoch FROM clock_timestamp() - updated_at)::float8
		FROM pawl.fence WHERE role = ANY($1)`, roles)
	fences := map[string]Fence{}
	var f Fence
	var seconds float64
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&f.Role, &f.Generation, &f.Phase, &f.Rotation, &f.Passed, &seconds}, func() error {
			f.Age = time.Duration(seconds * float64(time.Second))
			fences[f.Role] = f
			return nil
		})
	}
	return fences, a.named(err)
}

// HasFence reports whether pawl.fence is there and can be written.
func (a *Admin) HasFence(ctx context.Context) (exists, writable bool, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, `SELECT to_regclass('pawl.fence') IS NOT NULL,
			coalesce(has_table_privilege(to_regclass('pawl.fence'), 'insert') AND has_table_privilege(to_regclass('pawl.fence'), 'update'),
				has_database_privilege(current_database(), 'create'))`).Scan(&exists, &writable))
	})
	return exists, writable, err
}

// Tx is a fenced, quiet transaction.
type Tx struct {
	admin  *Admin
	conn   *pgx.Conn
	narrow bool // the account alters roles by procedures: see isNarrow
}

// Fenced runs work in a transaction of its own behind the fence, and commits.
// What work does is neither logged nor counted by the server. Returns
// *FencedOff where the fence refuses, ErrUnknownOutcome where the answer to
// COMMIT was lost, and work's own error as it is, with nothing changed.
func (a *Admin) Fenced(ctx context.Context, f Fence, work func(context.Context, *Tx) error) error {
	err := a.fenced(ctx, f, work)
	if IsRefused(err, noTable, noSchema) {
		if err := a.EnsureFence(ctx); err != nil {
			return err
		}
		err = a.fenced(ctx, f, work)
	}
	return err
}

func (a *Admin) fenced(ctx context.Context, f Fence, work func(context.Context, *Tx) error) error {
	return a.transact(ctx, f, func(tx *Tx) error { return a.enter(ctx, tx, f) }, work)
}

// Beside runs work in a transaction of its own that does not pass the fence, since
// somebody holds it or it may not be written: for work that shows nothing and is never
// wrong, such as refusing a stolen login. What is late is still refused, if the fence can
// be read. It is not quiet.
func (a *Admin) Beside(ctx context.Context, f Fence, work func(context.Context, *Tx) error) error {
	var unread error
	err := a.transact(ctx, f, func(tx *Tx) error {
		err := a.named(tx.conn.SendBatch(ctx, tx.begun(f.Urgent, false)).Close())
		if err != nil {
			return err
		}
		var stored Fence
		stored, unread = a.stored(ctx, tx.conn, f.Role)
		if unread == nil && (stored.Generation > f.Generation || stored.Generation == f.Generation && stored.Phase > f.Phase) {
			return &FencedOff{Mine: f, Stored: stored}
		}
		return unread
	}, work)
	if refused := new(Refused); unread == nil || !errors.As(unread, &refused) {
		return err
	}
	return a.transact(ctx, f, func(tx *Tx) error { return a.named(tx.conn.SendBatch(ctx, tx.begun(f.Urgent, false)).Close()) }, work)
}

// transact runs work in the transaction that begin opens, with what f says of waiting.
func (a *Admin) transact(ctx context.Context, f Fence, begin func(*Tx) error, work func(context.Context, *Tx) error) error {
	return a.Do(ctx, func(conn *pgx.Conn) error {
		if f.Waits != nil {
			f.Waits.Store(conn.PgConn().PID())
			defer f.Waits.Store(0)
		}
		tx := &Tx{admin: a, conn: conn}
		err := begin(tx)
		if err == nil {
			err = work(ctx, tx)
		}
		if err = locked(err); err != nil {
			if !conn.IsClosed() {
				_, _ = conn.Exec(ctx, "ROLLBACK") // where this fails, the pool closes the session
			}
			return err
		}
		return a.commit(ctx, conn)
	})
}

// begun opens a transaction, as the first statements of a batch. It asks how the
// account alters roles, which AdminSQL may have changed since the session began.
func (tx *Tx) begun(urgent, quietly bool) *pgx.Batch {
	batch := &pgx.Batch{}
	batch.Queue("BEGIN")
	if quietly {
		batch.Queue(quiet)
	}
	if urgent {
		batch.Queue(locally)
	}
	batch.Queue(isNarrow).QueryRow(scan(&tx.narrow))
	return batch
}

// isSampled asks whether the server's log samples this transaction.
const isSampled = "SELECT current_setting('log_transaction_sample_rate')::float8 > 0"

// passing lets a row of pawl.fence be passed by what is not late.
const passing = `ON CONFLICT (role) DO UPDATE SET generation = excluded.generation, phase = excluded.phase, rotation = excluded.rotation,
		updated_at = excluded.updated_at, idle_since = NULL, looked_at = NULL
	WHERE (f.generation, f.phase) <= (excluded.generation, excluded.phase)`

func scan(into *bool) func(pgx.Row) error {
	return func(row pgx.Row) error { return row.Scan(into) }
}

// sampled refuses a transaction that the server's log samples.
func (a *Admin) sampled() error {
	return fmt.Errorf("%s: %w", a.Node, &Refused{NotPermitted, "log_transaction_sample_rate would log statements, and the account may not turn it off"})
}

// enter begins the transaction and passes the fence, in one round trip.
func (a *Admin) enter(ctx context.Context, tx *Tx, f Fence) error {
	var sampled, passed bool
	batch := tx.begun(f.Urgent, true)
	if f.Urgent { // on its own, since a lock may hold up even that the next statement is parsed
		if err := a.named(tx.conn.SendBatch(ctx, batch).Close()); err != nil {
			return unfit(err)
		}
		batch = &pgx.Batch{}
	}
	batch.Queue(isSampled).QueryRow(scan(&sampled))
	batch.Queue(`INSERT INTO pawl.fence AS f (role, generation, phase, rotation, updated_at) VALUES ($1, $2, $3, $4, coalesce(
			(SELECT updated_at FROM pawl.fence WHERE $5 AND (role, generation, phase, rotation) = ($1, $2, $3, $4)), clock_timestamp())) `+passing,
		f.Role, int64(f.Generation), f.Phase, f.Rotation, f.Keeps).Exec(func(tag pgconn.CommandTag) error { passed = tag.RowsAffected() == 1; return nil })
	err := a.named(tx.conn.SendBatch(ctx, batch).Close())
	switch {
	case err != nil:
		return unfit(err)
	case sampled:
		return unfit(a.sampled())
	case !passed:
		stored, err := a.stored(ctx, tx.conn, f.Role)
		if err != nil {
			return err
		}
		return &FencedOff{Mine: f, Stored: stored}
	}
	return nil
}

// unfit adds to a refusal what the account lacks.
func unfit(err error) error {
	if IsRefused(err, NotPermitted) {
		return &hint{err, "the account cannot work unlogged behind the fence: run what `pawl init --admin-sql` prints"}
	}
	return err
}

func (a *Admin) commit(ctx context.Context, conn *pgx.Conn) error {
	tag, err := conn.Exec(ctx, "COMMIT")
	if err == nil && tag.String() != "COMMIT" {
		return fmt.Errorf("%s: COMMIT answered %s", a.Node, tag)
	}
	cleaned := a.named(err)
	refused := new(Refused)
	if cleaned == nil || errors.As(cleaned, &refused) {
		return cleaned
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, cleaned)
}

// Unused records one look at whether anybody is logged in as user, and returns
// for how long nobody was, looked at without a gap: by the server's own clock,
// kept beside the fence, so that replicas and restarts of Pawl share it. A gap
// between looks longer than gap begins anew, and so does use elsewhere, on a
// replica. The fence must be f's.
//
// What was observed counts, not the clock alone. If the server's clock was stepped
// between two looks of this process, what this process has measured counts instead.
// After a step by more than gap forward the time begins anew: it looks like a gap in
// which nobody looked. After a step that only another process has seen it does, too.
func (a *Admin) Unused(ctx context.Context, f Fence, user string, elsewhere bool, gap time.Duration) (unused time.Duration, sessions []Session, err error) {
	key := f.Role + "/" + user
	err = a.Do(ctx, func(c *pgx.Conn) error {
		if sessions, err = a.sessions(ctx, c, []string{user}); err != nil {
			return err
		}
		now, before := time.Now(), a.looks.last(key)
		var seconds float64
		var looked time.Time
		err := c.QueryRow(ctx, `UPDATE pawl.fence SET looked_at = clock_timestamp(), idle_since = CASE
				WHEN $3 THEN NULL
				WHEN looked_at < clock_timestamp() - make_interval(secs => $4::float8) THEN clock_timestamp()
				WHEN looked_at = $5 AND $6::float8 <= $4 AND abs(extract(epoch FROM clock_timestamp() - looked_at)::float8 - $6) > 1
					THEN coalesce(idle_since + (clock_timestamp() - looked_at) - make_interval(secs => $6), clock_timestamp())
				WHEN looked_at <= clock_timestamp() THEN coalesce(idle_since, clock_timestamp())
				ELSE clock_timestamp() END
			WHERE role = $1 AND generation = $2
				-- To lose that nobody was seen only makes the window longer.
				AND set_config('synchronous_commit', CASE WHEN $3 THEN current_setting('synchronous_commit') ELSE 'off' END, true) IS NOT NULL
			RETURNING greatest(0, coalesce(extract(epoch FROM clock_timestamp() - idle_since)::float8, 0)), looked_at`,
			f.Role, int64(f.Generation), elsewhere || len(sessions) > 0, gap.Seconds(), before.looked, now.Sub(before.at).Seconds()).Scan(&seconds, &looked)
		if errors.Is(err, pgx.ErrNoRows) {
			stored, err := a.stored(ctx, c, f.Role)
			if err != nil {
				return err
			}
			return &FencedOff{Mine: f, Stored: stored}
		}
		unused = time.Duration(seconds * float64(time.Second))
		if err == nil {
			a.looks.keep(key, lookMade{looked, now})
		}
		return a.named(err)
	})
	return unused, sessions, err
}

// looks are this process's last looks at logins that are to be unused.
type looks struct {
	mu   sync.Mutex
	made map[string]lookMade // by role and login
}

// lookMade is when a look was made, by the server's clock and by this process's.
type lookMade struct {
	looked time.Time
	at     time.Time
}

func (l *looks) last(key string) lookMade {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.made[key]
}

func (l *looks) keep(key string, made lookMade) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made == nil {
		l.made = map[string]lookMade{}
	}
	l.made[key] = made
}

package postgres

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/secret"
)

// Prepared is a prepared transaction: it outlives its session, and keeps its locks.
type Prepared struct {
	GID, Owner, Database string
	At                   time.Time
}

// PreparedBy lists the prepared transactions of the owners.
func (a *Admin) PreparedBy(ctx context.Context, owners []string) (all []Prepared, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, "SELECT gid, owner::text, database::text, prepared FROM pg_catalog.pg_prepared_xacts WHERE owner = ANY ($1)", owners)
		if err == nil {
			all, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Prepared])
		}
		return a.named(err)
	})
	return all, err
}

// noPrepared is the SQLSTATE for a prepared transaction that is gone.
const noPrepared = "42704"

// RollbackPrepared rolls one back; one that is gone is no error. PostgreSQL lets
// only its owner or a superuser do so, from a session in its database. The admin
// never logs in there, since that database may be the attacker's: it makes a login
// for this one statement, which is a member of the owner and has no other right.
func (a *Admin) RollbackPrepared(ctx context.Context, p Prepared) error {
	rollback := "ROLLBACK PREPARED" + literal(p.GID)
	if slices.Contains(a.account.Logins(), p.Owner) { // a login that is a member of the admin would be an admin
		if p.Database != a.account.Database {
			return fmt.Errorf("%s: prepared transaction %q in database %q belongs to %q, as whom Pawl never logs in there. Fix: run %s there as a superuser", a.Node, p.GID, p.Database, p.Owner, rollback)
		}
		return a.Do(ctx, func(c *pgx.Conn) error { return a.rollback(ctx, c, rollback) })
	}
	login := a.target
	login.Database, login.Role = p.Database, p.Owner
	login.User = "pawl_prepared_" + strings.ToLower(rand.Text()[:12])
	defer a.takeBack(context.WithoutCancel(ctx), login.User)
	if err := a.lend(ctx, &login); err != nil {
		return err
	}
	conn, err := Login(ctx, login)
	if err != nil {
		err = fmt.Errorf("%s: prepared transaction %q in database %q: %w", a.Node, p.GID, p.Database, err)
		if IsRefused(err, NoLogin) {
			err = &hint{err, fmt.Sprintf("let members of %q into that database in pg_hba.conf, or run %s there as a superuser", p.Owner, rollback)}
		}
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return a.rollback(ctx, conn, rollback)
}

func (a *Admin) rollback(ctx context.Context, conn *pgx.Conn, sql string) error {
	_, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	if err = a.named(err); IsRefused(err, noPrepared) {
		return nil
	}
	return err
}

// lentFor is how long a lent login can be used: after a crash nobody takes it back.
const lentFor = time.Minute

// lend makes the login, as a member of the role that it acts as, and gives it a
// password that is written nowhere.
func (a *Admin) lend(ctx context.Context, login *Target) error {
	password, err := secret.Generate(secret.DefaultLength)
	if err != nil {
		return err
	}
	verifier, err := Verifier(password)
	if err != nil {
		return err
	}
	now, err := a.Now(ctx)
	if err != nil {
		return err
	}
	login.Password = password
	begin := func(conn *pgx.Conn) error { return a.named(conn.SendBatch(ctx, begun(true)).Close()) }
	return a.transact(ctx, begin, func(ctx context.Context, tx *Tx) error {
		return tx.exec(ctx, fmt.Sprintf("CREATE ROLE %s LOGIN CONNECTION LIMIT 1 VALID UNTIL %s IN ROLE %s PASSWORD %s",
			identifier(login.User), literal(now.Add(lentFor).Format(time.RFC3339)), identifier(login.Role), literal(verifier.Reveal())))
	})
}

// takeBack drops a login that was lent. If it cannot, the login is of no use soon,
// and `pawl plan` names it among the members of its owner.
func (a *Admin) takeBack(ctx context.Context, login string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = a.Do(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "DROP ROLE IF EXISTS "+identifier(login), pgx.QueryExecModeSimpleProtocol)
		return err
	})
}

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

// Rollback is the statement that rolls it back.
func (p Prepared) Rollback() string { return "ROLLBACK PREPARED" + literal(p.GID) }

// RollbackPrepared rolls one back; one that is gone is no error. PostgreSQL lets
// only its owner or a superuser do so, from a session in its database. The admin
// never logs in there, since that database may be the attacker's: it makes a login
// for this one statement, which is a member of the owner and has no other right. If the
// admin may not grant the owner, the login is a member of one of through, which the admin
// may grant and which may become the owner.
func (a *Admin) RollbackPrepared(ctx context.Context, p Prepared, through ...string) error {
	rollback := p.Rollback()
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
	err := a.lend(ctx, &login, p.Owner)
	for _, member := range through {
		if !IsRefused(err, NotPermitted) {
			break
		}
		err = a.lend(ctx, &login, member)
	}
	if err != nil {
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

// lend makes the login, as a member of that role, and gives it a password that is
// written nowhere.
func (a *Admin) lend(ctx context.Context, login *Target, member string) error {
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
	return a.quietly(ctx, func(ctx context.Context, tx *Tx) error {
		return tx.lend(ctx, login.User, member, verifier.Reveal(), now.Add(lentFor).Format(time.RFC3339))
	})
}

// quietly runs work in a transaction without a fence, and waits for no standby.
func (a *Admin) quietly(ctx context.Context, work func(context.Context, *Tx) error) error {
	begin := func(tx *Tx) error { return a.named(tx.conn.SendBatch(ctx, tx.begun(true, true)).Close()) }
	return a.transact(ctx, Fence{}, begin, work)
}

// takeBack drops a login that was lent. If it cannot, the login is of no use soon,
// and `pawl plan` names it among the members of its owner.
func (a *Admin) takeBack(ctx context.Context, login string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = a.quietly(ctx, func(ctx context.Context, tx *Tx) error { return tx.takeBack(ctx, login) })
}

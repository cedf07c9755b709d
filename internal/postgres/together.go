package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"pawl.dev/internal/secret"
)

// Refusal is one credential among those that RefuseAll refuses.
type Refusal struct {
	Fence   Fence // whose Role is the first login; it is always urgent
	Sibling string
	Strip   bool // take the passwords, too
}

// Met is what a Refusal has met.
type Met struct {
	Roles map[string]Role // the logins that exist, as they were before
	// Alone says why the credential was left out of the transaction: it has to be refused
	// by itself. Nil: both logins are refused.
	Alone error
}

// ErrAlone is wrapped by Met.Alone.
var ErrAlone = errors.New("cannot be refused together with others")

// maxBlocked is how many credentials of one RefuseAll may turn out to be blocked: each
// costs lockTimeout.
const maxBlocked = 2

// RefuseAll refuses the logins of many credentials in one transaction, behind the fence
// of each of them. Whoever is late at a fence, is blocked by a lock or is otherwise out of
// the ordinary is left out. If it returns an error, nothing was changed, or with
// ErrUnknownOutcome everything may have been; it is idempotent.
func (a *Admin) RefuseAll(ctx context.Context, all []Refusal) ([]Met, error) {
	met := make([]Met, len(all))
	seen := map[string]bool{}
	for i, r := range all {
		if seen[r.Fence.Role] {
			met[i].Alone = fmt.Errorf("%w: %q is being refused already", ErrAlone, r.Fence.Role)
		}
		seen[r.Fence.Role] = true
	}
	for tries := 0; ; tries++ {
		err := a.transact(ctx, Fence{}, func(tx *Tx) error { return a.enterAll(ctx, tx, all, met) },
			func(ctx context.Context, tx *Tx) error { return tx.refuseAll(ctx, all, met) })
		blocked := new(blockedAt)
		if err == nil || tries == maxBlocked || !errors.As(err, &blocked) {
			return met, err
		}
		met[blocked.index].Alone = fmt.Errorf("%w: %w", ErrAlone, err)
	}
}

// enterAll begins the transaction and passes the fences, in the order of their roles, so
// that two of these cannot wait for each other.
func (a *Admin) enterAll(ctx context.Context, tx *Tx, all []Refusal, met []Met) error {
	var sampled bool
	batch := tx.begun(true, true)
	batch.Queue(isSampled).QueryRow(scan(&sampled))
	if err := a.named(tx.conn.SendBatch(ctx, batch).Close()); err != nil {
		return unfit(err)
	}
	if sampled {
		return unfit(a.sampled())
	}
	var roles, rotations []string
	var generations []int64
	var phases []int
	for i, r := range all {
		if met[i].Alone == nil {
			roles, rotations = append(roles, r.Fence.Role), append(rotations, r.Fence.Rotation)
			generations, phases = append(generations, int64(r.Fence.Generation)), append(phases, r.Fence.Phase)
		}
	}
	rows, err := tx.conn.Query(ctx, `WITH free AS MATERIALIZED (SELECT role FROM pawl.fence WHERE role = ANY ($1::text[]::name[]) ORDER BY role FOR UPDATE SKIP LOCKED)
		INSERT INTO pawl.fence AS f (role, generation, phase, rotation, updated_at)
			SELECT mine.role::name, generation, phase, rotation, clock_timestamp()
			FROM unnest($1::text[], $2::bigint[], $3::int[], $4::text[]) AS mine (role, generation, phase, rotation)
			WHERE mine.role IN (SELECT role FROM free) OR NOT EXISTS (SELECT FROM pawl.fence o WHERE o.role = mine.role::name) ORDER BY 1
		`+passing+` RETURNING role::text`, roles, generations, phases, rotations)
	if err != nil {
		return a.named(err)
	}
	defer rows.Close()
	passed := map[string]bool{}
	for rows.Next() {
		var role string
		if err := rows.Scan(&role); err != nil {
			return a.named(err)
		}
		passed[role] = true
	}
	for i, r := range all {
		if met[i].Alone == nil && !passed[r.Fence.Role] {
			met[i].Alone = fmt.Errorf("%w: a later step has been at the fence of role %q, or is", ErrAlone, r.Fence.Role)
		}
	}
	return a.named(rows.Err())
}

// refuseAll reads the logins and changes those that are not yet as they should be.
func (tx *Tx) refuseAll(ctx context.Context, all []Refusal, met []Met) error {
	var names, siblings, owners []string
	for i, r := range all {
		if met[i].Alone == nil {
			names = append(names, r.Fence.Role, r.Sibling)
			siblings, owners = append(siblings, r.Sibling), append(owners, r.Fence.Role)
		}
	}
	members, err := tx.members(ctx, siblings, owners)
	if err != nil {
		return err
	}
	for i, r := range all {
		if member, exists := members[r.Sibling]; met[i].Alone == nil && exists && !member {
			met[i].Alone = fmt.Errorf("%w: role %q is no member of %q", ErrAlone, r.Sibling, r.Fence.Role)
			names = slices.DeleteFunc(names, func(name string) bool { return name == r.Sibling || name == r.Fence.Role })
		}
	}
	roles, err := tx.readable(ctx, all, met, names)
	if err != nil {
		return err
	}
	var statements []string
	var of []int
	for i, r := range all {
		if met[i].Alone != nil {
			continue
		}
		met[i].Roles = map[string]Role{}
		for _, name := range []string{r.Fence.Role, r.Sibling} {
			role := roles[name]
			if !role.Exists {
				continue
			}
			met[i].Roles[name] = role
			switch {
			case r.Strip && !role.Verifier.IsZero():
				statements, of = append(statements, tx.alteration(name, false, passwordOf(secret.String{}))), append(of, i)
			case role.CanLogin:
				statements, of = append(statements, tx.alteration(name, false, "")), append(of, i)
			}
		}
	}
	return tx.inOneGo(ctx, statements, of)
}

// readable reads the logins. A credential with one that the account may not read is left out.
func (tx *Tx) readable(ctx context.Context, all []Refusal, met []Met, names []string) (roles map[string]Role, err error) {
	if _, err := tx.conn.Exec(ctx, "SAVEPOINT unread"); err != nil {
		return nil, tx.admin.named(err)
	}
	roles, err = tx.RoleStates(ctx, names...)
	if !errors.As(err, new(*Refused)) {
		return roles, err
	}
	roles = map[string]Role{}
	for i, r := range all {
		if met[i].Alone != nil {
			continue
		}
		if _, err := tx.conn.Exec(ctx, "ROLLBACK TO unread"); err != nil {
			return nil, tx.admin.named(err)
		}
		own, err := tx.RoleStates(ctx, r.Fence.Role, r.Sibling)
		switch {
		case errors.As(err, new(*Refused)):
			met[i].Alone = fmt.Errorf("%w: %w", ErrAlone, err)
		case err != nil:
			return nil, err
		}
		maps.Copy(roles, own)
	}
	_, err = tx.conn.Exec(ctx, "ROLLBACK TO unread") // the last one may have failed
	return roles, tx.admin.named(err)
}

// members are those of the siblings that may act as their owners.
func (tx *Tx) members(ctx context.Context, siblings, owners []string) (map[string]bool, error) {
	rows, err := tx.conn.Query(ctx, `SELECT sibling, pg_has_role(s.oid, o.oid, 'MEMBER') FROM unnest($1::text[], $2::text[]) AS pair (sibling, owner)
		JOIN pg_catalog.pg_roles s ON s.rolname = sibling JOIN pg_catalog.pg_roles o ON o.rolname = owner`, siblings, owners)
	members := map[string]bool{}
	if err != nil {
		return nil, tx.admin.named(err)
	}
	defer rows.Close()
	for rows.Next() {
		var sibling string
		var member bool
		if err := rows.Scan(&sibling, &member); err != nil {
			return nil, tx.admin.named(err)
		}
		members[sibling] = member
	}
	return members, tx.admin.named(rows.Err())
}

// blockedAt is the refusal of one statement among many.
type blockedAt struct {
	error
	index int
}

func (b *blockedAt) Unwrap() error { return b.error }

// inOneGo sends the statements at once. If the server refuses one, the error is
// *blockedAt with the index that belongs to it.
func (tx *Tx) inOneGo(ctx context.Context, statements []string, of []int) error {
	if len(statements) == 0 {
		return nil
	}
	results := tx.conn.PgConn().Exec(ctx, strings.Join(statements, ";\n"))
	done := 0
	for results.NextResult() {
		if _, err := results.ResultReader().Close(); err == nil {
			done++
		}
	}
	err := results.Close()
	if refused := new(pgconn.PgError); errors.As(err, &refused) && done < len(of) {
		return &blockedAt{tx.admin.named(err), of[done]}
	}
	return tx.admin.named(err)
}

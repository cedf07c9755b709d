package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// History names the course that a node's data has taken: another one means
// that writes may have been lost, by a failover, a crash or a restored backup.
type History struct {
	System   string // pg_control_system: of this cluster of databases
	Timeline int    // pg_control_checkpoint: changes with each promotion
	Standby  bool
	Started  time.Time // the postmaster
}

// History reads the node's.
func (a *Admin) History(ctx context.Context) (h History, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		return a.named(c.QueryRow(ctx, `SELECT (SELECT system_identifier::text FROM pg_control_system()), (SELECT timeline_id FROM pg_control_checkpoint()),
			pg_is_in_recovery(), pg_postmaster_start_time()`).Scan(&h.System, &h.Timeline, &h.Standby, &h.Started))
	})
	return h, err
}

// Holdings is what a node holds of many logins, and of the fences of their roles.
type Holdings struct {
	Roles  map[string]Role // all that were asked for; those that do not exist, too
	Fences map[string]Fence
}

// Holdings reads all of it in two queries.
func (a *Admin) Holdings(ctx context.Context, logins, roles []string) (h Holdings, err error) {
	h.Fences = map[string]Fence{}
	err = a.Do(ctx, func(c *pgx.Conn) error {
		if h.Roles, err = a.roles(ctx, c, logins...); err != nil {
			return err
		}
		return a.fences(ctx, c, roles, h.Fences)
	})
	return h, err
}

func (a *Admin) fences(ctx context.Context, c *pgx.Conn, roles []string, into map[string]Fence) error {
	var f Fence
	rows, err := c.Query(ctx, `SELECT role, generation, phase, rotation FROM pawl.fence WHERE role = ANY ($1)`, roles)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&f.Role, &f.Generation, &f.Phase, &f.Rotation}, func() error { into[f.Role] = f; return nil })
	}
	if IsRefused(clean(err), noTable, noSchema) {
		return nil // of a time before Pawl
	}
	return a.named(err)
}

// Behind reports whether the fence is one that f's own transaction has passed:
// a database whose fence is behind has lost that transaction.
func (f Fence) Behind(of Fence) bool {
	return f.Generation < of.Generation || f.Generation == of.Generation && f.Phase < of.Phase
}

package restart

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/pgbouncer"
	"pawl.dev/services/restarter/internal/health"
)

const poolerInterval = 50 * time.Millisecond

// pooler has a pgbouncer let go of its server connections of logins that are not
// used any more, or, where only a password changed, replace those it has: they
// log in nowhere again.
type pooler struct{ inventory.Reconnect }

func (p pooler) Restart(ctx context.Context, cause Cause) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("not all released within %s", p.Timeout))
	defer cancel()
	console, err := pgbouncer.Open(ctx, p.Console)
	if err != nil {
		return err
	}
	defer console.Close()
	if cause.Cut {
		n, err := console.Cut(ctx, slices.Concat(cause.Left, cause.Changed))
		cause.Show(fmt.Sprintf("all connections of %d databases cut", n))
		return err
	}
	if len(cause.Left)+len(cause.Changed) == 0 {
		cause.Show("no login of it has moved")
	}
	return errors.Join(p.letGo(ctx, console, cause), p.recycle(ctx, console, cause))
}

// letGo waits until no connection of the logins is left. A RECONNECT would be
// quicker, but fails clients that are just being let in with the new login.
func (p pooler) letGo(ctx context.Context, console *pgbouncer.Console, cause Cause) error {
	old, err := console.Servers(ctx, cause.Left)
	if err != nil || len(old) == 0 {
		return err
	}
	undo, err := console.CloseIdle(ctx)
	if err != nil {
		return err
	}
	err = p.await(ctx, console, cause.Left, func(pgbouncer.Server) bool { return true })
	undoing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err = errors.Join(err, undo(undoing)); err == nil {
		cause.Show(fmt.Sprintf("%d server connections closed", len(old)))
	}
	return err
}

// recycle waits until none of the connections is left that were there when it
// began. A connection is known by its addresses, its backend and its birth, all
// as pgbouncer says: no clock is compared. One that was just being opened has
// no backend yet: pgbouncer marks it.
func (p pooler) recycle(ctx context.Context, console *pgbouncer.Console, cause Cause) error {
	old, err := console.Servers(ctx, cause.Changed)
	if err != nil || len(cause.Changed) == 0 {
		return err
	}
	for _, database := range databases(old) {
		if err := console.Reconnect(ctx, database); err != nil {
			return err
		}
	}
	err = p.await(ctx, console, cause.Changed, func(s pgbouncer.Server) bool { return s.Closing || slices.ContainsFunc(old, s.Is) })
	if err == nil {
		cause.Show(fmt.Sprintf("%d server connections recycled", len(old)))
	}
	return err
}

// await waits until no connection of the logins is one that has to go.
func (p pooler) await(ctx context.Context, console *pgbouncer.Console, logins []string, goes func(pgbouncer.Server) bool) error {
	var broken error
	err := health.Await(ctx, poolerInterval, func(ctx context.Context) error {
		now, err := console.Servers(ctx, logins)
		if err != nil {
			broken = err
			return nil
		}
		all := len(now)
		if left := slices.DeleteFunc(now, func(s pgbouncer.Server) bool { return !goes(s) }); len(left) > 0 {
			return fmt.Errorf("pgbouncer %s: of %d server connections are left %s: end the clients that hold them, or restart those before pgbouncer; min_pool_size holds some, too", p.Console.Address(), all, count(left))
		}
		return nil
	})
	return errors.Join(broken, err)
}

// databases lists those of the connections, each once.
func databases(servers []pgbouncer.Server) []string {
	all := map[string]bool{}
	for _, s := range servers {
		all[s.Database] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// count says how many there are of each login, and how many of those a client
// holds.
func count(servers []pgbouncer.Server) string {
	type of struct{ all, held int }
	logins := map[string]of{}
	for _, s := range servers {
		n := logins[s.User]
		n.all++
		if s.State == "active" {
			n.held++
		}
		logins[s.User] = n
	}
	var texts []string
	for _, login := range slices.Sorted(maps.Keys(logins)) {
		texts = append(texts, fmt.Sprintf("%d of %q (%d held by clients)", logins[login].all, login, logins[login].held))
	}
	return strings.Join(texts, ", ")
}

func (p pooler) Check(ctx context.Context) (string, error) {
	console, err := pgbouncer.Open(ctx, p.Console)
	if err != nil {
		return "", err
	}
	defer console.Close()
	settings, err := console.Config(ctx)
	if err == nil {
		err = console.Admin(settings)
	}
	return "pgbouncer " + p.Console.Address() + " can be told to reconnect", err
}

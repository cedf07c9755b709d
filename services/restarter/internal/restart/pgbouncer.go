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

// pooler has a pgbouncer replace its server connections of the credential's
// logins: those that it has now log in nowhere again.
type pooler struct{ inventory.Reconnect }

// Restart waits until none of the connections is left that were there when it
// began. A connection is known by its addresses, its backend and its birth, all
// as pgbouncer says: no clock is compared. One that was just being opened has
// no backend yet: pgbouncer marks it.
func (p pooler) Restart(ctx context.Context, cause Cause) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("not all released within %s", p.Timeout))
	defer cancel()
	console, err := pgbouncer.Open(ctx, p.Console)
	if err != nil {
		return err
	}
	defer console.Close()
	old, err := console.Servers(ctx, cause.Logins)
	if err != nil {
		return err
	}
	for _, database := range databases(old) {
		if err := console.Reconnect(ctx, database); err != nil {
			return err
		}
	}
	var broken error
	err = health.Await(ctx, poolerInterval, func(ctx context.Context) error {
		now, err := console.Servers(ctx, cause.Logins)
		if err != nil {
			broken = err
			return nil
		}
		left := slices.DeleteFunc(now, func(s pgbouncer.Server) bool { return !s.Closing && !slices.ContainsFunc(old, s.Is) })
		if len(left) > 0 {
			return fmt.Errorf("pgbouncer %s: of %d server connections are left %s: end the clients that hold them, or restart those before pgbouncer", p.Console.Address(), len(old), count(left))
		}
		return nil
	})
	if err = errors.Join(broken, err); err == nil {
		cause.Show(fmt.Sprintf("%d server connections recycled", len(old)))
	}
	return err
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

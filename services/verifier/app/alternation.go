package app

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/verifier/internal/probe"
)

// checkAlternation refuses what would make an application's rights depend on
// which of the two logins it has. It looks in the credential's database; if nobody
// may look there, in the admin's own, where the policies alone are not seen.
func (a *app) checkAlternation(ctx context.Context, c *inventory.Credential, node inventory.Node, r *report) {
	database, unseen := c.LoginDatabase(), c.Unseen() != ""
	if unseen {
		database = c.Cluster.Admin.Database
	}
	observer, err := a.accounts.observerIn(c, node, database)
	if err == nil {
		err = observer.Do(ctx, func(conn *pgx.Conn) error {
			if !unseen {
				checkPolicies(ctx, conn, c, r)
			}
			checkLogins(ctx, conn, c, r)
			return nil
		})
	}
	if err != nil {
		r.refuse("observer %q cannot log in to database %q, whose policies and owners must be compared: %v. Fix: GRANT CONNECT ON DATABASE %s TO %s",
			c.Cluster.Observer.User, database, err, quote(database), quote(c.Cluster.Observer.User))
	}
}

func checkPolicies(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r *report) {
	faults, err := probe.Divided(ctx, conn, c.Role, c.Sibling())
	if err != nil {
		r.refuse("%v", probe.Explain("read the row-level security policies", err))
	}
	for _, fault := range faults {
		r.refuse("%s", fault)
	}
}

// turn orders the logins ($1 owner, $2 sibling) as the next rotation replaces
// them: the idle one comes, the other goes. No row where one does not exist yet.
const turn = `
SELECT CASE WHEN o.rolcanlogin THEN s.rolname ELSE o.rolname END::text, CASE WHEN o.rolcanlogin THEN o.rolname ELSE s.rolname END::text
FROM pg_catalog.pg_roles o, pg_catalog.pg_roles s WHERE o.rolname = $1 AND s.rolname = $2`

// checkLogins compares the logins as verify will, when it is too late to do so
// without touching anything.
func checkLogins(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r *report) {
	rows, err := conn.Query(ctx, turn, c.Role, c.Sibling())
	var order [][2]string
	if err == nil {
		order, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (names [2]string, err error) {
			return names, row.Scan(&names[0], &names[1])
		})
	}
	var faults []string
	if err == nil && len(order) == 1 {
		faults, err = probe.Unequal(ctx, conn, c.Role, order[0][0], order[0][1])
	}
	if err != nil {
		r.refuse("%v", probe.Explain("compare the logins", err))
		return
	}
	for _, fault := range faults {
		r.refuse("%s", fault)
	}
	if len(order) == 1 && len(faults) == 0 {
		r.find("%s", fmt.Sprintf("the logins of %q are equal", c.Role))
	}
}

package app

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/services/verifier/internal/probe"
)

// checkAlternation refuses what would make an application's rights depend on
// which of the two logins it has. It looks in the credential's database.
func (a *app) checkAlternation(ctx context.Context, c *inventory.Credential, node inventory.Node, r *report) {
	observer, err := a.accounts.inDatabase(c, node)
	if err == nil {
		err = observer.Do(ctx, func(conn *pgx.Conn) error {
			checkPolicies(ctx, conn, c, r)
			checkLogins(ctx, conn, c, r)
			return nil
		})
	}
	if err != nil {
		r.refuse("observer %q cannot log in to database %q, whose policies and owners must be compared: %v", c.Cluster.Observer.User, c.Database, err)
	}
}

// divided are the policies under which two logins ($1 owner, $2 sibling) that
// both act as the owner see different rows, or differ from what was meant: the
// expression asks who logged in, on a table where it counts for the owner; or
// the policy is for the sibling alone, as whom nobody acts. What a function that
// the expression calls asks cannot be seen.
const divided = `
SELECT format('%I.%I.%I', n.nspname, t.relname, p.polname), expression ~ '\m(SESSION|SYSTEM)_USER\M'
FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class t ON t.oid = polrelid JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
	JOIN pg_catalog.pg_roles o ON o.rolname = $1,
	LATERAL (SELECT concat_ws(' ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) AS expression) e
WHERE relrowsecurity AND (
	expression ~ '\m(SESSION|SYSTEM)_USER\M'
		AND NOT o.rolbypassrls AND (relforcerowsecurity OR NOT pg_has_role(o.oid, relowner, 'USAGE'))
		AND (has_table_privilege(o.oid, t.oid, 'SELECT, INSERT, UPDATE, DELETE') OR has_any_column_privilege(o.oid, t.oid, 'SELECT, INSERT, UPDATE'))
		AND EXISTS (SELECT FROM unnest(polroles) AS r WHERE r = 0 OR pg_has_role(o.oid, r, 'USAGE'))
	OR EXISTS (SELECT FROM pg_catalog.pg_roles s WHERE s.rolname = $2 AND s.oid = ANY (polroles) AND NOT o.oid = ANY (polroles)))
ORDER BY 1`

type policy struct {
	Name string
	Asks bool
}

func checkPolicies(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r *report) {
	rows, err := conn.Query(ctx, divided, c.Role, c.Sibling())
	var found []policy
	if err == nil {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[policy])
	}
	if err != nil {
		r.refuse("%v", probe.Explain("read the row-level security policies", err))
		return
	}
	for _, p := range found {
		if p.Asks {
			r.refuse("policy %s asks for session_user, which is another after each rotation: write current_user, which is %q for both logins (ALTER POLICY), or use in-place", p.Name, c.Role)
		} else {
			r.refuse("policy %s is for %s alone, as whom nobody acts: make it TO %s (ALTER POLICY)", p.Name, quote(c.Sibling()), quote(c.Role))
		}
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

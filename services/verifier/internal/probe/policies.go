package probe

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/saga"
)

// Policies checks, as the new login, what preflight had nobody to look for.
type Policies struct{}

// Name implements Probe.
func (Policies) Name() string { return "policies" }

// Run implements Probe.
func (Policies) Run(ctx context.Context, l *Login) error {
	sibling := l.User
	if sibling == l.Role {
		sibling = l.Old
	}
	var faults []string
	err := l.catalogue(ctx, func(conn *pgx.Conn) (err error) {
		faults, err = Divided(ctx, conn, l.Role, sibling)
		return err
	})
	if err != nil {
		return Explain("read the row-level security policies", err)
	}
	if len(faults) > 0 {
		return saga.Permanentf("%s", strings.Join(faults, "; "))
	}
	return nil
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

// Divided returns the policies that divide an owner and its sibling, each with its
// repair. It reads the database that conn is connected to.
func Divided(ctx context.Context, conn *pgx.Conn, owner, sibling string) (faults []string, err error) {
	found, err := list(ctx, conn, pgx.RowToStructByPos[policy], divided, owner, sibling)
	for _, p := range found {
		if p.Asks {
			faults = append(faults, fmt.Sprintf("policy %s asks for session_user, which is another after each rotation: write current_user, which is %q for both logins (ALTER POLICY), or use in-place", p.Name, owner))
		} else {
			faults = append(faults, fmt.Sprintf("policy %s is for %s alone, as whom nobody acts: make it TO %s (ALTER POLICY)", p.Name, quote(sibling), quote(owner)))
		}
	}
	return faults, err
}

package probe

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/saga"
)

// Privileges compares, in the catalogue, what the new login itself brings with
// what the old one does. Both act as the same role, which Identity checks: so
// neither but that role may own or be granted anything.
type Privileges struct{}

// Name implements Probe.
func (Privileges) Name() string { return "privileges" }

// differences lists what the two logins ($1 new, $2 old) do not share. Left out
// are SET role, which the owner ($3) needs none of to become itself, and the
// logins as members of each other. The server asks the acting role for
// CREATEDB, CREATEROLE and BYPASSRLS, so the owner's count for both; REPLICATION
// it asks the login for. Settings' values stay in the database: they may be
// secrets of the application.
const differences = `
WITH fact AS (
	SELECT l.rolname, f.*
	FROM pg_catalog.pg_roles l JOIN pg_catalog.pg_roles o ON o.rolname = $3 CROSS JOIN LATERAL (
		VALUES ('attribute', '', 'SUPERUSER', l.rolsuper::text),
		       ('attribute', '', 'CREATEDB', (l.rolcreatedb OR o.rolcreatedb)::text),
		       ('attribute', '', 'CREATEROLE', (l.rolcreaterole OR o.rolcreaterole)::text),
		       ('attribute', '', 'REPLICATION', l.rolreplication::text),
		       ('attribute', '', 'BYPASSRLS', (l.rolbypassrls OR o.rolbypassrls)::text),
		       ('limit', '', 'CONNECTION LIMIT', l.rolconnlimit::text),
		       ('limit', '', 'VALID UNTIL', quote_literal(coalesce(l.rolvaliduntil, 'infinity'))::text)
		UNION ALL
		SELECT 'membership', '', m.rolname, 'true' FROM pg_catalog.pg_roles m
		WHERE m.rolname NOT IN ($1, $2) AND pg_has_role(l.oid, m.oid, 'MEMBER')
		UNION ALL
		SELECT 'setting', coalesce(d.datname, ''), split_part(s.setting, '=', 1), substr(s.setting, strpos(s.setting, '=') + 1)
		FROM pg_catalog.pg_db_role_setting r LEFT JOIN pg_catalog.pg_database d ON d.oid = r.setdatabase, unnest(r.setconfig) AS s(setting)
		WHERE r.setrole = l.oid AND s.setting NOT LIKE 'role=%'
	) AS f(kind, database, name, value)
	WHERE l.rolname IN ($1, $2)
)
SELECT kind, database, name, CASE WHEN kind = 'setting' THEN '' ELSE coalesce(old.value, '') END, old.value IS NOT NULL
FROM (SELECT * FROM fact WHERE rolname = $1) new FULL JOIN (SELECT * FROM fact WHERE rolname = $2) old USING (kind, database, name)
WHERE new.value IS DISTINCT FROM old.value
ORDER BY kind, database, name`

// Run implements Probe.
func (Privileges) Run(ctx context.Context, l *Login) error {
	if l.Old == "" || l.Old == l.User {
		return nil
	}
	var faults []string
	err := l.catalogue(ctx, func(conn *pgx.Conn) (err error) {
		faults, err = Unequal(ctx, conn, l.Role, l.User, l.Old)
		return err
	})
	if err != nil {
		return Explain("compare the logins", err)
	}
	if len(faults) > 0 {
		return saga.Permanentf("%s", strings.Join(faults, "; "))
	}
	return nil
}

// Unequal returns in what the two logins of an owner differ, each with its
// repair: one is the owner itself, the other its sibling. It reads the catalogue
// of the database that conn is connected to.
func Unequal(ctx context.Context, conn *pgx.Conn, owner, user, old string) (faults []string, err error) {
	found, err := list(ctx, conn, pgx.RowToStructByPos[difference], differences, user, old, owner)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 {
		fixes := make([]string, len(found))
		for i, d := range found {
			fixes[i] = d.fix(user, old)
		}
		faults = append(faults, fmt.Sprintf("login %s differs from %s, which it replaces: %s", quote(user), quote(old), strings.Join(fixes, "; ")))
	}
	sibling := user
	if user == owner {
		sibling = old
	}
	own, err := Belongings(ctx, conn, owner, sibling)
	if len(own) > 0 {
		faults = append(faults, fmt.Sprintf("login %s must have nothing of its own, for it acts as %s: %s", quote(sibling), quote(owner), strings.Join(own, "; ")))
	}
	return faults, err
}

// difference is one fact that the logins do not share: the old login's value,
// and whether it has one.
type difference struct {
	Kind, Database, Name, Value string
	Has                         bool
}

// fix says what differs and how to make the new login like the old one.
func (d difference) fix(user, old string) string {
	alter := "ALTER ROLE " + quote(user)
	switch d.Kind {
	case "attribute":
		if d.Value == "false" {
			return fmt.Sprintf("%s (%s NO%s)", d.Name, alter, d.Name)
		}
		return fmt.Sprintf("no %s (%s %s)", d.Name, alter, d.Name)
	case "limit":
		return fmt.Sprintf("%s (%s %s %s)", d.Name, alter, d.Name, d.Value)
	case "membership":
		if !d.Has {
			return fmt.Sprintf("member of %s (REVOKE %s FROM %s)", quote(d.Name), quote(d.Name), quote(user))
		}
		return fmt.Sprintf("no member of %s (GRANT %s TO %s)", quote(d.Name), quote(d.Name), quote(user))
	}
	if d.Database != "" {
		alter += " IN DATABASE " + quote(d.Database)
	}
	if !d.Has {
		return fmt.Sprintf("setting %s (%s RESET %s)", d.Name, alter, d.Name)
	}
	return fmt.Sprintf("setting %s (%s SET %s to what %s has)", d.Name, alter, d.Name, quote(old))
}

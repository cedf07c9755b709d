package probe

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// named is how many things of one kind an error names.
const named = 3

// Belongings returns what the sibling has of its own, each with the statements
// that give it to the owner, as whom both logins act: what the sibling owns the
// owner cannot alter, and what it was granted, or grants by default, nobody gets
// who acts as the owner. It reads the database that conn is connected to, and
// counts in the others. A sibling that does not exist has nothing.
func Belongings(ctx context.Context, conn *pgx.Conn, owner, sibling string) (faults []string, err error) {
	var some bool
	if err := conn.QueryRow(ctx, ownsAnything, sibling).Scan(&some); err != nil || !some {
		return nil, err
	}
	for _, look := range []func(context.Context, *pgx.Conn, string, string) ([]string, error){owned, mapped, granted, byDefault, elsewhere} {
		found, err := look(ctx, conn, owner, sibling)
		if err != nil {
			return nil, err
		}
		faults = append(faults, found...)
	}
	return faults, nil
}

// dependents are the things that keep a role ($1) from being dropped, but for
// its memberships, which PostgreSQL lists here from 16 on.
const dependents = `
pg_catalog.pg_shdepend d
WHERE refclassid = 'pg_catalog.pg_authid'::regclass AND refobjid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1)
  AND deptype IN ('o', 'a') AND classid <> 'pg_catalog.pg_auth_members'::regclass`

const ownsAnything = `SELECT EXISTS (SELECT FROM ` + dependents + `)`

// here are those of this database, and those of all.
const here = dependents + ` AND dbid IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))`

const ownedHere = `
SELECT o.type || ' ' || o.identity
FROM (SELECT * FROM ` + here + ` AND deptype = 'o'
	AND classid NOT IN ('pg_catalog.pg_default_acl'::regclass, 'pg_catalog.pg_user_mapping'::regclass)) d,
	pg_identify_object(d.classid, d.objid, d.objsubid) o
ORDER BY 1`

func owned(ctx context.Context, conn *pgx.Conn, owner, sibling string) ([]string, error) {
	objects, err := list[string](ctx, conn, pgx.RowTo, ownedHere, sibling)
	if err != nil || len(objects) == 0 {
		return nil, err
	}
	return []string{fmt.Sprintf("it owns %s (REASSIGN OWNED BY %s TO %s)", few(objects, ", "), quote(sibling), quote(owner))}, nil
}

// mapped finds user mappings, which REASSIGN leaves alone: that of the acting
// role is used.
func mapped(ctx context.Context, conn *pgx.Conn, owner, sibling string) ([]string, error) {
	servers, err := list[string](ctx, conn, pgx.RowTo, `SELECT srvname::text FROM pg_catalog.pg_user_mappings WHERE usename = $1 ORDER BY 1`, sibling)
	if err != nil {
		return nil, err
	}
	var faults []string
	for _, server := range servers {
		faults = append(faults, fmt.Sprintf("it has a user mapping for server %s, where that of %s is used (DROP USER MAPPING FOR %[3]s SERVER %[1]s)", quote(server), quote(owner), quote(sibling)))
	}
	return faults, nil
}

// grantedHere spells each privilege that the login was granted itself, as GRANT
// does; ALL where that cannot be read on every version: pg_parameter_acl.
const grantedHere = `
SELECT coalesce(string_agg(DISTINCT e.privilege_type || coalesce(' (' || quote_ident(c.attname) || ')', ''), ', '), 'ALL'),
	CASE d.classid
		WHEN 'pg_catalog.pg_class'::regclass THEN
			CASE (SELECT relkind FROM pg_catalog.pg_class WHERE oid = d.objid) WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END
		WHEN 'pg_catalog.pg_proc'::regclass THEN 'ROUTINE '
		WHEN 'pg_catalog.pg_type'::regclass THEN 'TYPE '
		WHEN 'pg_catalog.pg_foreign_server'::regclass THEN 'FOREIGN SERVER '
		ELSE CASE o.type WHEN 'parameter ACL' THEN 'PARAMETER ' ELSE upper(o.type) || ' ' END
	END || o.identity,
	coalesce(e.is_grantable, false)
FROM (SELECT * FROM ` + here + ` AND deptype = 'a' AND classid <> 'pg_catalog.pg_default_acl'::regclass) d
CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) o
LEFT JOIN pg_catalog.pg_attribute c ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objsubid <> 0 AND c.attrelid = d.objid AND c.attnum = d.objsubid
LEFT JOIN LATERAL aclexplode(CASE d.classid
	WHEN 'pg_catalog.pg_class'::regclass THEN CASE d.objsubid WHEN 0 THEN (SELECT relacl FROM pg_catalog.pg_class WHERE oid = d.objid) ELSE c.attacl END
	WHEN 'pg_catalog.pg_proc'::regclass THEN (SELECT proacl FROM pg_catalog.pg_proc WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_type'::regclass THEN (SELECT typacl FROM pg_catalog.pg_type WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_namespace'::regclass THEN (SELECT nspacl FROM pg_catalog.pg_namespace WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_database'::regclass THEN (SELECT datacl FROM pg_catalog.pg_database WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_tablespace'::regclass THEN (SELECT spcacl FROM pg_catalog.pg_tablespace WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_language'::regclass THEN (SELECT lanacl FROM pg_catalog.pg_language WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_foreign_server'::regclass THEN (SELECT srvacl FROM pg_catalog.pg_foreign_server WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_foreign_data_wrapper'::regclass THEN (SELECT fdwacl FROM pg_catalog.pg_foreign_data_wrapper WHERE oid = d.objid)
	WHEN 'pg_catalog.pg_largeobject_metadata'::regclass THEN (SELECT lomacl FROM pg_catalog.pg_largeobject_metadata WHERE oid = d.objid)
END) e ON e.grantee = d.refobjid
GROUP BY 2, 3 ORDER BY 2, 3`

type grant struct {
	Privileges, On string
	Grantable      bool
}

func granted(ctx context.Context, conn *pgx.Conn, owner, sibling string) ([]string, error) {
	grants, err := list(ctx, conn, pgx.RowToStructByPos[grant], grantedHere, sibling)
	if err != nil || len(grants) == 0 {
		return nil, err
	}
	var things, fixes []string
	for _, g := range grants {
		things = append(things, g.On)
		revoke := fmt.Sprintf("REVOKE %s ON %s FROM %s", g.Privileges, g.On, quote(sibling))
		if g.Privileges != "ALL" {
			revoke = fmt.Sprintf("GRANT %s ON %s TO %s%s; ", g.Privileges, g.On, quote(owner), option(g.Grantable)) + revoke
		}
		fixes = append(fixes, revoke)
	}
	return []string{fmt.Sprintf("it was granted itself what %s is to be granted, on %s (%s)", quote(owner), few(things, ", "), few(fixes, "; "))}, nil
}

func option(grantable bool) string {
	if grantable {
		return " WITH GRANT OPTION"
	}
	return ""
}

// defaultsHere are the default privileges for what the login ($1) creates, and
// those that give something to it, as ALTER DEFAULT PRIVILEGES spells them; of
// those without a schema, what differs from PostgreSQL's own.
const defaultsHere = `
WITH mine AS (
	SELECT a.*, r.oid AS login FROM pg_catalog.pg_default_acl a JOIN pg_catalog.pg_roles r ON r.rolname = $1
), built_in AS (
	SELECT a.oid, e.* FROM mine a, aclexplode(acldefault(CASE defaclobjtype WHEN 'S' THEN 's' ELSE defaclobjtype END, defaclrole)) e
	WHERE defaclnamespace = 0
), stored AS (
	SELECT a.oid, e.* FROM mine a, aclexplode(defaclacl) e
), changed AS (
	SELECT true AS given, s.oid, s.grantee, s.privilege_type, s.is_grantable FROM stored s
	WHERE NOT EXISTS (SELECT FROM built_in b WHERE (b.oid, b.grantee, b.privilege_type, b.is_grantable) = (s.oid, s.grantee, s.privilege_type, s.is_grantable))
	UNION ALL
	SELECT false, b.oid, b.grantee, b.privilege_type, false FROM built_in b
	WHERE NOT EXISTS (SELECT FROM stored s WHERE (s.oid, s.grantee, s.privilege_type) = (b.oid, b.grantee, b.privilege_type))
)
SELECT given, pg_get_userbyid(defaclrole)::text, coalesce(nspname, ''), CASE grantee WHEN 0 THEN '' ELSE pg_get_userbyid(grantee)::text END,
	string_agg(privilege_type, ', ' ORDER BY privilege_type),
	CASE defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END,
	is_grantable
FROM changed JOIN mine USING (oid) LEFT JOIN pg_catalog.pg_namespace n ON n.oid = defaclnamespace
WHERE login IN (defaclrole, grantee)
GROUP BY given, defaclrole, nspname, grantee, defaclobjtype, is_grantable
ORDER BY 2, 3, 6, 4, 1`

type defaultGrant struct {
	Given                    bool // false: taken away
	Creator, Schema, Grantee string
	Privileges, Objects      string
	Grantable                bool
}

// statement gives or takes, with owner in the place of the sibling or not.
func (d defaultGrant) statement(give bool, in func(string) string) string {
	text := "ALTER DEFAULT PRIVILEGES FOR ROLE " + quote(in(d.Creator))
	if d.Schema != "" {
		text += " IN SCHEMA " + quote(d.Schema)
	}
	grantee := "PUBLIC"
	if d.Grantee != "" {
		grantee = quote(in(d.Grantee))
	}
	if give {
		return fmt.Sprintf("%s GRANT %s ON %s TO %s%s", text, d.Privileges, d.Objects, grantee, option(d.Grantable))
	}
	return fmt.Sprintf("%s REVOKE %s ON %s FROM %s", text, d.Privileges, d.Objects, grantee)
}

func byDefault(ctx context.Context, conn *pgx.Conn, owner, sibling string) ([]string, error) {
	defaults, err := list(ctx, conn, pgx.RowToStructByPos[defaultGrant], defaultsHere, sibling)
	if err != nil || len(defaults) == 0 {
		return nil, err
	}
	same := func(name string) string { return name }
	swapped := func(name string) string {
		if name == sibling {
			return owner
		}
		return name
	}
	var fixes []string
	for _, d := range defaults {
		fixes = append(fixes, d.statement(d.Given, swapped)+"; "+d.statement(!d.Given, same))
	}
	return []string{fmt.Sprintf("default privileges name it instead of %s (%s)", quote(owner), few(fixes, "; "))}, nil
}

const thingsElsewhere = `
SELECT b.datname::text, count(*)::int FROM pg_catalog.pg_database b JOIN (SELECT * FROM ` + dependents + `) d ON d.dbid = b.oid
WHERE b.datname <> current_database() GROUP BY 1 ORDER BY 1`

func elsewhere(ctx context.Context, conn *pgx.Conn, owner, sibling string) ([]string, error) {
	databases, err := list(ctx, conn, pgx.RowToStructByPos[struct {
		Name  string
		Count int
	}], thingsElsewhere, sibling)
	if err != nil || len(databases) == 0 {
		return nil, err
	}
	var counts []string
	for _, d := range databases {
		counts = append(counts, fmt.Sprintf("%d in %s", d.Count, quote(d.Name)))
	}
	return []string{fmt.Sprintf("it owns, or was granted, things in other databases: %s (in each: REASSIGN OWNED BY %s TO %s; then GRANT and REVOKE what \\dp and \\ddp show)",
		few(counts, ", "), quote(sibling), quote(owner))}, nil
}

// few lists the first things, and how many more there are.
func few(things []string, separator string) string {
	if len(things) <= named {
		return strings.Join(things, separator)
	}
	return fmt.Sprintf("%s%sand %d more", strings.Join(things[:named], separator), separator, len(things)-named)
}

func list[T any](ctx context.Context, conn *pgx.Conn, read pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, read)
}

package postgres

const oids = "(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY ($2))"

// toRemove is the column with the statement that removes what the row names. Nothing
// runs it but a person. It is empty for what Pawl itself needs, and for what holds data.
const toRemove = "to remove"

// ofServer is what one session in any database can see.
var ofServer = []look{
	{"roles", []since{{0, `SELECT rolname AS role, rolcanlogin AS login, rolsuper AS superuser, rolcreaterole AS createrole, rolcreatedb AS createdb,
		rolreplication AS replication, rolbypassrls AS bypassrls, rolconnlimit AS "connection limit", rolvaliduntil AS "valid until", count(*) OVER ()
		FROM pg_catalog.pg_roles WHERE rolname = ANY ($2) ORDER BY 1 LIMIT $1`}}},
	// A thief may leave a search_path behind; other values may be secret. SET role is
	// how a sibling acts as its owner.
	{"settings", []since{{0, `SELECT coalesce(r.rolname, 'all') AS role, coalesce(d.datname, 'all') AS "in database", s.name AS setting,
		CASE WHEN s.name IN ('search_path', 'role') THEN s.value ELSE 'withheld' END AS value,
		CASE WHEN s.name = 'role' AND d.datname IS NULL AND s.value::name = ANY ($2) THEN '' ELSE
			format('ALTER ROLE %I%s RESET %I', r.rolname, CASE WHEN d.datname IS NOT NULL THEN format(' IN DATABASE %I', d.datname) END, s.name) END AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_db_role_setting c CROSS JOIN LATERAL (SELECT split_part(u, '=', 1), substr(u, strpos(u, '=') + 1) FROM unnest(c.setconfig) AS u) AS s (name, value)
		LEFT JOIN pg_catalog.pg_roles r ON r.oid = c.setrole LEFT JOIN pg_catalog.pg_database d ON d.oid = c.setdatabase
		WHERE c.setrole IN ` + oids + ` ORDER BY 1, 2, 3 LIMIT $1`}}},
	{"memberships", []since{
		{0, memberships("m.admin_option AS admin", "''")},
		{160000, memberships("m.admin_option AS admin, m.inherit_option AS inherit, m.set_option AS set", "format(' GRANTED BY %s', m.grantor::regrole)")},
	}},
	// From 16 on, whoever creates a role is made its administrator by the first superuser.
	{"roles created or administered", []since{{0, ""}, {160000, `SELECT m.roleid::regrole AS role, m.member::regrole AS "created by", r.rolcanlogin AS login,
		format('DROP ROLE %s', m.roleid::regrole) AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.roleid WHERE m.member IN ` + oids + ` AND m.admin_option AND m.grantor = 10 ORDER BY m.roleid DESC LIMIT $1`}}},
	{"belongings", []since{{0, `SELECT coalesce(b.datname, 'all') AS "in database", d.classid::regclass AS kind,
		count(*) FILTER (WHERE d.deptype = 'o') AS owned, count(*) FILTER (WHERE d.deptype <> 'o') AS "granted or named", count(*) OVER ()
		FROM pg_catalog.pg_shdepend d LEFT JOIN pg_catalog.pg_database b ON b.oid = d.dbid
		WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.refobjid IN ` + oids + ` GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2 LIMIT $1`}}},
	{"replication slots of anybody", []since{{0, `SELECT slot_name AS slot, slot_type AS type, plugin, database, active, active_pid AS pid, restart_lsn AS "keeps from",
		CASE WHEN active_pid IS NOT NULL THEN format('SELECT pg_terminate_backend(%s); ', active_pid) ELSE '' END || format('SELECT pg_drop_replication_slot(%L)', slot_name) AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_replication_slots ORDER BY 1 LIMIT $1`}}},
	// Without a slot_name, dropping one asks nothing of the server that it reads from.
	{"subscriptions of anybody", []since{{0, `SELECT s.subname AS subscription, d.datname AS database, s.subowner::regrole AS owner, s.subenabled AS enabled, s.subslotname AS slot, s.subpublications AS publications,
		format('ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); DROP SUBSCRIPTION %1$I', s.subname) AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_subscription s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.subdbid ORDER BY 1 LIMIT $1`}}},
	{"prepared transactions left", []since{{0, `SELECT gid, owner, database, prepared, format('ROLLBACK PREPARED %L', gid) AS "to remove", count(*) OVER () FROM pg_catalog.pg_prepared_xacts WHERE owner = ANY ($2) ORDER BY 4 LIMIT $1`}}},
}

// memberships of the logins, and those that they granted. What a sibling has of its
// owner, and what Pawl's own account has, is needed.
func memberships(options, grantor string) string {
	return `SELECT m.member::regrole AS member, m.roleid::regrole AS "acts as", ` + options + `, m.grantor::regrole AS "granted by",
		CASE WHEN m.member IN ` + oids + ` AND m.roleid IN ` + oids + ` OR m.member IN (SELECT oid FROM pg_catalog.pg_roles WHERE rolname IN (current_user, session_user)) THEN ''
			ELSE format('REVOKE %s FROM %s%s', m.roleid::regrole, m.member::regrole, ` + grantor + `) END AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_auth_members m WHERE m.member IN ` + oids + ` OR m.roleid IN ` + oids + ` OR m.grantor IN ` + oids + ` ORDER BY 1, 2 LIMIT $1`
}

// drop is the statement for an object o as pg_identify_object names it. A table, a
// sequence and what holds data besides gets none: it may be all that the application has.
const drop = `CASE WHEN o.type IN ('view', 'function', 'procedure', 'aggregate', 'type', 'schema', 'operator', 'operator class', 'operator family', 'collation', 'conversion',
			'language', 'server', 'extension', 'publication', 'event trigger', 'text search dictionary', 'text search configuration', 'foreign table', 'materialized view')
			THEN format('DROP %s %s', upper(o.type), o.identity)
		WHEN o.type = 'foreign-data wrapper' THEN 'DROP FOREIGN DATA WRAPPER ' || o.identity
		WHEN o.type = 'statistics object' THEN 'DROP STATISTICS ' || o.identity
		WHEN o.type = 'large object' THEN format('SELECT lo_unlink(%s)', o.identity)
		ELSE '' END AS "to remove"`

// ofDatabase is what has to be looked at in each database.
var ofDatabase = []look{
	{"objects owned", []since{{0, `SELECT o.type, o.identity AS name, d.role AS owner, ` + drop + `, d.total
		FROM (SELECT classid, objid, objsubid, refobjid::regrole AS role, count(*) OVER () AS total FROM pg_catalog.pg_shdepend
			WHERE dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) AND deptype = 'o'
			AND refclassid = 'pg_catalog.pg_authid'::regclass AND refobjid IN ` + oids + ` ORDER BY objid DESC LIMIT $1) AS d
		CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) o WHERE o.identity IS NOT NULL ORDER BY 1, 2`}}},
	{"SECURITY DEFINER functions owned", []since{{0, `SELECT o.identity AS function, f.lanname AS language, f.may AS "may call", f.settings, ` + drop + `, f.total
		FROM (SELECT p.oid, l.lanname, coalesce(array_to_string(p.proacl, ' '), 'everybody (default)') AS may, coalesce(array_to_string(p.proconfig, ' '), '') AS settings, count(*) OVER () AS total
			FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang WHERE p.prosecdef AND p.proowner IN ` + oids + ` ORDER BY p.oid DESC LIMIT $1) AS f
		CROSS JOIN LATERAL pg_catalog.pg_identify_object('pg_catalog.pg_proc'::regclass, f.oid, 0) o ORDER BY f.oid DESC`}}},
	// Their text stays where it is: it may hold a password. CASE, so that the text of
	// others' is not written out to be searched.
	{"functions and views that may connect elsewhere", []since{{0, `SELECT o.type, o.identity AS name, c.owner, ` + drop + `, c.total
		FROM (SELECT class, oid, owner::regrole AS owner, count(*) OVER () AS total FROM (
			SELECT 'pg_catalog.pg_proc'::regclass AS class, p.oid, p.proowner AS owner FROM pg_catalog.pg_proc p
				WHERE CASE WHEN p.proowner IN ` + oids + ` AND p.prokind <> 'a' THEN pg_get_functiondef(p.oid) ~* ` + connects + ` END
			UNION ALL SELECT 'pg_catalog.pg_class'::regclass, v.oid, v.relowner FROM pg_catalog.pg_class v
				WHERE CASE WHEN v.relowner IN ` + oids + ` AND v.relkind IN ('v', 'm') THEN pg_get_viewdef(v.oid) ~* ` + connects + ` END) AS found ORDER BY oid DESC LIMIT $1) AS c
		CROSS JOIN LATERAL pg_catalog.pg_identify_object(c.class, c.oid, 0) o ORDER BY 1, 2`}}},
	{"triggers, rules and policies", []since{{0, `SELECT kind, name, "on", function, format('DROP %s %I ON %s', upper(kind), name, "on") AS "to remove", count(*) OVER () FROM (
			SELECT t.oid, 'trigger' AS kind, t.tgname AS name, format('%I.%I', n.nspname, c.relname) AS "on", format('%I.%I', m.nspname, p.proname) AS function
				FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
				JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid JOIN pg_catalog.pg_namespace m ON m.oid = p.pronamespace
				WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND (c.relowner IN ` + oids + ` OR p.proowner IN ` + oids + `)
			UNION ALL SELECT r.oid, 'rule', r.rulename, format('%I.%I', n.nspname, c.relname), ''
				FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE r.rulename <> '_RETURN' AND c.relowner IN ` + oids + `
			UNION ALL SELECT r.oid, 'policy', r.polname, format('%I.%I', n.nspname, c.relname), ''
				FROM pg_catalog.pg_policy r JOIN pg_catalog.pg_class c ON c.oid = r.polrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relowner IN ` + oids + `
		) AS found ORDER BY oid DESC LIMIT $1`}}},
	{"default privileges", []since{{0, `SELECT role, schema AS "in schema", objects AS "on", grantee AS "to", rights,
			format('ALTER DEFAULT PRIVILEGES FOR ROLE %s%s REVOKE ALL ON %s FROM %s', role, CASE WHEN schema <> '' THEN ' IN SCHEMA ' || schema END, objects, grantee) AS "to remove", count(*) OVER ()
		FROM (SELECT a.defaclrole::regrole AS role, coalesce(quote_ident(n.nspname), '') AS schema, k.objects, CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END AS grantee, string_agg(x.privilege_type, ', ') AS rights
			FROM pg_catalog.pg_default_acl a LEFT JOIN pg_catalog.pg_namespace n ON n.oid = a.defaclnamespace CROSS JOIN LATERAL aclexplode(a.defaclacl) x
			JOIN (VALUES ('r', 'TABLES'), ('S', 'SEQUENCES'), ('f', 'ROUTINES'), ('T', 'TYPES'), ('n', 'SCHEMAS'), ('L', 'LARGE OBJECTS')) AS k (code, objects) ON k.code = a.defaclobjtype::text
			WHERE (a.defaclrole IN ` + oids + ` OR x.grantee IN ` + oids + `) AND x.grantee <> a.defaclrole GROUP BY 1, 2, 3, 4) AS found ORDER BY 1, 2, 3, 4 LIMIT $1`}}},
	{"foreign servers owned", []since{{0, `SELECT s.srvname AS server, s.srvowner::regrole AS owner, w.fdwname AS wrapper, format('DROP SERVER %I', s.srvname) AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE s.srvowner IN ` + oids + ` ORDER BY s.oid DESC LIMIT $1`}}},
	{"user mappings", []since{{0, `SELECT srvname AS server, usename AS role,
		format('DROP USER MAPPING FOR %s SERVER %I', CASE umuser WHEN 0 THEN 'PUBLIC' ELSE quote_ident(usename) END, srvname) AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_user_mappings WHERE umuser = 0 OR usename = ANY ($2) ORDER BY 1, 2 LIMIT $1`}}},
	{"event triggers of anybody", []since{{0, `SELECT evtname AS trigger, evtevent AS event, evtowner::regrole AS owner, evtfoid::regproc AS function, evtenabled AS enabled,
		format('DROP EVENT TRIGGER %I', evtname) AS "to remove", count(*) OVER ()
		FROM pg_catalog.pg_event_trigger ORDER BY 1 LIMIT $1`}}},
}

// connects matches the text of what may open a connection, by dblink or otherwise.
const connects = `'(dblink|host(addr)? *=|password *=|postgres(ql)?://)'`

// cron lists the jobs of pg_cron. Only the extension's own table is read: in the
// thief's own database, anything of that name may be his.
var cron = look{"pg_cron jobs", []since{{0, `SELECT jobid AS job, username AS role, database, schedule, active, command AS query,
	format('SELECT cron.unschedule(%s::bigint)', jobid) AS "to remove", count(*) OVER () FROM cron.job WHERE username = ANY ($2) ORDER BY jobid DESC LIMIT $1`}}}

const hasCron = `SELECT row_security_active(c.oid) FROM pg_catalog.pg_extension e
	JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e' AND d.classid = 'pg_catalog.pg_class'::regclass
	JOIN pg_catalog.pg_class c ON c.oid = d.objid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
	WHERE e.extname = 'pg_cron' AND n.nspname = 'cron' AND c.relname = 'job' AND c.relkind = 'r'`

// statements of pg_stat_statements, which lies in the schema %s. The columns'
// names differ from version to version.
var statements = look{"statements", []since{
	{0, counted("", "")},
	{140000, counted("s.toplevel AS \"from the client\", ", "")},
	{170000, counted("s.toplevel AS \"from the client\", ", "s.stats_since AS since, ")},
}}

func counted(top, when string) string {
	return `SELECT s.userid::regrole AS role, d.datname AS database, s.calls, s.rows, ` + top + when + `round(s.total_exec_time)::bigint AS ms, s.query, count(*) OVER ()
		FROM %s.pg_stat_statements s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid WHERE s.userid IN ` + oids + ` ORDER BY s.total_exec_time DESC LIMIT $1`
}

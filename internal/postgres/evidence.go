package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Table is something that a server had to tell, as text.
type Table struct {
	Name     string     `json:"name"`
	Database string     `json:"database,omitempty"` // empty: of the whole server
	Columns  []string   `json:"columns,omitempty"`
	Rows     [][]string `json:"rows,omitempty"`
	Left     int        `json:"left_out,omitempty"` // rows that there were beyond those
	Unread   string     `json:"unread,omitempty"`   // why it could not be read
}

// Bounds of Evidence.
const (
	maxRows       = 100 // of one table
	maxDatabases  = 4
	statementTime = "400ms" // of one look at the catalogue
)

// look is one table of the evidence: its query by the first server version that
// it fits, in the order of versions. $1 is the greatest number of rows, $2 are the
// logins; the last column is how many there are.
type look struct {
	name string
	sql  []since
}

type since struct {
	version int // 0: any
	sql     string
}

func (l look) fits(version int) (sql string) {
	for _, s := range l.sql {
		if s.version <= version {
			sql = s.sql
		}
	}
	return sql
}

const oids = "(SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY ($2))"

// ofServer is what one session in any database can see.
var ofServer = []look{
	{"roles", []since{{0, `SELECT rolname AS role, rolcanlogin AS login, rolsuper AS superuser, rolcreaterole AS createrole, rolcreatedb AS createdb,
		rolreplication AS replication, rolbypassrls AS bypassrls, rolconnlimit AS "connection limit", rolvaliduntil AS "valid until", count(*) OVER ()
		FROM pg_catalog.pg_roles WHERE rolname = ANY ($2) ORDER BY 1 LIMIT $1`}}},
	// A thief may leave a search_path behind; other values may be secret.
	{"settings", []since{{0, `SELECT coalesce(r.rolname, 'all') AS role, coalesce(d.datname, 'all') AS "in database", split_part(s.setting, '=', 1) AS setting,
		CASE WHEN split_part(s.setting, '=', 1) IN ('search_path', 'role') THEN substr(s.setting, strpos(s.setting, '=') + 1) ELSE 'withheld' END AS value, count(*) OVER ()
		FROM pg_catalog.pg_db_role_setting c CROSS JOIN LATERAL unnest(c.setconfig) AS s (setting)
		LEFT JOIN pg_catalog.pg_roles r ON r.oid = c.setrole LEFT JOIN pg_catalog.pg_database d ON d.oid = c.setdatabase
		WHERE c.setrole IN ` + oids + ` ORDER BY 1, 2, 3 LIMIT $1`}}},
	{"memberships", []since{
		{0, memberships("m.admin_option AS admin")},
		{160000, memberships("m.admin_option AS admin, m.inherit_option AS inherit, m.set_option AS set")},
	}},
	{"belongings", []since{{0, `SELECT coalesce(b.datname, 'all') AS "in database", d.classid::regclass AS kind,
		count(*) FILTER (WHERE d.deptype = 'o') AS owned, count(*) FILTER (WHERE d.deptype <> 'o') AS "granted or named", count(*) OVER ()
		FROM pg_catalog.pg_shdepend d LEFT JOIN pg_catalog.pg_database b ON b.oid = d.dbid
		WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.refobjid IN ` + oids + ` GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2 LIMIT $1`}}},
	{"replication slots of anybody", []since{{0, `SELECT slot_name AS slot, slot_type AS type, plugin, database, active, active_pid AS pid, restart_lsn AS "keeps from", count(*) OVER ()
		FROM pg_catalog.pg_replication_slots ORDER BY 1 LIMIT $1`}}},
	{"subscriptions of anybody", []since{{0, `SELECT s.subname AS subscription, d.datname AS database, s.subowner::regrole AS owner, s.subenabled AS enabled, s.subslotname AS slot, s.subpublications AS publications, count(*) OVER ()
		FROM pg_catalog.pg_subscription s LEFT JOIN pg_catalog.pg_database d ON d.oid = s.subdbid ORDER BY 1 LIMIT $1`}}},
	{"prepared transactions left", []since{{0, `SELECT gid, owner, database, prepared, count(*) OVER () FROM pg_catalog.pg_prepared_xacts WHERE owner = ANY ($2) ORDER BY 4 LIMIT $1`}}},
}

func memberships(options string) string {
	return `SELECT m.member::regrole AS member, m.roleid::regrole AS "acts as", ` + options + `, m.grantor::regrole AS "granted by", count(*) OVER ()
		FROM pg_catalog.pg_auth_members m WHERE m.member IN ` + oids + ` OR m.roleid IN ` + oids + ` ORDER BY 1, 2 LIMIT $1`
}

// ofDatabase is what has to be looked at in each database.
var ofDatabase = []look{
	{"objects owned", []since{{0, `SELECT o.type, o.identity AS name, d.role AS owner, d.total
		FROM (SELECT classid, objid, objsubid, refobjid::regrole AS role, count(*) OVER () AS total FROM pg_catalog.pg_shdepend
			WHERE dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) AND deptype = 'o'
			AND refclassid = 'pg_catalog.pg_authid'::regclass AND refobjid IN ` + oids + ` ORDER BY objid DESC LIMIT $1) AS d
		CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) o WHERE o.identity IS NOT NULL ORDER BY 1, 2`}}},
	{"SECURITY DEFINER functions owned", []since{{0, `SELECT p.oid::regprocedure AS function, l.lanname AS language, coalesce(array_to_string(p.proacl, ' '), 'everybody (default)') AS "may call",
		coalesce(array_to_string(p.proconfig, ' '), '') AS settings, count(*) OVER ()
		FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang WHERE p.prosecdef AND p.proowner IN ` + oids + ` ORDER BY p.oid DESC LIMIT $1`}}},
	{"user mappings", []since{{0, `SELECT srvname AS server, usename AS role, count(*) OVER () FROM pg_catalog.pg_user_mappings WHERE umuser = 0 OR usename = ANY ($2) ORDER BY 1, 2 LIMIT $1`}}},
	{"event triggers of anybody", []since{{0, `SELECT evtname AS trigger, evtevent AS event, evtowner::regrole AS owner, evtfoid::regproc AS function, evtenabled AS enabled, count(*) OVER ()
		FROM pg_catalog.pg_event_trigger ORDER BY 1 LIMIT $1`}}},
}

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

// Evidence reads what the logins have and may have left on this server: in
// the account's own database, in the one given, and in a few more where they own
// something. Into others' databases the observer looks. It always returns every
// table; what could not be read, before ctx ended or at all, says so. It needs
// pg_read_all_stats, and works on standbys.
func (a *Admin) Evidence(ctx context.Context, logins []string, database string) (all []Table) {
	w := &witness{a: a, logins: logins}
	databases := []string{a.target.Database}
	w.in(ctx, a.target.Database, func(conn *pgx.Conn) {
		for _, l := range ofServer {
			all = append(all, w.read(ctx, conn, l.name, l.fits(w.version)))
		}
		databases = slices.Concat([]string{database}, w.withBelongings(ctx, conn), databases)
	})
	if w.failed != "" {
		for _, l := range ofServer {
			all = append(all, Table{Name: l.name, Unread: w.failed})
		}
		databases = []string{database}
	}
	seen := map[string]bool{}
	for _, name := range databases {
		if seen[name] || len(seen) == maxDatabases {
			continue
		}
		seen[name] = true
		all = append(all, w.inDatabase(ctx, name)...)
	}
	return append(all, w.counted)
}

// witness reads one server's.
type witness struct {
	a       *Admin
	logins  []string
	version int
	failed  string // why there was no session
	counted Table  // the statements, from whichever database has the extension
}

// in opens a session of its own, since others wait for those of the pool, with
// limits that keep it from waiting for anybody.
func (w *witness) in(ctx context.Context, database string, work func(*pgx.Conn)) {
	conn, err := w.session(ctx, database)
	if err == nil {
		defer conn.Close(context.WithoutCancel(ctx))
		err = conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int FROM (SELECT set_config('statement_timeout', $1, false), set_config('lock_timeout', '100ms', false)) AS s`, statementTime).Scan(&w.version)
	}
	if w.failed = ""; err != nil {
		w.failed = clean(err).Error()
		return
	}
	work(conn)
}

// session is the account's in its own database, else the observer's.
func (w *witness) session(ctx context.Context, database string) (*pgx.Conn, error) {
	if database == w.a.target.Database {
		return w.a.login(ctx)
	}
	observer, err := w.a.observe(database)
	if err != nil {
		return nil, err
	}
	defer observer.Close()
	return observer.login(ctx)
}

// login opens a session beside the pool.
func (a *Admin) login(ctx context.Context) (*pgx.Conn, error) {
	login := a.logins.inUse()
	if login.User == "" {
		var err error
		if login, err = a.logins.look(); err != nil {
			return nil, err
		}
	}
	return Login(ctx, a.target.as(login, a.account))
}

func (w *witness) inDatabase(ctx context.Context, database string) (all []Table) {
	w.in(ctx, database, func(conn *pgx.Conn) {
		for _, l := range ofDatabase {
			all = append(all, w.read(ctx, conn, l.name, l.fits(w.version)))
		}
		if w.counted.Columns == nil {
			w.counted = w.statements(ctx, conn)
		}
	})
	if w.failed != "" {
		for _, l := range ofDatabase {
			all = append(all, Table{Name: l.name, Unread: w.failed})
		}
		if w.counted.Name == "" {
			w.counted = Table{Name: statements.name, Unread: w.failed}
		}
	}
	for i := range all {
		all[i].Database = database
	}
	return all
}

func (w *witness) statements(ctx context.Context, conn *pgx.Conn) Table {
	var schema string
	err := conn.QueryRow(ctx, `SELECT coalesce(max(quote_ident(n.nspname)), '') FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'`).Scan(&schema)
	switch {
	case err != nil:
		return Table{Name: statements.name, Unread: clean(err).Error()}
	case schema == "":
		return Table{Name: statements.name, Unread: "pg_stat_statements is in none of the databases that were looked at"}
	}
	return w.read(ctx, conn, statements.name, fmt.Sprintf(statements.fits(w.version), schema))
}

// withBelongings are the databases in which the logins own something.
func (w *witness) withBelongings(ctx context.Context, conn *pgx.Conn) []string {
	rows, err := conn.Query(ctx, `SELECT d.datname::text FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_database d ON d.oid = s.dbid
		WHERE s.deptype = 'o' AND d.datallowconn AND s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.refobjid IN `+oids+` GROUP BY 1 ORDER BY count(*) DESC LIMIT $1`, maxDatabases, w.logins)
	if err != nil {
		return nil
	}
	names, _ := pgx.CollectRows(rows, pgx.RowTo[string]) // "belongings" says what is wrong
	return names
}

// read runs one look.
func (w *witness) read(ctx context.Context, conn *pgx.Conn, name, sql string) Table {
	t := Table{Name: name}
	total := 0
	args := []any{pgx.QueryResultFormats{pgx.TextFormatCode}, maxRows}
	if strings.Contains(sql, "$2") {
		args = append(args, w.logins)
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err == nil {
		for _, f := range rows.FieldDescriptions() {
			t.Columns = append(t.Columns, f.Name)
		}
		t.Columns = t.Columns[:max(0, len(t.Columns)-1)]
		for rows.Next() {
			raw := rows.RawValues()
			row := make([]string, len(t.Columns))
			for i, column := range t.Columns {
				row[i] = cell(column, string(raw[i]))
			}
			t.Rows = append(t.Rows, row)
			_, _ = fmt.Sscan(string(raw[len(raw)-1]), &total)
		}
		err = rows.Err()
	}
	if err != nil {
		return Table{Name: name, Unread: clean(err).Error()}
	}
	t.Left = max(0, total-len(t.Rows))
	return t
}

func cell(column, text string) string {
	if column == "query" {
		return Screen(text)
	}
	return short(strings.ToValidUTF8(text, "\uFFFD"))
}

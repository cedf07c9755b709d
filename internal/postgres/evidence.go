package postgres

import (
	"context"
	"errors"
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

// Evidence reads what the logins have and may have left on this server: in
// the account's own database, in the one given, and in a few more where they own
// something. Into others' databases the observer looks. It always returns every
// table; what could not be read, before ctx ended or at all, says so. It needs
// pg_read_all_stats, and works on standbys.
func (a *Admin) Evidence(ctx context.Context, logins []string, database string) []Table {
	w := a.Witness()
	defer w.Close()
	return w.Evidence(ctx, logins, database)
}

// Witness reads evidence of several credentials, one after the other, by sessions that it
// keeps until Close: what a new one costs is many times what it reads. There are two at a
// time at most, in the account's own database and in the last other one: the applications
// need the rest.
func (a *Admin) Witness() *Witness { return &Witness{a: a, sessions: map[string]*pgx.Conn{}} }

// Close ends the sessions.
func (w *Witness) Close() {
	for _, conn := range w.sessions {
		_ = conn.Close(context.Background()) // it is of no more use either way
	}
	clear(w.sessions)
}

// Evidence is Admin.Evidence.
func (w *Witness) Evidence(ctx context.Context, logins []string, database string) (all []Table) {
	a := w.a
	w.logins, w.counted = logins, Table{}
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

// Witness reads one server's.
type Witness struct {
	a        *Admin
	sessions map[string]*pgx.Conn // by database
	logins   []string
	version  int
	failed   string // why there was no session
	counted  Table  // the statements, from whichever database has the extension
}

// in works on a session of its own, since others wait for those of the pool, with
// limits that keep it from waiting for anybody.
func (w *Witness) in(ctx context.Context, database string, work func(*pgx.Conn)) {
	conn, err := w.session(ctx, database)
	if w.failed = ""; err != nil {
		w.failed = clean(err).Error()
		return
	}
	work(conn)
}

// session is the one there is, or a new one.
func (w *Witness) session(ctx context.Context, database string) (*pgx.Conn, error) {
	if conn := w.sessions[database]; conn != nil {
		if conn.Ping(ctx) == nil { // it may have ended since the last credential
			return conn, nil
		}
		delete(w.sessions, database)
		_ = conn.Close(context.WithoutCancel(ctx))
	}
	for other, conn := range w.sessions {
		if other != w.a.target.Database {
			delete(w.sessions, other)
			_ = conn.Close(context.WithoutCancel(ctx)) // it is of no more use either way
		}
	}
	conn, err := w.open(ctx, database)
	if err != nil {
		return nil, err
	}
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int FROM (SELECT set_config('statement_timeout', $1, false),
		set_config('lock_timeout', '100ms', false), set_config('plan_cache_mode', 'force_generic_plan', false)) AS s`, statementTime).Scan(&w.version)
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx)) // what it was opened for has failed
		return nil, err
	}
	w.sessions[database] = conn
	return conn, nil
}

// open logs in as the account in its own database, else as the observer.
func (w *Witness) open(ctx context.Context, database string) (*pgx.Conn, error) {
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

func (w *Witness) inDatabase(ctx context.Context, database string) (all []Table) {
	w.in(ctx, database, func(conn *pgx.Conn) {
		for _, l := range ofDatabase {
			all = append(all, w.read(ctx, conn, l.name, l.fits(w.version)))
		}
		all = append(all, w.cron(ctx, conn))
		if w.counted.Columns == nil {
			w.counted = w.statements(ctx, conn)
		}
	})
	if w.failed != "" {
		for _, l := range ofDatabase {
			all = append(all, Table{Name: l.name, Unread: w.failed})
		}
		all = append(all, Table{Name: cron.name, Unread: w.failed})
		if w.counted.Name == "" {
			w.counted = Table{Name: statements.name, Unread: w.failed}
		}
	}
	for i := range all {
		all[i].Database = database
	}
	return all
}

func (w *Witness) statements(ctx context.Context, conn *pgx.Conn) Table {
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

// cron reads the jobs of pg_cron, if this database has it.
func (w *Witness) cron(ctx context.Context, conn *pgx.Conn) Table {
	var hidden bool
	switch err := conn.QueryRow(ctx, hasCron).Scan(&hidden); {
	case errors.Is(err, pgx.ErrNoRows):
		return Table{Name: cron.name}
	case err != nil:
		return Table{Name: cron.name, Unread: clean(err).Error()}
	case hidden:
		return Table{Name: cron.name, Unread: "pg_cron shows each role its own jobs alone. As a superuser: SELECT * FROM cron.job"}
	}
	return w.read(ctx, conn, cron.name, cron.fits(w.version))
}

// withBelongings are the databases in which the logins own something.
func (w *Witness) withBelongings(ctx context.Context, conn *pgx.Conn) []string {
	rows, err := conn.Query(ctx, `SELECT d.datname::text FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_database d ON d.oid = s.dbid
		WHERE s.deptype = 'o' AND d.datallowconn AND s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.refobjid IN `+oids+` GROUP BY 1 ORDER BY count(*) DESC LIMIT $1`, maxDatabases, w.logins)
	if err != nil {
		return nil
	}
	names, _ := pgx.CollectRows(rows, pgx.RowTo[string]) // "belongings" says what is wrong
	return names
}

// read runs one look.
func (w *Witness) read(ctx context.Context, conn *pgx.Conn, name, sql string) Table {
	t := Table{Name: name}
	if sql == "" {
		t.Unread = unrecorded
		return t
	}
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
	text = strings.ToValidUTF8(text, "\uFFFD")
	switch column {
	case "query":
		return Screen(text)
	case toRemove:
		return runnable(text)
	}
	return short(text)
}

// unrecorded is why there is nothing to read of the roles that a login created.
const unrecorded = "PostgreSQL before 16 does not record who created a role. If the login had CREATEROLE, look for roles that nobody knows"

// Removals are the statements of the rows, and the table without them.
func (t Table) Removals() (without Table, statements []string) {
	last := len(t.Columns) - 1
	if last < 0 || t.Columns[last] != toRemove {
		return t, nil
	}
	without = t
	without.Columns, without.Rows = t.Columns[:last], nil
	for _, row := range t.Rows {
		without.Rows = append(without.Rows, row[:last])
		if row[last] != "" {
			statements = append(statements, row[last])
		}
	}
	return without, statements
}

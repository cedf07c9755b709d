package postgres

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pawl.dev/internal/secret"
)

// Setting is a parameter that ALTER ROLE … SET has given to a login.
type Setting struct {
	Database string // in which it applies; empty: in all
	Name     string
	Value    secret.String // the value as stored: it may be a secret of the application
}

// maxValue bounds the value of one setting, in characters. A longer one is not
// recorded, and is never equal to what was.
const maxValue = 4096

// Settings reads what ALTER ROLE … SET has given to each of the logins.
func (a *Admin) Settings(ctx context.Context, logins ...string) (settings map[string][]Setting, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		settings, err = a.settings(ctx, c, logins)
		return err
	})
	return settings, err
}

// Settings reads them, as Admin.Settings does.
func (tx *Tx) Settings(ctx context.Context, logins ...string) (map[string][]Setting, error) {
	return tx.admin.settings(ctx, tx.conn, logins)
}

func (a *Admin) settings(ctx context.Context, q querier, logins []string) (map[string][]Setting, error) {
	rows, err := q.Query(ctx, `SELECT r.rolname::text, coalesce(d.datname::text, ''), split_part(c, '=', 1), left(substr(c, strpos(c, '=') + 1), $2)
		FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
		LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) AS c
		WHERE r.rolname = ANY ($1) AND c IS NOT NULL ORDER BY 1, 2, 3`, logins, maxValue+1)
	settings := map[string][]Setting{}
	if err == nil {
		var login, value string
		var s Setting
		_, err = pgx.ForEachRow(rows, []any{&login, &s.Database, &s.Name, &value}, func() error {
			s.Value = secret.New(value)
			settings[login] = append(settings[login], s)
			return nil
		})
	}
	return settings, a.named(err)
}

// OfCredential returns those of a login's settings that are its credential's,
// whichever of its logins has them: all but the role as which the sibling acts.
func OfCredential(owner string, settings []Setting) []Setting {
	return slices.DeleteFunc(slices.Clone(settings), func(s Setting) bool {
		return s.Name == "role" && s.Database == "" && s.Value.Reveal() == owner
	})
}

// OfLogin returns the settings that the login must have so that an application
// finds those of the credential: a sibling needs to act as the owner as well.
func OfLogin(login, owner string, settings []Setting) []Setting {
	acts := slices.ContainsFunc(settings, func(s Setting) bool { return s.Name == "role" && s.Database == "" })
	if login == owner || acts {
		return settings
	}
	return append(slices.Clone(settings), Setting{Name: "role", Value: secret.New(owner)})
}

// Recordable returns an error if a setting is too long to be recorded.
func Recordable(login string, settings []Setting) error {
	for _, s := range settings {
		if len([]rune(s.Value.Reveal())) > maxValue {
			return fmt.Errorf("setting %s of role %q%s has more than %d characters and cannot be recorded. Fix: %s", s.Name, login, s.where(), maxValue, s.reset(login))
		}
	}
	return nil
}

func (s Setting) where() string {
	if s.Database == "" {
		return ""
	}
	return fmt.Sprintf(" in database %q", s.Database)
}

func (s Setting) alter(login string) string {
	if s.Database == "" {
		return "ALTER ROLE " + identifier(login)
	}
	return "ALTER ROLE " + identifier(login) + " IN DATABASE " + identifier(s.Database)
}

func (s Setting) reset(login string) string { return s.alter(login) + " RESET " + identifier(s.Name) }

// set gives the setting to a login.
func (s Setting) set(login string) string {
	value := literal(s.Value.Reveal())
	if listQuoted[strings.ToLower(s.Name)] {
		var members []string
		for _, m := range splitList(s.Value.Reveal()) {
			members = append(members, strings.TrimSpace(literal(m)))
		}
		value = " " + strings.Join(members, ", ")
	}
	return fmt.Sprintf("%s SET %s TO%s", s.alter(login), identifier(s.Name), value)
}

// switchOrNumber matches values that hide no secret.
var switchOrNumber = regexp.MustCompile(`^(on|off|true|false|yes|no|-?[0-9.]{1,20} ?[a-zA-Z]{0,3})$`)

// told is the value as a message may show it: of a parameter of PostgreSQL's own
// that is a switch or a number, of a search_path and of a role. Any other text may be
// a secret of the application.
func (s Setting) told() (value string, ok bool) {
	value = s.Value.Reveal()
	ok = s.Name == "search_path" || s.Name == "role" || !strings.Contains(s.Name, ".") && switchOrNumber.MatchString(value)
	return strconv.Quote(short(value)), ok
}

// Difference is a setting of a login that is not what Pawl recorded.
type Difference struct {
	Login    string
	Recorded *Setting // nil: Pawl recorded none of this name
	Found    *Setting // nil: it is gone
}

// Differences compares what the login has with what it must have.
func Differences(login string, recorded, found []Setting) (all []Difference) {
	same := func(a Setting) func(Setting) bool {
		return func(b Setting) bool { return a.Database == b.Database && a.Name == b.Name }
	}
	for _, f := range found {
		i := slices.IndexFunc(recorded, same(f))
		switch {
		case i < 0:
			all = append(all, Difference{Login: login, Found: &f})
		case !recorded[i].Value.Equal(f.Value):
			all = append(all, Difference{Login: login, Recorded: &recorded[i], Found: &f})
		}
	}
	for i, r := range recorded {
		if !slices.ContainsFunc(found, same(r)) {
			all = append(all, Difference{Login: login, Recorded: &recorded[i]})
		}
	}
	return all
}

// setting is one of the two: their names are the same.
func (d Difference) setting() *Setting {
	if d.Found != nil {
		return d.Found
	}
	return d.Recorded
}

// Name is the parameter's.
func (d Difference) Name() string { return d.setting().Name }

// Database is where it differs; empty: in all.
func (d Difference) Database() string { return d.setting().Database }

// IsOfPostgres reports whether it is a parameter of PostgreSQL's own; of any other name
// only extensions and applications know.
func (d Difference) IsOfPostgres() bool { return !strings.Contains(d.setting().Name, ".") }

// Where says so for a message.
func (d Difference) Where() string { return d.setting().where() }

// Row names what holds the setting with all others of the login there.
func (d Difference) Row() string { return d.Login + "/" + d.Database() }

// undo is the statement that undoes it, by the procedure of a narrow admin or without.
func (d Difference) undo(narrow bool) string {
	switch {
	case narrow:
		return d.call()
	case d.Recorded == nil:
		return d.Found.reset(d.Login)
	}
	return d.Recorded.set(d.Login)
}

// String says what differs; of a value that may be a secret, only that it does.
func (d Difference) String() string {
	is, recorded := "is gone", "none"
	if d.Recorded != nil {
		recorded = "another value"
		if value, ok := d.Recorded.told(); ok {
			recorded = value
		}
	}
	s := d.setting()
	if d.Found != nil {
		is = "has a value that is not shown here"
		if value, ok := d.Found.told(); ok {
			is = "is " + value
		}
	}
	return fmt.Sprintf("setting %s of role %q%s %s, and Pawl recorded %s", s.Name, d.Login, s.where(), is, recorded)
}

// Fix is the statement that undoes it; where the value must not be told, it says so
// in its place.
func (d Difference) Fix() string {
	if d.Recorded == nil {
		return d.Found.reset(d.Login)
	}
	if _, ok := d.Recorded.told(); !ok {
		return fmt.Sprintf("%s SET %s TO the value from before", d.Recorded.alter(d.Login), identifier(d.Recorded.Name))
	}
	return d.Recorded.set(d.Login)
}

// atOnce is how many differences are undone in one round trip, at most. After one that
// took long there are fewer in the next: the more settings a login has, the longer a
// server takes for each.
const (
	atOnce   = 100
	longTrip = 200 * time.Millisecond
)

// settingLock is how long one setting may wait for whoever holds it.
const settingLock = "SELECT set_config('lock_timeout', '250ms', true)"

// RestoreSettings undoes the differences in their order, until the time is up, and returns
// of how many it knows what became of them. What the server refuses is in refused, by its
// place in all, and the transaction goes on; so it does if somebody holds a lock on
// settings of the login, which is ErrLocked. Idempotent.
func (tx *Tx) RestoreSettings(ctx context.Context, all []Difference, until time.Time) (known int, refused map[int]error, err error) {
	refused = map[int]error{}
	held := map[string]error{} // all settings of a login in one database are one row
	first, many := []string{settingLock, "SAVEPOINT setting"}, atOnce/10
	for known < len(all) && time.Now().Before(until) {
		if by := held[all[known].Row()]; by != nil {
			refused[known] = by
			known++
			continue
		}
		next := all[known:min(known+many, len(all))]
		if i := slices.IndexFunc(next, func(d Difference) bool { return held[d.Row()] != nil }); i > 0 {
			next = next[:i]
		}
		began := time.Now()
		done, failed := tx.restore(ctx, first, next)
		known += done
		if first, many = nil, min(2*many, atOnce); time.Since(began) > longTrip {
			many = max(1, many/4)
		}
		if failed == nil {
			continue
		}
		if !errors.As(failed, new(*Refused)) || done == len(next) {
			return known, refused, failed // the savepoint ends with the transaction
		}
		if errors.Is(failed, ErrLocked) {
			held[all[known].Row()] = failed
		}
		refused[known] = failed
		known++
		first, many = []string{"ROLLBACK TO SAVEPOINT setting"}, max(1, many/4) // what follows it in a batch is sent for nothing
	}
	if len(first) == 1 {
		err = tx.exec(ctx, first[0])
	}
	return known, refused, err
}

// restore undoes the differences in one round trip, each under a savepoint, until the
// first that fails.
func (tx *Tx) restore(ctx context.Context, first []string, all []Difference) (done int, err error) {
	statements := slices.Clone(first)
	for _, d := range all {
		statements = append(statements, d.undo(tx.narrow), "RELEASE SAVEPOINT setting", "SAVEPOINT setting")
	}
	done, err = tx.pipe(ctx, statements)
	return max(0, done-len(first)) / 3, err
}

// ResetSettings takes all settings from a login that it has in the database, or in all if
// that is empty, and that the account may take: the recorded ones, too. It is quick
// however many there are. It reports whether it was done: a narrow admin has no
// procedure for it, and somebody may hold a lock.
func (tx *Tx) ResetSettings(ctx context.Context, login, database string) (done bool, err error) {
	if tx.narrow {
		return false, nil
	}
	reset := Setting{Database: database}.alter(login) + " RESET ALL"
	_, err = tx.pipe(ctx, []string{settingLock, "SAVEPOINT settings", reset, "RELEASE SAVEPOINT settings"})
	if errors.As(err, new(*Refused)) {
		return false, tx.exec(ctx, "ROLLBACK TO SAVEPOINT settings")
	}
	return err == nil, err
}

// pipe runs statements in one round trip, until the first that fails, and returns how many
// were done. Like exec, it has nothing prepared by name.
func (tx *Tx) pipe(ctx context.Context, statements []string) (done int, err error) {
	batch := &pgconn.Batch{}
	for _, sql := range statements {
		batch.ExecParams(sql, nil, nil, nil, nil)
	}
	results := tx.conn.PgConn().ExecBatch(ctx, batch)
	for results.NextResult() {
		if _, err := results.ResultReader().Close(); err == nil {
			done++
		}
	}
	return done, locked(tx.admin.named(results.Close()))
}

// listQuoted are the settings whose stored value is a list of quoted
// identifiers (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c; the same as in its
// dumputils.c).
var listQuoted = map[string]bool{
	"local_preload_libraries": true, "search_path": true, "session_preload_libraries": true,
	"shared_preload_libraries": true, "temp_tablespaces": true, "unix_socket_directories": true,
}

// splitList splits such a list: a, "b, c", "d""e".
func splitList(list string) []string {
	var members []string
	for rest := strings.TrimSpace(list); rest != ""; {
		var member string
		if strings.HasPrefix(rest, `"`) {
			end := 1
			for end < len(rest) {
				if rest[end] != '"' {
					end++
				} else if strings.HasPrefix(rest[end:], `""`) {
					end += 2
				} else {
					break
				}
			}
			member, rest = strings.ReplaceAll(rest[1:end], `""`, `"`), rest[min(end+1, len(rest)):]
			_, rest, _ = strings.Cut(rest, ",")
		} else {
			member, rest, _ = strings.Cut(rest, ",")
			member = strings.TrimSpace(member)
		}
		members = append(members, member)
		rest = strings.TrimSpace(rest)
	}
	return members
}

package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// isNarrow asks whether the account alters roles by the procedures of AdminSQL. One
// that an earlier version set up has CREATEROLE instead, and a superuser needs none.
const isNarrow = `SELECT NOT rolsuper AND coalesce(has_function_privilege(to_regprocedure('pawl.alter_login(name,boolean,text)'), 'execute'), false)
		AND (SELECT p.prosecdef AND o.rolsuper FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_roles o ON o.oid = p.proowner WHERE p.oid = to_regprocedure('pawl.alter_login(name,boolean,text)'))
	FROM pg_catalog.pg_roles WHERE rolname = current_user`

// MayAlter says why the account may not give the role a password and a login, and
// the fix; empty if it may. Of a role that does not exist yet it says whether it may
// be made.
func (a *Admin) MayAlter(ctx context.Context, role string) (refusal string, err error) {
	err = a.Do(ctx, func(c *pgx.Conn) error {
		var narrow, may bool
		if err := c.QueryRow(ctx, isNarrow).Scan(&narrow); err != nil {
			return a.named(err)
		}
		if narrow {
			return a.named(c.QueryRow(ctx, "SELECT coalesce(pawl.refusal($1::name, true), '')", role).Scan(&refusal))
		}
		err := c.QueryRow(ctx, `SELECT CASE
				WHEN $2 THEN coalesce(has_function_privilege(to_regprocedure('pawl.alter_own(name,boolean,text)'), 'execute'), false)
				WHEN rolsuper OR current_setting('server_version_num')::int < 160000 THEN rolsuper OR rolcreaterole
				ELSE rolcreaterole AND coalesce(pg_has_role((SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1), 'MEMBER WITH ADMIN OPTION'), true) END
			FROM pg_catalog.pg_roles WHERE rolname = current_user`, role, a.isOwn(role)).Scan(&may)
		if !may {
			refusal = "is not one that Pawl was given: run what `pawl init --admin-sql` prints"
		}
		return a.named(err)
	})
	return refusal, err
}

// isOwn reports whether name is one of the two logins of an account that Pawl
// rotates itself.
func (a *Admin) isOwn(name string) bool {
	return a.account.Credential != "" && slices.Contains(a.account.Logins(), name)
}

// calls reports whether the login is altered by a procedure.
func (tx *Tx) calls(name string) bool { return tx.narrow || tx.admin.isOwn(name) }

// alterationCall alters a login by a procedure. Earlier versions had one for the logins
// of the account itself alone.
func (tx *Tx) alterationCall(name string, may bool, password string) string {
	procedure := "pawl.alter_login"
	if !tx.narrow {
		procedure = "pawl.alter_own"
	}
	return fmt.Sprintf("CALL %s(%s::name, %t, %s::text)", procedure, literal(name), may, password)
}

// callCreateSibling passes the settings on, of which the procedure takes those alone
// that owner has, or could set for itself.
func (tx *Tx) callCreateSibling(ctx context.Context, owner, sibling string, settings []Setting) error {
	type given struct {
		Database string `json:"database"`
		Name     string `json:"name"`
		Value    string `json:"value"` // as the catalogue holds it
	}
	all := []given{}
	for _, s := range settings {
		all = append(all, given{s.Database, s.Name, s.Value.Reveal()})
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return tx.exec(ctx, fmt.Sprintf("CALL pawl.create_sibling(%s::name, %s::name, %s::jsonb)", literal(sibling), literal(owner), literal(string(text))))
}

// lend makes a login as a member of owner that can be used until then; by the
// procedure, for a minute.
func (tx *Tx) lend(ctx context.Context, login, owner, verifier, until string) error {
	if tx.narrow {
		return tx.exec(ctx, fmt.Sprintf("CALL pawl.lend_login(%s::name, %s::name, %s::text)", literal(login), literal(owner), literal(verifier)))
	}
	return tx.exec(ctx, fmt.Sprintf("CREATE ROLE %s LOGIN CONNECTION LIMIT 1 VALID UNTIL %s IN ROLE %s PASSWORD %s",
		identifier(login), literal(until), identifier(owner), literal(verifier)))
}

// takeBack drops a login that was lent; one that is gone is no error.
func (tx *Tx) takeBack(ctx context.Context, login string) error {
	if tx.narrow {
		return tx.exec(ctx, "CALL pawl.take_back("+literal(login)+"::name)")
	}
	return tx.exec(ctx, "DROP ROLE IF EXISTS "+identifier(login))
}

// call undoes the difference by the procedure, which changes no setting but what the
// login could change itself.
func (d Difference) call() string {
	value := "NULL"
	if d.Recorded != nil {
		value = literal(d.Recorded.Value.Reveal())
	}
	return fmt.Sprintf("CALL pawl.restore_setting(%s::name, %s::text, %s::text, %s::text)", literal(d.Login), literal(d.Database()), literal(d.setting().Name), value)
}

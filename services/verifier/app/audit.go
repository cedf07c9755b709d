package app

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/service"
	"pawl.dev/services/verifier/internal/probe"
)

// settings is what the server itself records of logins and of statements, and
// how it keeps and takes passwords. From PostgreSQL 18 on log_connections is a
// list.
const settings = `SELECT current_setting('log_connections') NOT IN ('off', ''), current_setting('log_disconnections')::bool, current_setting('pgaudit.log', true) IS NOT NULL,
	current_setting('log_connections'), coalesce(current_setting('pgaudit.log', true), 'not loaded'), current_setting('password_encryption'), current_setting('ssl')`

// checkAudit notes what the server does not record. Pawl's own trail has the
// rotations, not who logs in.
func checkAudit(ctx context.Context, conn *pgx.Conn, r *report) {
	var begins, ends, audits bool
	var connections, pgaudit, encryption, ssl string
	if err := conn.QueryRow(ctx, settings).Scan(&begins, &ends, &audits, &connections, &pgaudit, &encryption, &ssl); err != nil {
		r.refuse("%v", probe.Explain("read the audit settings", err))
		return
	}
	onOff := map[bool]string{true: "on", false: "off"}
	r.about(service.TopicSettings, "log_connections %s, log_disconnections %s, pgaudit.log %s, password_encryption %s, ssl %s",
		orEmpty(connections), onOff[ends], orEmpty(pgaudit), encryption, ssl)
	var off []string
	for setting, on := range map[string]bool{"log_connections": begins, "log_disconnections": ends, "pgaudit": audits} {
		if !on {
			off = append(off, setting)
		}
	}
	slices.Sort(off)
	if len(off) == 0 {
		r.find("the server records logins, their ends, and statements (pgaudit)")
		return
	}
	r.find("the server records less than an audit may ask for: %s off", strings.Join(off, ", "))
}

func orEmpty(setting string) string {
	if setting == "" {
		return "empty"
	}
	return setting
}

// members lists who may use each of the logins without its password: its
// members, direct or through other roles, and who may do so to any role.
const members = `WITH RECURSIVE reach AS (
		SELECT m.roleid AS login, m.member, m.admin_option FROM pg_auth_members m JOIN pg_roles l ON l.oid = m.roleid WHERE l.rolname = ANY ($1)
		UNION
		SELECT r.login, m.member, m.admin_option FROM reach r JOIN pg_auth_members m ON m.roleid = r.member)
	SELECT l.rolname::text,
		coalesce((SELECT array_agg(DISTINCT m.rolname || CASE WHEN r.admin_option THEN ' (admin)' ELSE '' END ORDER BY m.rolname || CASE WHEN r.admin_option THEN ' (admin)' ELSE '' END)
			FROM reach r JOIN pg_roles m ON m.oid = r.member WHERE r.login = l.oid), '{}'),
		(SELECT coalesce(array_agg(rolname::text ORDER BY rolname), '{}') FROM pg_roles WHERE rolsuper AND rolcanlogin),
		(SELECT coalesce(array_agg(rolname::text ORDER BY rolname), '{}') FROM pg_roles WHERE rolcreaterole AND NOT rolsuper AND rolcanlogin)
	FROM pg_roles l WHERE l.rolname = ANY ($1) ORDER BY l.rolname`

// checkMembers notes who else may use the credential's logins. It refuses
// nothing: that is for a person to judge.
func checkMembers(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r *report) {
	rows, err := conn.Query(ctx, members, c.Logins())
	if err == nil {
		var login string
		var in, super, create []string
		_, err = pgx.ForEachRow(rows, []any{&login, &in, &super, &create}, func() error {
			r.about(service.TopicMembers, "%q: members %s; superusers %s; may create roles %s", login, named(in), named(super), named(create))
			return nil
		})
	}
	if err != nil {
		r.refuse("%v", probe.Explain("read who may use its roles", err))
	}
}

// named lists names, quoted: they may be anything.
func named(all []string) string {
	if len(all) == 0 {
		return "none"
	}
	var quoted []string
	for _, name := range all {
		name, admin := strings.CutSuffix(name, " (admin)")
		text := fmt.Sprintf("%q", name)
		if admin {
			text += " (admin)"
		}
		quoted = append(quoted, text)
	}
	return strings.Join(quoted, ", ")
}

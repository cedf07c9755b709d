package probe

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"pawl.dev/services/verifier/internal/pgtest"
)

// repair is the SQL that a fault ends with.
var repair = regexp.MustCompile(`(?s) \(((?:REASSIGN|GRANT|REVOKE|ALTER|DROP) .*)\)$`)

// Each of these makes the login that it was done for more than the other. What
// is said of it, done by the letter, leaves nothing to say.
func TestWhatASiblingHasOfItsOwnIsFoundAndRepaired(t *testing.T) {
	pgtest.Exec(t, "CREATE EXTENSION IF NOT EXISTS postgres_fdw")
	for name, c := range map[string]struct {
		spoil []string // OWNER, SIBLING and S, a schema of its own, stand for names
		says  []string
	}{
		"objects": {
			[]string{"CREATE TABLE S.orders (id serial PRIMARY KEY)", "ALTER TABLE S.orders OWNER TO SIBLING", "CREATE VIEW S.v AS SELECT 1", "ALTER VIEW S.v OWNER TO SIBLING",
				"CREATE FUNCTION S.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "ALTER FUNCTION S.f() OWNER TO SIBLING", "ALTER SCHEMA S OWNER TO SIBLING"},
			[]string{"function S.f(), schema S, sequence S.orders_id_seq, and 2 more (REASSIGN OWNED BY SIBLING TO OWNER)"},
		},
		"a database": {
			[]string{"CREATE DATABASE S OWNER SIBLING"},
			[]string{"it owns database S (REASSIGN OWNED BY SIBLING TO OWNER)"},
		},
		"privileges": {
			[]string{"CREATE TABLE S.orders (id serial, \"a b\" int)", "GRANT USAGE ON SCHEMA S TO SIBLING", "GRANT SELECT, INSERT ON S.orders TO SIBLING"},
			[]string{"GRANT USAGE ON SCHEMA S TO OWNER; REVOKE USAGE ON SCHEMA S FROM SIBLING", "GRANT INSERT, SELECT ON TABLE S.orders TO OWNER; REVOKE INSERT, SELECT ON TABLE S.orders FROM SIBLING"},
		},
		"privileges to give on, on columns and sequences": {
			[]string{"CREATE TABLE S.orders (id serial, \"a b\" int)", "GRANT UPDATE (id, \"a b\") ON S.orders TO SIBLING WITH GRANT OPTION", "GRANT USAGE ON SEQUENCE S.orders_id_seq TO SIBLING"},
			[]string{`UPDATE ("a b"), UPDATE (id) ON TABLE S.orders TO OWNER WITH GRANT OPTION`, "ON SEQUENCE S.orders_id_seq TO OWNER;"},
		},
		"privileges on what is not a table": {
			[]string{"CREATE FUNCTION S.f(int) RETURNS int LANGUAGE sql AS 'SELECT 1'", "GRANT EXECUTE ON FUNCTION S.f(int) TO SIBLING", "CREATE DOMAIN S.d AS int", "GRANT USAGE ON DOMAIN S.d TO SIBLING",
				"GRANT CONNECT ON DATABASE postgres TO SIBLING"},
			[]string{"ROUTINE S.f(integer)", "TYPE S.d", "GRANT CONNECT ON DATABASE postgres TO OWNER"},
		},
		"default privileges": {
			[]string{"ALTER DEFAULT PRIVILEGES FOR ROLE SIBLING IN SCHEMA S GRANT SELECT, INSERT ON TABLES TO pg_monitor", "ALTER DEFAULT PRIVILEGES FOR ROLE SIBLING REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"},
			[]string{"ALTER DEFAULT PRIVILEGES FOR ROLE OWNER IN SCHEMA `S` GRANT INSERT, SELECT ON TABLES TO \"pg_monitor\"; ALTER DEFAULT PRIVILEGES FOR ROLE SIBLING IN SCHEMA `S` REVOKE INSERT, SELECT ON TABLES FROM",
				"FOR ROLE OWNER REVOKE EXECUTE ON ROUTINES FROM PUBLIC; ALTER DEFAULT PRIVILEGES FOR ROLE SIBLING GRANT EXECUTE"},
		},
		"default privileges of sequences, and its own": {
			[]string{"ALTER DEFAULT PRIVILEGES FOR ROLE SIBLING GRANT USAGE ON SEQUENCES TO pg_monitor WITH GRANT OPTION", "ALTER DEFAULT PRIVILEGES FOR ROLE SIBLING REVOKE DELETE ON TABLES FROM SIBLING"},
			[]string{"FOR ROLE OWNER GRANT USAGE ON SEQUENCES TO \"pg_monitor\" WITH GRANT OPTION", "FOR ROLE OWNER REVOKE DELETE ON TABLES FROM OWNER"},
		},
		"default privileges for it": {
			[]string{"ALTER DEFAULT PRIVILEGES IN SCHEMA S GRANT USAGE ON TYPES TO SIBLING"},
			[]string{"IN SCHEMA `S` GRANT USAGE ON TYPES TO OWNER; ALTER DEFAULT PRIVILEGES FOR ROLE \"postgres\" IN SCHEMA `S` REVOKE USAGE ON TYPES FROM SIBLING"},
		},
		"user mapping": {
			[]string{"CREATE SERVER S FOREIGN DATA WRAPPER postgres_fdw", "CREATE USER MAPPING FOR SIBLING SERVER S"},
			[]string{"DROP USER MAPPING FOR SIBLING SERVER"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := pair(t, "", "")
			schema := strings.ReplaceAll(strings.ToLower(l.Role), " ", "_")
			spell := strings.NewReplacer("OWNER TO SIBLING", "OWNER TO "+pgtest.Quote(l.User), "OWNER SIBLING", "OWNER "+pgtest.Quote(l.User),
				"SIBLING", pgtest.Quote(l.User), "OWNER", pgtest.Quote(l.Role), " S.", " "+schema+".", " S ", " "+schema+" ", " S,", " "+schema+",", "`S`", pgtest.Quote(schema)).Replace
			pgtest.Exec(t, "CREATE SCHEMA "+schema)
			for _, sql := range c.spoil {
				pgtest.Exec(t, strings.TrimSpace(spell(sql+" ")))
			}
			faults, err := Belongings(t.Context(), l.Conn, l.Role, l.User)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(faults, "; ")
			for _, want := range c.says {
				if want = strings.TrimSpace(spell(want + " ")); !strings.Contains(all, want) {
					t.Errorf("got %q; want it to say %q", all, want)
				}
			}
			if err := (Privileges{}).Run(t.Context(), l); err == nil || !strings.Contains(err.Error(), all) {
				t.Errorf("verify says %v; want what preflight does", err)
			}
			l.User, l.Old = l.Old, l.User // back to the owner
			if err := (Privileges{}).Run(t.Context(), l); err == nil || !strings.Contains(err.Error(), all) {
				t.Errorf("verify says %v of the way back; want the same", err)
			}
			for _, f := range faults {
				sql := repair.FindStringSubmatch(f)
				if sql == nil {
					t.Fatalf("no repair in %q", f)
				}
				for _, one := range strings.Split(sql[1], "; ") {
					pgtest.Exec(t, one)
				}
			}
			if err := (Privileges{}).Run(t.Context(), l); err != nil {
				t.Errorf("after the repair: %v", err)
			}
		})
	}
}

// The names of what lies in other databases cannot be read from here.
func TestThingsInOtherDatabasesAreCounted(t *testing.T) {
	l := pair(t, "", "")
	database := strings.ReplaceAll(strings.ToLower(l.Role), " ", "_")
	pgtest.Exec(t, "CREATE DATABASE "+database)
	conn := pgtest.SuperIn(t, database)
	for _, sql := range []string{"CREATE TABLE a ()", "ALTER TABLE a OWNER TO %s", "CREATE TABLE b ()", "GRANT SELECT ON b TO %s"} {
		if _, err := conn.Exec(t.Context(), strings.ReplaceAll(sql, "%s", pgtest.Quote(l.User))); err != nil {
			t.Fatal(err)
		}
	}
	faults, err := Belongings(t.Context(), l.Conn, l.Role, l.User)
	if want := fmt.Sprintf(`2 in "%s" (in each: REASSIGN OWNED BY %s`, database, pgtest.Quote(l.User)); err != nil || len(faults) != 1 || !strings.Contains(faults[0], want) {
		t.Errorf("got %q, %v; want %q", faults, err, want)
	}
}

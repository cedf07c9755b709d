package postgres

import (
	"strings"
	"testing"
)

func TestScreenKeepsNoConstantAndNoUtilityStatement(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT * FROM orders WHERE id = $1":                               "SELECT * FROM orders WHERE id = $1",
		"select 'canary', \"Order\".a from t":                              `select $?, "Order".a from t`,
		"SELECT E'it\\'s canary'":                                          "SELECT E$?",
		"SELECT 'a\\' canary '":                                            "SELECT $?",
		"SELECT 'it''s canary' FROM t":                                     "SELECT $? FROM t",
		"SELECT $$canary$$, $x$can$$ary canary$x$, $1":                     "SELECT $?, $?, $1",
		"SELECT a$b$ FROM t":                                               "SELECT a$b$ FROM t",
		"SELECT $name":                                                     "SELECT $name",
		"SELECT 1 -- canary\nFROM t":                                       "SELECT 1  \nFROM t",
		"/* canary /* canary */ canary */ SELECT 1":                        "SELECT 1",
		"SELECT 'canary":                                                   "SELECT $?",
		"COPY customers TO PROGRAM 'curl canary'":                          "COPY customers TO PROGRAM $?",
		"ALTER ROLE app PASSWORD 'canary'":                                 "ALTER ROLE [withheld: may hold a password]",
		"  alter  user app with password canary":                           "ALTER USER [withheld: may hold a password]",
		"CREATE USER MAPPING FOR app SERVER s OPTIONS (password 'canary')": "CREATE USER MAPPING FOR [withheld: may hold a password]",
		"ALTER SUBSCRIPTION s CONNECTION 'password=canary'":                "ALTER SUBSCRIPTION [withheld: may hold a password]",
		"canary": "[withheld: may hold a password]",
		"SELECT 1; ALTER ROLE app PASSWORD canary": "several statements, one of them: ALTER ROLE [withheld: may hold a password]",
		"SET my.canary = canary":                   "SET [withheld: may hold a password]",
		"DO $$ BEGIN EXECUTE 'canary'; END $$":     "DO [withheld: may hold a password]",
		"":                                         "",
		"<insufficient privilege>":                 "[withheld: may hold a password]",
		"SELECT \xff'canary'":                      "SELECT \uFFFD$?",
		"SELECT " + strings.Repeat("x", 10_000) + "'canary'":                   "SELECT " + strings.Repeat("x", maxCell-7) + "…",
		"EXPLAIN ALTER ROLE x PASSWORD canary":                                 "EXPLAIN ALTER ROLE [withheld: may hold a password]",
		"CREATE OR REPLACE FUNCTION f() RETURNS text AS $f$ SELECT canary $f$": "CREATE OR REPLACE FUNCTION [withheld: may hold a password]",
	} {
		got := Screen(query)
		if got != want {
			t.Errorf("%q is kept as %q, want %q", query, got, want)
		}
	}
}

// Whatever a constant holds, none of it is kept.
func FuzzScreenKeepsNothingOfAConstant(f *testing.F) {
	const canary = "c4n4ryc4n4ry"
	f.Add("it's ", " here")
	f.Add("\\", "\\'")
	f.Add("$x$ /*", "*/ --")
	f.Fuzz(func(t *testing.T, before, after string) {
		text := before + canary + after
		for _, query := range []string{
			"SELECT '" + strings.ReplaceAll(text, "'", "''") + "', 1",
			"SELECT E'" + strings.NewReplacer("'", "\\'", "\\", "\\\\").Replace(text) + "', 1",
			"SELECT $q9$" + strings.ReplaceAll(text, "$", "") + "$q9$, 1",
			"SELECT /*" + strings.NewReplacer("/", "", "*", "").Replace(text) + "*/ 1",
			"ALTER ROLE x PASSWORD " + text,
		} {
			if strings.Contains(Screen(query), canary) {
				t.Errorf("%q lets the constant through", query)
			}
		}
	})
}

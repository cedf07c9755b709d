package postgres

import (
	"maps"
	"slices"
	"strings"
)

// pins are the settings of every session of Pawl's own accounts. What the owner of
// a database sets there (ALTER DATABASE, ALTER ROLE … IN DATABASE) decides what a
// session's statements mean: a search_path can put functions of the application's
// before PostgreSQL's own, and they would run with Pawl's rights. Startup
// parameters win over all of that (PostgreSQL, "Setting Parameters"). The list
// holds what anybody may set and PostgreSQL 13 to 18 know; laterPins has the rest.
var pins = map[string]string{
	"search_path": "pg_catalog, pg_temp", // pg_temp last: no function or operator is looked up there

	"default_transaction_read_only": "off", "default_transaction_isolation": "read committed", "default_transaction_deferrable": "off",
	"statement_timeout": "0", "lock_timeout": "0", // each call has a deadline of its own
	"idle_in_transaction_session_timeout": "5s", // so that the locks of a paused process go
	"row_security":                        "on",
	"local_preload_libraries":             "",

	"standard_conforming_strings": "on", "escape_string_warning": "off", "backslash_quote": "safe_encoding",
	"array_nulls": "on", "transform_null_equals": "off", "quote_all_identifiers": "off",
	"datestyle": "ISO, MDY", "intervalstyle": "postgres", "timezone": "UTC", "timezone_abbreviations": "Default",
	"bytea_output": "hex", "extra_float_digits": "1", "xmlbinary": "base64", "xmloption": "content",
	"lc_monetary": "C", "lc_numeric": "C", "lc_time": "C", "client_encoding": "UTF8", "client_min_messages": "notice",

	"check_function_bodies": "on", "default_tablespace": "", "temp_tablespaces": "", "default_table_access_method": "heap",
	"jit": "off",
}

// laterPins are those that not every version knows, set as the first statement of
// the session.
var laterPins = map[string]string{
	"transaction_timeout":   "0", // 17
	"idle_session_timeout":  "0", // 14
	"createrole_self_grant": "",  // 16
}

// pinLater sets laterPins. current_setting is asked first: a name that the server
// does not know would become a setting of that name.
var pinLater = func() string {
	var rows []string
	for _, name := range slices.Sorted(maps.Keys(laterPins)) {
		rows = append(rows, "("+literal(name)+","+literal(laterPins[name])+")")
	}
	return "SELECT pg_catalog.set_config(name, value, false) FROM (VALUES " + strings.Join(rows, ", ") +
		") AS later (name, value) WHERE pg_catalog.current_setting(name, true) <> value"
}()

// pinned returns the startup parameters of a session of one of Pawl's accounts:
// acting as itself, or as role where that is another of its logins.
func pinned(role string, readOnly bool) map[string]string {
	params := maps.Clone(pins)
	if params["role"] = "none"; role != "" {
		params["role"] = role
	}
	if readOnly {
		params["default_transaction_read_only"] = "on"
	}
	return params
}

package inventory

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	sink    = "dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}"
	restart = "process: {pid_file: run/api.pid, signal: SIGHUP}"
	account = "{user: pawl_admin, password_file: secrets/admin}"
	role    = "role: app\n"
	second  = "credentials:\n  two: {cluster: main, role: ROLE, strategy: in-place, publish: [SINK]}\n"
)

// secondOne is a second credential, before the first.
func secondOne(role, sink string) string {
	return strings.NewReplacer("ROLE", role, "SINK", sink).Replace(second)
}

func TestEachFaultNamesTheFieldAndTheFix(t *testing.T) {
	long62 := strings.Repeat("r", 62)
	for _, c := range []struct{ name, old, with, want string }{
		// The form of the file.
		{"a key twice", "keys_dir: keys", "data_dir: other", "2: data_dir: stands twice, first on line 1: keep one"},
		{"an unknown key", "keys_dir: keys", "key_dir: keys", `2: key_dir: unknown key "key_dir": the nearest known key is "keys_dir" (known here: nats, data_dir, keys_dir, telemetry, contacts, environments, clusters, credentials, reconcile_every, alerts, watch_logins, schedule, dashboard, docker, backup)`},
		{"an alias", "environment: production", "environment: &e production\n    observer: *e", "8: clusters.main.observer: YAML aliases are not read here: write the value out"},
		{"a merge key", "environment: production", "<<: {environment: production}", "7: clusters.main.\"<<\": YAML merge keys are not read here: write the values out"},
		{"a scalar for a mapping", account, "pawl_admin", "8: clusters.main.admin: must be a mapping, that is, lines of key: value"},
		{"a mapping for a scalar", "role: app", "role: {name: app}", "15: credentials.app.role: must be a single value"},
		{"a scalar for a list", "strategy: alternating", "strategy: alternating\n    nodes: primary", "17: credentials.app.nodes: must be a list, that is, [a, b] or lines that begin with -"},
		{"a home folder", "data_dir: data", "data_dir: ~/data", "1: data_dir: ~ is not expanded: write the whole path"},
		{"a name in upper case", "  app:\n", "  App:\n", `13: credentials.App: the name "App" does not fit: 1 to 64 of a-z, 0-9 and -`},
		{"keys inside the data", "keys_dir: keys", "keys_dir: data/../data/keys", "2: keys_dir: is inside data_dir: whoever copies the data would hold the keys that open it: name a folder elsewhere"},
		{"the default keys inside the data", "data_dir: data\nkeys_dir: keys", "data_dir: .", "1: keys_dir: is inside data_dir: whoever copies the data would hold the keys that open it: name a folder elsewhere"},
		{"two buses", "keys_dir: keys", `nats: {url: "nats://h:4222", listen: "127.0.0.1:4222"}`, "2: nats.listen: stands beside url: keep listen for the embedded server, or url for yours"},
		{"an embedded bus for every network", "keys_dir: keys", `nats: {listen: "0.0.0.0:4222"}`, "2: nats.listen: is reached by other machines, and the embedded server speaks no TLS: listen on 127.0.0.1, or run a nats-server of your own (`pawl nats-config`, docs/nats.md) and name it in url"},
		{"a password in the bus URL", "keys_dir: keys", `nats: {url: "nats://pawl:hunter2@h:4222"}`, "2: nats.url: passwords never stand in this file: take what stands before the @ out of the URL"},
		{"servers by two schemes", "keys_dir: keys", `nats: {url: "tls://a:4222,nats://b:4222"}`, "2: nats.url: names servers by tls:// and by nats://: write all of them by one, tls:// but for tests"},
		{"a server that is none", "keys_dir: keys", `nats: {url: "tls://a:4222, b:4222"}`, "2: nats.url: must be a URL such as nats://127.0.0.1:8080 (nats, tls, ws, wss)"},
		{"two replicas", "keys_dir: keys", `nats: {url: "tls://a:4222", replicas: 2}`, "2: nats.replicas: two servers are less than one: without either, nothing is decided: write 1 or 3"},
		{"four replicas", "keys_dir: keys", `nats: {url: "tls://a:4222", replicas: 4}`, `2: nats.replicas: "4" must be a whole number from 1 to 3`},
		{"replicas of the embedded server", "keys_dir: keys", `nats: {replicas: 3}`, "2: nats.replicas: the embedded server is one: name the servers of your cluster in url"},
		{"an address without a port", "keys_dir: keys", `nats: {listen: localhost}`, `2: nats.listen: must be host:port, such as "127.0.0.1:4222"`},
		{"an address with a wild port", "keys_dir: keys", `telemetry: {metrics: "localhost:123456"}`, `2: telemetry.metrics: the port must be a number from 0 to 65535`},
		{"telemetry to something else", "keys_dir: keys", `telemetry: {otlp: "127.0.0.1:4318"}`, "2: telemetry.otlp: must be a URL such as http://127.0.0.1:8080 (http, https)"},
		// Environments.
		{"a window without a zone", "Sun 02:00-05:00 Europe/Berlin", "Sun 02:00-05:00", `4: environments.production.windows[0]: the window "Sun 02:00-05:00" must look like "Sun 02:00-05:00 Europe/Berlin": weekday, from-to, time zone`},
		{"a window on no weekday", "Sun 02:00", "Son 02:00", `4: environments.production.windows[0]: the window "Son 02:00-05:00 Europe/Berlin" must look like "Sun 02:00-05:00 Europe/Berlin": weekday, from-to, time zone; the weekday is one of Mon, Tue, Wed, Thu, Fri, Sat, Sun`},
		{"a window without an hour", "02:00-05:00", "02:00-24:00", `4: environments.production.windows[0]: the window "Sun 02:00-24:00 Europe/Berlin" must look like "Sun 02:00-05:00 Europe/Berlin": weekday, from-to, time zone; the times are two, from 00:00 to 23:59`},
		{"a window nowhere", "Europe/Berlin", "Europe/Berlim", `4: environments.production.windows[0]: the window "Sun 02:00-05:00 Europe/Berlim" must look like "Sun 02:00-05:00 Europe/Berlin": weekday, from-to, time zone; the zone is one of IANA's names, such as Europe/Berlin or UTC`},
		{"a policy of no time", "rotate_every: 90d", "rotate_every: 0", `4: environments.production.rotate_every: "0" is too short: at least 1m0s`},
		{"a policy without a unit", "rotate_every: 90d", "rotate_every: 90", `4: environments.production.rotate_every: "90" is not a duration: write numbers with units, such as 30s, 5m, 1h30m, 90d or 2w`},
		// Clusters.
		{"an environment that is not there", "environment: production", "environment: prod", `7: clusters.main.environment: there is no environment "prod"; the nearest is "production"`},
		{"no admin", "    admin: " + account + "\n", "", "6: clusters.main.admin: is missing: write {user: …, password_file: …}; `pawl init --admin-sql` prints the rights it needs"},
		{"an admin's password", "password_file: secrets/admin", "password_file: secrets/admin, PassWd: hunter2", "8: clusters.main.admin.PassWd: passwords never stand in this file: use password_file or password_env"},
		{"an admin with two passwords", "password_file: secrets/admin", "password_file: secrets/admin, password_env: PAWL", "8: clusters.main.admin.password_env: stands beside password_file: keep one"},
		{"a password for a variable's name", "password_file: secrets/admin", "password_env: hunter-2", "8: clusters.main.admin.password_env: must be the name of an environment variable, such as PAWL_ADMIN_PASSWORD"},
		{"an sslmode", account, "{user: pawl_admin, password_file: a, sslmode: verify_full}", `8: clusters.main.admin.sslmode: "verify_full" is not known; the nearest is "verify-full" (known here: disable, allow, prefer, require, verify-ca, verify-full)`},
		{"a host with a port", "host: 127.0.0.1", `host: "127.0.0.1:5432"`, "10: clusters.main.nodes.primary.host: must be a TCP host name or address alone: no port, brackets, URL or socket folder"},
		{"a port out of range", `port: 5433`, `port: 0`, `11: clusters.main.nodes.replica.port: "0" must be a whole number from 1 to 65535`},
		{"one server twice", `"::1", port: 5433`, "127.0.0.1", "11: clusters.main.nodes.replica: is the same server as primary: keep one of the two"},
		{"a replica of nothing", "replica_of: primary", "replica_of: primry", `11: clusters.main.nodes.replica.replica_of: there is no node in this cluster "primry"; the nearest is "primary"`},
		{"a replica of itself", "replica_of: primary", "replica_of: replica", `11: clusters.main.nodes.replica.replica_of: leads round in a circle (replica of replica): one of them must be a primary, without replica_of`},
		// Credentials.
		{"a physical replica", "strategy: alternating", "strategy: alternating\n    nodes: [replica]", "17: credentials.app.nodes[0]: replica is a physical replica: it has no password of its own, it follows its primary primary: name primaries alone"},
		{"a node that is not there", "strategy: alternating", "strategy: alternating\n    nodes: [prinary]", `17: credentials.app.nodes[0]: there is no node in cluster main "prinary"; the nearest is "primary"`},
		{"no node", "strategy: alternating", "strategy: alternating\n    nodes: []", "17: credentials.app.nodes: is an empty list: name a primary, or delete the line"},
		{"no strategy", "    strategy: alternating\n", "", "13: credentials.app.strategy: is missing: alternating (two logins in turn, no failed login) or in-place (only the password changes)"},
		{"a strategy", "strategy: alternating", "strategy: inplace", `16: credentials.app.strategy: "inplace" is not known; the nearest is "in-place" (known here: alternating, in-place)`},
		{"no role", "    " + role, "", "13: credentials.app.role: is missing: the PostgreSQL role that applications log in as"},
		{"a role that leaves no room for its sibling", role, "role: " + long62 + "\n", "15: credentials.app.role: has 62 bytes: alternating adds _b for the second login, and PostgreSQL's names have at most 63: use in-place, or a name of 61"},
		{"a role that PostgreSQL cuts", role, "role: rr" + long62 + "\n", "15: credentials.app.role: has 64 bytes: PostgreSQL's names have at most 63"},
		{"a reserved role", role, "role: pg_monitor\n", "15: credentials.app.role: is a name that PostgreSQL keeps for itself: name a login role"},
		{"a role twice", "credentials:\n", secondOne("app", "file: {path: two, format: json}"), `16: credentials.app.role: the login "app" on 127.0.0.1:5432 belongs to the credential two already: a login is one credential's`},
		{"a role that is a sibling", "credentials:\n", secondOne("app_b", "file: {path: two, format: json}"), `16: credentials.app.role: the login "app_b" on 127.0.0.1:5432 belongs to the credential two already: a login is one credential's`},
		{"a deadline before the drain is over", role, role + "    drain: 48h\n", "16: credentials.app.drain: drain_deadline (1d) must be longer than drain (2d)"},
		{"a keep that is too long", role, role + "    keep: 52w\n", `16: credentials.app.keep: "52w" is too long: at most 90d`},
		{"a weak password", role, role + "    password_length: 12\n", `16: credentials.app.password_length: "12" must be a whole number from 32 to 128`},
	} {
		t.Run(c.name, func(t *testing.T) { one(t, c.old, c.with, c.want) })
	}
}

// one expects a single fault.
func one(t *testing.T, old, with, want string) {
	t.Helper()
	_, err := load(t, change(t, old, with))
	got := faults(t, err)
	if len(got) != 1 || got[0] != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if strings.Contains(err.Error(), "hunter") {
		t.Error("the error tells a password")
	}
}

func TestEachFaultOfASinkNamesTheFieldAndTheFix(t *testing.T) {
	for _, c := range []struct{ name, with, want string }{
		{"that is none", "dotnev: {}", `dotnev: unknown key "dotnev": the nearest known key is "dotenv" (known here: dotenv, file, pgpass, pgbouncer, docker_secret)`},
		{"that are two", sink + "\n        file: {path: f, format: json}", ": has two kinds of sink, dotenv and file: keep one"},
		{"with a password for a key", "dotenv: {path: .env, user: APP_USER, password: \"hunter2!\"}", "dotenv.password: must be the name of a key in the file, such as APP_PASSWORD, or of a list member, such as APP_PASSWORDS[0]; the password itself never stands here"},
		{"with an index out of reach", "dotenv: {path: .env, user: U, password: \"P[-1]\"}", "dotenv.password: must be the name of a key in the file, such as APP_PASSWORD, or of a list member, such as APP_PASSWORDS[0]; the password itself never stands here"},
		{"with a list of users", "dotenv: {path: .env, user: \"U[0]\", password: P}", "dotenv.user: must be the name of a key in the file, such as APP_USER or DATABASE_URL"},
		{"without a path", "dotenv: {user: U, password: P}", "dotenv.path: is missing: the file to write"},
		{"without a password", "dotenv: {path: .env, user: U}", "dotenv: writes no password to this file: add the key password, or dsn"},
		{"without a user", "dotenv: {path: .env, password: P}", "dotenv: alternating changes the user name too, and nothing writes it to this file: add the key user, or dsn, or use strategy in-place"},
		{"that tears user and password apart", "dotenv: {path: .env, password: P}\n      - file: {path: f, format: json}\n      - dotenv: {path: .other, user: U, dsn: D}", "dotenv: alternating changes the user name too, and nothing writes it to this file: add the key user, or dsn, or use strategy in-place"},
		{"that has the password alone", "file: {path: f, format: password}", "file: alternating changes the user name too, and this file would hold the password alone: use format dsn or json, or strategy in-place"},
		{"in no format", "file: {path: f}", "file.format: is missing: one of dsn, json, password"},
		{"that anybody may change", "file: {path: f, format: json, mode: 0666}", `file.mode: "0666" lets everybody on the machine change the file: use 0600 or 0640`},
		{"with a mode in decimal", "file: {path: f, format: json, mode: 384}", `file.mode: "384" must be an octal file mode that lets the owner read and write, and nobody execute: 0600 or 0640`},
		{"for physical replicas", "dotenv: {path: .env, user: U, password: \"REPLICA_PASSWORDS[0]\"}", "dotenv.password: a physical replica has no password of its own, it follows its primary: delete this sink, and let what connects to replicas read the primary's credential"},
		{"that is the configuration", "file: {path: ./x/../pawl.yaml, format: json}", "file.path: is this configuration itself, and passwords never stand in it: name another file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			where := "18: credentials.app.publish[0]"
			if !strings.HasPrefix(c.want, ":") {
				where += "."
			}
			one(t, sink, c.with, where+c.want)
		})
	}
	one(t, "    publish:\n      - "+sink+"\n", "", "13: credentials.app.publish: is missing: a credential needs a place where it is published, such as - dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}")
}

func TestEachFaultOfAConsumerNamesTheFieldAndTheFix(t *testing.T) {
	for _, c := range []struct{ name, with, want string }{
		{"no restart there is", "contaner: {name: api}", `contaner: unknown key "contaner": the nearest known key is "container" (known here: process, command, http, none, pgbouncer, compose, container, swarm_service)`},
		{"two restarts", "none: {}, command: [a]", ": has two kinds of restart, none and command: keep one"},
		{"no pid file", "process: {signal: HUP}", "process.pid_file: is missing: the file that holds the process's id"},
		{"neither signal nor start", "process: {pid_file: p}", "process: says not how to restart: add signal: HUP, or start: [program, argument]"},
		{"signal and start", "process: {pid_file: p, signal: HUP, start: [a]}", "process.start: stands beside signal: keep signal (the process reloads) or start (it is stopped and started anew)"},
		{"a signal's number", "process: {pid_file: p, signal: 1}", "process.signal: must be the name of a signal: HUP, INT, QUIT, TERM, USR1, USR2, ALRM, CONT, WINCH"},
		{"a line for a shell", "command: systemctl reload api", "command: no shell reads this: write a list, such as [systemctl, reload, api]"},
		{"no program", "command: {argv: []}", "command.argv: names no program: write a list, such as [systemctl, reload, api]"},
		{"longer than the step", "command: {argv: [a], timeout: 1h}", `command.timeout: "1h" is too long: at most 9m0s`},
		{"a URL of another kind", "http: {url: \"ftp://h/\"}", "http.url: must be a URL such as http://127.0.0.1:8080 (http, https)"},
		{"a password in a URL", "http: \"http://u:hunter2@h/%zz\"", "http: must be a URL such as http://127.0.0.1:8080 (http, https)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			where := "21: credentials.app.consumers[0].restart"
			if !strings.HasPrefix(c.want, ":") {
				where += "."
			}
			one(t, restart, c.with, where+c.want)
		})
	}
	name := "name: api\n"
	one(t, name, name+"        health: {timeout: 1s}\n", "21: credentials.app.consumers[0].health: checks nothing: add http: URL, or command: [program, argument]")
	one(t, name, name+"        instances: 0\n", `21: credentials.app.consumers[0].instances: "0" must be a whole number from 1 to 1000`)
	one(t, name, name+"        application_name: Büro\n", "21: credentials.app.consumers[0].application_name: PostgreSQL replaces all but printable ASCII in an application_name: write it so")
	one(t, name, name+"      - name: api\n", `21: credentials.app.consumers[1].name: "api" stands twice, first on line 20: name each consumer once`)
	one(t, role, role+"    verify: [sql: ' ']\n", "16: credentials.app.verify[0].sql: is missing: write a statement, such as SELECT 1")
	one(t, role, role+"    verify: [pool: {connections: 0}]\n", `16: credentials.app.verify[0].pool.connections: "0" must be a whole number from 1 to 1000`)
}

func TestTwoWritersOfOnePlaceAreRefused(t *testing.T) {
	for _, c := range []struct{ name, with, field string }{
		{"the same key", "dotenv: {path: ./x/../.env, password: APP_PASSWORD}", "dotenv.password"},
		{"the same file", "file: {path: .env, format: json}", "dotenv.user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, change(t, "credentials:\n", secondOne("two", c.with)))
			got := faults(t, err)
			if !strings.HasPrefix(got[0], "19: credentials.app.publish[0]."+c.field+": credentials.two.publish[0].") ||
				!strings.HasSuffix(got[0], "/.env (line 13): give each a key or a file of its own") {
				t.Errorf("got %q", got)
			}
		})
	}
	for _, c := range []struct {
		first, then string
		clash       bool
	}{{"P[0]", "P[0]", true}, {"P", "P[0]", true}, {"P[0]", "P", true}, {"P[1]", "P[0]", false}} {
		text := strings.Replace(valid, "password: APP_PASSWORD", `password: "`+c.then+`"`, 1)
		text = strings.Replace(text, "credentials:\n", secondOne("two", `dotenv: {path: .env, password: "`+c.first+`"}`), 1)
		if _, err := load(t, text); (err != nil) != c.clash {
			t.Errorf("%s, then %s: %v", c.first, c.then, err)
		}
	}
}

func TestEachFaultOfAPoolerOrPasswordFileNamesTheFieldAndTheFix(t *testing.T) {
	const (
		console = "user: boss, password_file: secrets/boss"
		lookups = "pgpass and pgbouncer tell what password a login has, not which login to use: add a dotenv or a file sink, which applications read that from"
	)
	one(t, sink, "pgpass: {path: .pgpass}", "17: credentials.app.publish: "+lookups)
	one(t, sink, "pgbouncer: {userlist: list, "+console+"}\n      - pgpass: {path: .pgpass}", "17: credentials.app.publish: "+lookups)
	for _, c := range []struct{ name, with, want string }{
		{"no userlist", "pgbouncer: {" + console + "}", "pgbouncer.userlist: is missing: the file to write"},
		{"no console user", "pgbouncer: {userlist: list, password_file: p}", "pgbouncer.user: is missing: the role that Pawl logs in as"},
		{"no console password", "pgbouncer: {userlist: list, user: boss}", "pgbouncer: has no password: add password_file or password_env"},
		{"a password", "pgbouncer: {userlist: list, password: hunter2, " + console + "}", "pgbouncer.password: passwords never stand in this file: use password_file or password_env"},
		{"a console of another name", "pgbouncer: {userlist: list, database: db, " + console + "}", `pgbouncer.database: unknown key "database": the nearest known key is "userlist" (known here: userlist, auth_file, host, port, user, password_file, password_env, sslmode, sslrootcert)`},
		{"a socket folder", "pgbouncer: {userlist: list, host: /run, " + console + "}", "pgbouncer.host: must be a TCP host name or address alone: no port, brackets, URL or socket folder"},
		{"a console user that is rotated", "pgbouncer: {userlist: list, user: app_b, password_file: p}", "pgbouncer.user: is a login of this credential, and Pawl would lock itself out of the console: name another of pgbouncer's admin_users"},
		{"a home folder", "pgpass: {path: ~/.pgpass}", "pgpass.path: ~ is not expanded: write the whole path"},
		{"no servers", "pgpass: {path: .pgpass, hosts: []}", `pgpass.hosts: is an empty list: name the servers as the file does, such as ["db.example.org:5432"], or delete the line`},
		{"a server without a port", "pgpass: {path: .pgpass, hosts: [db]}", `pgpass.hosts[0]: must be host:port as the file's lines have them, such as "db.example.org:5432"; * stands for any`},
		{"a server with a wild port", `pgpass: {path: .pgpass, hosts: ["db:0"]}`, "pgpass.hosts[0]: the port must be a number from 1 to 65535"},
	} {
		t.Run(c.name, func(t *testing.T) { one(t, sink, sink+"\n      - "+c.with, "19: credentials.app.publish[1]."+c.want) })
	}
	one(t, restart, "pgbouncer: {timeout: 1h, "+console+"}", `21: credentials.app.consumers[0].restart.pgbouncer.timeout: "1h" is too long: at most 9m0s`)
	one(t, restart, "pgbouncer: {port: 0, "+console+"}", `21: credentials.app.consumers[0].restart.pgbouncer.port: "0" must be a whole number from 1 to 65535`)
	one(t, restart, "pgbouncer: {"+console+"}}\n        instances: -1\n        health: {http: \"http://h\"", `22: credentials.app.consumers[0].instances: "-1" must be a whole number from 0 to 1000`)
}

func TestPoolersAndPasswordFilesAreReadWithTheirDefaults(t *testing.T) {
	text := change(t, sink, sink+"\n      - pgpass: {path: .pgpass}\n      - pgpass: {path: other, hosts: [\"*:5432\", \"/run/pg:*\"]}\n      - pgbouncer: {userlist: list, user: boss, password_env: BOSS}")
	text = strings.Replace(text, restart, restart+"}\n      - {name: pooler, restart: {pgbouncer: {host: pool, port: 6433, user: boss, password_file: b}}}\n      - {name: late", 1)
	inv, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	c := inv.Credentials["app"]
	if got := c.Publish[1].Pgpass.Hosts; !slices.Equal(got, []string{"127.0.0.1:5432", "[::1]:5433"}) {
		t.Errorf("the node and its replica are %q", got)
	}
	if u := c.Publish[3].Pgbouncer; u.AuthFile != u.Path || u.Console.Address() != "127.0.0.1:6432" || u.Console.Database != "pgbouncer" || u.Console.ChannelBinding != "prefer" {
		t.Errorf("%+v", u)
	}
	pooler := c.Consumers[1]
	if r := pooler.Restart.Pgbouncer; pooler.Instances != 0 || c.Consumers[2].Instances != 1 || r.Console.Address() != "pool:6433" || r.Timeout != 30*time.Second {
		t.Errorf("%+v", r)
	}
	if len(inv.Warnings) != 1 || !strings.Contains(inv.Warnings[0], "consumers[2]: turns after pgbouncer") {
		t.Errorf("warnings %q", inv.Warnings)
	}
}

func TestTwoWritersOfOneLineAreRefused(t *testing.T) {
	const other = `dotenv: {path: .two, password: P}, `
	for _, c := range []struct {
		name, mine, theirs string
		clash              bool
	}{
		{"the same role in one userlist", "pgbouncer: {userlist: list, user: boss, password_file: b}", "pgbouncer: {userlist: list, user: boss, password_file: b}", true},
		{"in userlists of their own", "pgbouncer: {userlist: list, user: boss, password_file: b}", "pgbouncer: {userlist: other, user: boss, password_file: b}", false},
		{"on one server", "pgpass: {path: list}", `pgpass: {path: list, hosts: ["127.0.0.1:5432"]}`, true},
		{"on servers of their own", "pgpass: {path: list}", `pgpass: {path: list, hosts: ["h:5432"]}`, false},
		{"on any server", "pgpass: {path: list}", `pgpass: {path: list, hosts: ["*:*"]}`, true},
	} {
		text := change(t, sink, sink+"\n      - "+c.mine)
		text = strings.Replace(text, "credentials:\n", strings.NewReplacer("ROLE", "app", "main", "elsewhere", "SINK", strings.TrimSuffix(other, ", ")+"}, {"+c.theirs).
			Replace(strings.Replace(second, "[SINK]", "[{SINK}]", 1)), 1)
		text = strings.Replace(text, "clusters:\n", "clusters:\n  elsewhere: {environment: production, admin: "+account+", nodes: {n: {host: elsewhere}}}\n", 1)
		if _, err := load(t, text); (err != nil) != c.clash || err != nil && !strings.Contains(err.Error(), "already writes this to") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestKeysReachedThroughALinkIntoTheDataAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("data", filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	text := change(t, "keys_dir: keys", "keys_dir: elsewhere/keys")
	if _, err := parse(filepath.Join(dir, "pawl.yaml"), []byte(text)); err == nil || !strings.Contains(err.Error(), "2: keys_dir: is inside data_dir") {
		t.Errorf("got %v", err)
	}
}

func TestWarningsTellWhatDoesNotWorkAsItSeems(t *testing.T) {
	inv, err := load(t, change(t, sink, "dotenv: {path: .env, user: POSTGRES_USER, password: POSTGRES_PASSWORD}\n      - file: {path: f, format: json, mode: 0644}\n      - dotenv: {path: .other, dsn: URL, password: PW}"))
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Warnings) != 3 || !strings.Contains(inv.Warnings[0], "pawl.yaml:18: credentials.app.publish[0].dotenv.password: PostgreSQL's image reads POSTGRES_PASSWORD only when it first fills") ||
		!strings.Contains(inv.Warnings[1], `pawl.yaml:19: credentials.app.publish[1].file.mode: "0644" lets everybody on the machine read`) ||
		!strings.Contains(inv.Warnings[2], "pawl.yaml:20: credentials.app.publish[2].dotenv: alternating changes the user name too: whoever reads") {
		t.Errorf("got %q", inv.Warnings)
	}
}

func TestPasswordIsReadAnewAndNeverTold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	byFile, byEnv := Account{User: "u", PasswordFile: file}, Account{User: "u", PasswordEnv: "PAWL_TEST_PASSWORD"}
	for _, a := range []Account{byFile, byEnv} {
		if _, err := a.Login(); err == nil || !strings.HasPrefix(err.Error(), `password of "u": `) {
			t.Errorf("without a password: %v", err)
		}
	}
	for _, text := range []string{"one", "two words "} {
		t.Setenv("PAWL_TEST_PASSWORD", text)
		if err := os.WriteFile(file, []byte(text+"\r\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, a := range []Account{byFile, byEnv} {
			if got, err := a.Login(); err != nil || got.User != "u" || got.Password.Reveal() != text {
				t.Errorf("%+v: not the password of now, %v", a, err)
			}
		}
	}
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := byFile.Login(); err == nil {
		t.Error("an empty file was taken for a password")
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90d": 90 * day, "2w": 14 * day, "1d12h": 36 * time.Hour, "1w1d1h": 8*day + time.Hour, "1h30m": 90 * time.Minute, "500ms": 500 * time.Millisecond, "106751d": 106751 * day,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1h", "1d-1h", "1d+1h", "d", "90", "1.5d", "1h2d", "106752d", "99999w999999d", "106751d24h", "1 d", "9999999999d"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q was read as %s", text, got)
		}
	}
}

func TestCredentialIsOnEveryPrimaryAndItsReplicas(t *testing.T) {
	names := func(nodes []Node) (out []string) {
		for _, n := range nodes {
			out = append(out, n.Name)
		}
		return out
	}
	nodes := `replica: {host: "::1", port: 5433, replica_of: primary}`
	for _, c := range []struct{ with, primaries, members string }{
		{nodes, "[primary]", "[primary replica]"},
		{nodes + "\n      a-cascade: {host: c, replica_of: replica}\n      worker: {host: d}\n      w-replica: {host: e, replica_of: worker}",
			"[primary worker]", "[primary a-cascade replica worker w-replica]"},
	} {
		inv, err := load(t, change(t, nodes, c.with))
		if err != nil {
			t.Fatal(err)
		}
		app := inv.Credentials["app"]
		if got := fmt.Sprint(names(app.Nodes)); got != c.primaries {
			t.Errorf("primaries %s, want %s", got, c.primaries)
		}
		if got := fmt.Sprint(names(app.Members())); got != c.members {
			t.Errorf("members %s, want %s", got, c.members)
		}
	}
}

// TestAnAdminBesideItsApplicationsIsWarnedOf: what worked before goes on, and says
// what is not seen, or what it risks.
func TestAnAdminBesideItsApplicationsIsWarnedOf(t *testing.T) {
	const admin = "    admin: {user: pawl_admin, password_file: secrets/admin"
	missing := "pawl.yaml:6: clusters.main.observer: is missing, and the admin never logs in to database \"shop\""
	inside := "pawl.yaml:15: credentials.app.database: is where the admin logs in, too, and whoever owns a database decides what a session finds there. Fix: name another one in clusters.main.admin.database"
	for name, c := range map[string]struct{ admin, database, want string }{
		"no observer":                       {admin + "}\n", "shop", missing},
		"no observer is wanted":             {admin + "}\n    observer: none\n", "shop", strings.Replace(missing, "is missing", "is none", 1)},
		"an observer":                       {admin + "}\n    observer: {user: o, password_file: o}\n", "shop", ""},
		"an observer that is the admin":     {admin + "}\n    observer: {user: pawl_admin, password_file: o, database: shop}\n", "shop", missing},
		"the admin in the application's":    {admin + ", database: shop}\n", "shop", inside},
		"the application in the admin's":    {admin + "}\n", "postgres", inside},
		"an application whose is not known": {admin + "}\n", "", ""},
	} {
		text := change(t, admin+"}\n", c.admin)
		if c.database != "" {
			text = strings.Replace(text, "    role: app\n", "    database: "+c.database+"\n    role: app\n", 1)
		}
		inv, err := load(t, text)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(inv.Warnings, "\n"); (got == "") != (c.want == "") || !strings.Contains(got, c.want) || len(inv.Warnings) > 1 {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if refused := inv.Credentials["app"].Unobserved(); (refused != "") != (c.want == missing) || refused != "" && !strings.Contains(refused, "clusters.main.observer: is missing") {
			t.Errorf("%s: adoption refused: %q", name, refused)
		}
		if cluster := inv.Clusters["main"]; !cluster.HasObserver() && cluster.Observer.Database != cluster.Admin.Database {
			t.Errorf("%s: the admin would stand in in database %q", name, cluster.Observer.Database)
		}
	}
}

func TestLoginsOfTheAdminAreTriedInItsOwnDatabaseAlone(t *testing.T) {
	inv, err := load(t, strings.NewReplacer("admin: "+account, "admin: {user: pawl_admin, password_file: secrets/admin, database: pawl}", "    role: pawl_admin\n", "    role: pawl_admin\n    database: shop\n").Replace(own(t)))
	if err != nil {
		t.Fatal(err)
	}
	if c := inv.Credentials["app"]; c.LoginDatabase() != "pawl" || c.Database != "shop" || c.Unseen() != "" || len(inv.Warnings) > 0 {
		t.Errorf("tried in %q of %q, unseen %q, warnings %q", c.LoginDatabase(), c.Database, c.Unseen(), inv.Warnings)
	}
}

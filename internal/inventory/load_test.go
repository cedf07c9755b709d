package inventory

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/calendar"
	"pawl.dev/internal/secret"
)

// valid is a configuration without fault; tests change one thing in it.
const valid = `data_dir: data
keys_dir: keys
environments:
  production: {rotate_every: 90d, windows: ["Sun 02:00-05:00 Europe/Berlin"]}
clusters:
  main:
    environment: production
    admin: {user: pawl_admin, password_file: secrets/admin}
    nodes:
      primary: {host: 127.0.0.1}
      replica: {host: "::1", port: 5433, replica_of: primary}
credentials:
  app:
    cluster: main
    role: app
    strategy: alternating
    publish:
      - dotenv: {path: .env, user: APP_USER, password: APP_PASSWORD}
    consumers:
      - name: api
        restart: {process: {pid_file: run/api.pid, signal: SIGHUP}}
`

// change replaces old, which must be there once, in the valid configuration.
func change(t testing.TB, old, with string) string {
	t.Helper()
	if strings.Count(valid, old) != 1 {
		t.Fatalf("%q stands %d times in the valid configuration", old, strings.Count(valid, old))
	}
	return strings.Replace(valid, old, with, 1)
}

func load(t testing.TB, text string) (*Inventory, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pawl.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	inv, err := Load(file)
	if err == nil {
		checkInvariants(t, inv)
	}
	return inv, err
}

// faults returns the lines of an error without their common beginning.
func faults(t testing.TB, err error) []string {
	t.Helper()
	if err == nil {
		t.Fatal("the configuration was accepted")
	}
	var out []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		_, after, ok := strings.Cut(line, "pawl.yaml:")
		if !ok {
			t.Fatalf("the line does not begin with the file: %q", line)
		}
		out = append(out, after)
	}
	return out
}

func TestDefaultsAreFilledIn(t *testing.T) {
	inv, err := load(t, valid)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(inv.File)
	cluster := inv.Clusters["main"]
	primary := Node{Name: "primary", Host: "127.0.0.1", Port: 5432}
	window, err := calendar.ParseWindow("Sun 02:00-05:00 Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	want := &Credential{
		Name: "app", Cluster: cluster, Nodes: []Node{primary}, Database: "postgres", Role: "app", Strategy: Alternating,
		RotateEvery: 90 * day, Drain: 2 * time.Minute, DrainDeadline: 24 * time.Hour, Keep: time.Hour, PasswordLength: 43, PasswordAlphabet: secret.Base62,
		Policy:  Policy{Windows: []calendar.Window{window}, Remind: 7 * day},
		Publish: []Sink{{Dotenv: &Dotenv{Path: filepath.Join(dir, ".env"), User: "APP_USER", Password: "APP_PASSWORD"}}},
		Consumers: []Consumer{{
			Name: "api", ApplicationName: "api", Instances: 1,
			Restart: Restart{Process: &Process{PIDFile: filepath.Join(dir, "run/api.pid"), Signal: "HUP", Dir: dir, Timeout: 30 * time.Second}},
		}},
	}
	if got := inv.Credentials["app"]; !reflect.DeepEqual(got, want) {
		t.Errorf("credential:\n got %+v\nwant %+v", got, want)
	}
	account := Account{User: "pawl_admin", PasswordFile: filepath.Join(dir, "secrets/admin"), Database: "postgres"} // its sslmode depends on the server's host
	if cluster.Admin != account || cluster.Observer != account {
		t.Errorf("admin %+v, observer %+v, want both %+v", cluster.Admin, cluster.Observer, account)
	}
	if inv.NATS.Listen != "127.0.0.1:4222" || inv.Telemetry.Metrics != "127.0.0.1:9464" || inv.DataDir != filepath.Join(dir, "data") || inv.KeysDir != filepath.Join(dir, "keys") {
		t.Errorf("got %+v", inv)
	}
	if len(inv.Digest()) != 16 || len(inv.Warnings) != 0 {
		t.Errorf("digest %q, warnings %q", inv.Digest(), inv.Warnings)
	}
	if got := cluster.Nodes["replica"].Address(); got != "[::1]:5433" {
		t.Errorf("address of the replica: %s", got)
	}
}

func TestDigestFollowsTheBytes(t *testing.T) {
	one, _ := load(t, valid)
	two, _ := load(t, valid)
	other, _ := load(t, valid+"# a comment\n")
	if one.Digest() != two.Digest() || one.Digest() == other.Digest() {
		t.Errorf("digests: %s %s %s", one.Digest(), two.Digest(), other.Digest())
	}
}

// Every key that the documentation shows, those of later versions apart.
func TestEveryDocumentedKeyIsRead(t *testing.T) {
	inv, err := load(t, `
nats: {listen: "127.0.0.1:4333"}
data_dir: .pawl
keys_dir: /etc/pawl/keys
telemetry: {otlp: "http://127.0.0.1:4318", jaeger: "https://jaeger.example.org", metrics: "127.0.0.1:0"}
contacts: {on_call: "devops-oncall@example.org"}
environments:
  production: {rotate_every: 90d, windows: ["Sun 02:00-05:00 Europe/Berlin", "Sat 23:00-01:00 UTC"]}
clusters:
  ruvector:
    environment: production
    admin: {user: pawl_admin, password_env: PAWL_ADMIN, database: pawl, sslmode: verify-full, sslrootcert: ca.pem}
    observer: {user: pawl_observer, password_file: /run/secrets/observer}
    nodes:
      coordinator: {host: db.example.org, port: 5432}
      worker-1: {host: 127.0.0.1, port: 5433}
      replica-1: {host: 127.0.0.1, port: 5434, replica_of: coordinator}
credentials:
  ruvector-app:
    cluster: ruvector
    nodes: [coordinator]
    database: ruvector
    role: Ruvector "App"
    strategy: alternating
    rotate_every: 30d
    drain: 0
    drain_deadline: 1d12h
    keep: 1h
    password_length: 64
    publish:
      - dotenv: {path: .env, user: RUVECTOR_USER, allow_tracked: true}
      - dotenv: {path: .env, password: RUVECTOR_PASSWORD, missing_keys_ok: true}
      - file: {path: run/dsn, format: dsn, mode: 0640}
      - file: {path: /srv/db.json, format: json}
    consumers:
      - {name: api, application_name: API v2, instances: 2, restart: {process: {pid_file: api.pid, start: [./api, "8080"], dir: run, timeout: 1m}}, health: {http: "http://127.0.0.1:8080/healthz", command: [true], timeout: 5s}}
      - {name: job, restart: {command: [systemctl, reload, job]}}
      - {name: web, restart: {command: {argv: [make, reload], dir: web, timeout: 2m}}}
      - {name: hook, restart: {http: "http://127.0.0.1:9000/reload"}}
      - {name: hook-2, restart: {http: {url: "http://127.0.0.1:9000/", method: PUT, timeout: 3s, token_file: token}}}
      - {name: watcher, restart: none}
      - {name: reader, restart: {none: {}}}
    verify:
      - sql: "SELECT '[1,2,3]'::vector <-> '[3,2,1]'::vector"
      - pool: {connections: 10}
  worker-1:
    cluster: ruvector
    nodes: [worker-1]
    role: worker_user
    strategy: in-place
    publish:
      - dotenv: {path: .env, password: "WORKER_PASSWORDS[0]"}
`)
	if err != nil {
		t.Fatal(err)
	}
	c := inv.Credentials["ruvector-app"]
	dir := filepath.Dir(inv.File)
	if c.Drain != 0 || c.DrainDeadline != 36*time.Hour || c.PasswordLength != 64 || c.RotateEvery != 30*day {
		t.Errorf("got %+v", c)
	}
	if f := c.Publish[2].File; *f != (File{Path: filepath.Join(dir, "run/dsn"), Format: FormatDSN, Mode: 0o640}) {
		t.Errorf("file sink: %+v", f)
	}
	if p := c.Consumers[0].Restart.Process; !reflect.DeepEqual(*p, Process{PIDFile: filepath.Join(dir, "api.pid"), Start: []string{"./api", "8080"}, Dir: filepath.Join(dir, "run"), Timeout: time.Minute}) {
		t.Errorf("process: %+v", p)
	}
	if got := c.Logins(); !reflect.DeepEqual(got, []string{`Ruvector "App"`, `Ruvector "App"_b`}) || c.Primary().Address() != "db.example.org:5432" {
		t.Errorf("logins %q, primary %s", got, c.Primary().Address())
	}
	if o := inv.Clusters["ruvector"].Observer; o.Database != "pawl" || o.SSLMode != "verify-full" || o.SSLRootCert != filepath.Join(dir, "ca.pem") {
		t.Errorf("the observer does not follow the admin: %+v", o)
	}
	w := inv.Credentials["worker-1"]
	if !reflect.DeepEqual(w.Logins(), []string{"worker_user"}) || w.Primary().Name != "worker-1" || w.RotateEvery != 90*day {
		t.Errorf("got %+v", w)
	}
}

func TestFileThatIsNotThere(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "pawl.yaml")
	_, err := Load(missing)
	if want := missing + ": file does not exist: run `pawl init` to write one, or name yours with -c FILE"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	_, err = Load(filepath.Dir(missing))
	if want := filepath.Dir(missing) + ": cannot be read: is a directory"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestFileThatIsNoConfiguration(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing in it", "", " is empty: run `pawl init` to fill it in"},
		{"only comments", "# later\n", " is empty: run `pawl init` to fill it in"},
		{"a list", "- a\n", "1: must be a mapping, that is, lines of key: value"},
		{"two documents", "nats: {}\n---\nnats: {}\n", "2: a second YAML document begins here: keep one, without ---"},
		{"a bracket left open", "nats: {}\ncontacts: [\n", "2: is not YAML: did not find expected node content"},
		{"a password taken for an alias", "nats: *hunter2\n", " is not YAML: a value begins with *, which YAML takes for an alias: quote it, or write the value out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, c.text)
			if got := faults(t, err); len(got) != 1 || got[0] != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestAllFaultsAreToldAtOnceInTheOrderOfTheFile(t *testing.T) {
	_, err := load(t, `credentials:
  app:
    cluster: mian
    role: app
    strategy: alternating
    drain: -2m
    publish:
      - dotenv: {path: .env, user: APP_USER, pasword: APP_PASSWORD}
clusters:
  main:
    admin: {user: pawl_admin, password: hunter2}
    nodes:
      primary: {host: 127.0.0.1, port: 99999}
`)
	want := []string{
		`3: credentials.app.cluster: there is no cluster "mian"; the nearest is "main"`,
		`6: credentials.app.drain: the duration "-2m" is negative: write 0 or more`,
		`8: credentials.app.publish[0].dotenv.pasword: unknown key "pasword": the nearest known key is "password" (known here: path, user, password, dsn, allow_tracked, missing_keys_ok)`,
		`8: credentials.app.publish[0].dotenv: writes no password to this file: add the key password, or dsn`,
		`11: clusters.main.admin.password: passwords never stand in this file: use password_file or password_env`,
		`11: clusters.main.admin: has no password: add password_file or password_env`,
		`13: clusters.main.nodes.primary.port: "99999" must be a whole number from 1 to 65535`,
	}
	if got := faults(t, err); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("the error tells the password")
	}
}

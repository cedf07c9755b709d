package inventory

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// checkInvariants is what every service takes for granted.
func checkInvariants(t testing.TB, inv *Inventory) {
	t.Helper()
	must := func(ok bool, what string, of any) {
		t.Helper()
		if !ok {
			t.Errorf("%s: %+v", what, of)
		}
	}
	must(filepath.IsAbs(inv.DataDir) && filepath.IsAbs(inv.KeysDir) && !within(inv.KeysDir, inv.DataDir), "folders", inv)
	must(len(inv.Digest()) == 16, "digest", inv.Digest())
	for _, c := range inv.Clusters {
		must(len(c.primaries()) > 0, "a cluster without a primary", c)
		for _, a := range []Account{c.Admin, c.Observer} {
			must(a.User != "" && a.Database != "" && (a.PasswordFile == "") != (a.PasswordEnv == ""), "account", a)
		}
		for name, n := range c.Nodes {
			must(n.Name == name && n.Host != "" && n.Port > 0, "node", n)
		}
	}
	for _, r := range inv.Alerts.Rules {
		must(r.Credential == inv.Credentials[r.Credential.Name] && r.Labels[LabelAlert] != "", "rule", r)
	}
	for name, r := range inv.Alerts.Receivers {
		must(nameForm.MatchString(name) && inv.Alerts.Listen != "" && (r.TokenFile != "") != (r.PasswordFile+r.HMACFile != ""), "receiver", r)
	}
	owner := map[string]string{}
	for name, c := range inv.Credentials {
		must(c.Name == name && nameForm.MatchString(name) && c.Cluster != nil && len(c.Nodes) > 0 && c.Primary().ReplicaOf == "", "credential", c)
		must(c.Strategy == Alternating || c.Strategy == InPlace, "strategy", c)
		must(c.Drain >= 0 && c.Drain < c.DrainDeadline && c.Keep >= 0 && c.PasswordLength >= 32, "numbers", c)
		must(len(c.Publish) > 0, "no sink", c)
		for _, login := range c.Logins() {
			for _, n := range c.Nodes { // a worker may have a password of its own for it
				key := n.Address() + "\x00" + login
				must(login != "" && len(login) <= 63 && owner[key] == "", "login", login)
				owner[key] = name
			}
		}
		checkSinks(t, c)
		for _, k := range c.Consumers {
			must(k.Name != "" && k.ApplicationName != "" && (k.Instances > 0 || k.Restart.Pgbouncer != nil), "consumer", k)
			must(k.Restart.Process == nil || filepath.IsAbs(k.Restart.Process.PIDFile) && (k.Restart.Process.Signal == "") != (len(k.Restart.Process.Start) == 0), "process", k)
			must(k.Restart.Command == nil || len(k.Restart.Command.Argv) > 0, "command", k)
			must(k.Restart.Swarm == nil || k.Restart.Swarm.Service != "" && k.Restart.Swarm.Timeout > 0, "swarm service", k)
			must(k.Restart.Container == nil || (k.Restart.Container.Name == "") != (k.Restart.Container.Label == ""), "container", k)
			must(k.Restart.Compose == nil || k.Restart.Compose.Service != "" && filepath.IsAbs(k.Restart.Compose.Dir), "compose", k)
			must(k.Restart.HTTP == nil || k.Restart.HTTP.URL != "" && k.Restart.HTTP.Timeout > 0, "http", k)
		}
		must(slices.ContainsFunc(c.Publish, func(s Sink) bool { return !s.Lookup() }), "lookups alone", c)
		for _, p := range c.Verify {
			must((p.SQL == "") != (p.Pool == nil) && (p.Pool == nil || p.Pool.Connections > 0), "probe", p)
		}
	}
}

func checkSinks(t testing.TB, c *Credential) {
	t.Helper()
	for _, s := range c.Publish {
		switch {
		case s.Pgpass != nil:
			if !filepath.IsAbs(s.Pgpass.Path) || len(s.Pgpass.Hosts) == 0 {
				t.Errorf("pgpass: %+v", s.Pgpass)
			}
		case s.Pgbouncer != nil:
			if u := s.Pgbouncer; !filepath.IsAbs(u.Path) || u.AuthFile == "" || u.Console.Host == "" || u.Console.Port == 0 || u.Console.User == "" {
				t.Errorf("pgbouncer: %+v", u)
			}
		case s.DockerSecret != nil:
			if d := s.DockerSecret; len(d.Name) == 0 || len(d.Name) > longestSecret || d.Target == "" || d.Format == "" || len(d.Services) == 0 {
				t.Errorf("docker secret: %+v", d)
			}
		case (s.Dotenv == nil) == (s.File == nil):
			t.Errorf("sink: %+v", s)
		case s.File != nil:
			if !filepath.IsAbs(s.File.Path) || s.File.Mode == 0 || c.Strategy == Alternating && s.File.Format == FormatPassword {
				t.Errorf("file: %+v", s.File)
			}
		default:
			var user, password, dsn bool
			for _, other := range c.Publish {
				if d := other.Dotenv; d != nil && d.Path == s.Dotenv.Path {
					user, password, dsn = user || d.User != "", password || d.Password != "", dsn || d.DSN != ""
				}
			}
			if !filepath.IsAbs(s.Dotenv.Path) || !password && !dsn || c.Strategy == Alternating && !user && !dsn {
				t.Errorf("dotenv: %+v", s.Dotenv)
			}
		}
	}
}

// FuzzLoad: no document makes reading panic; each is either accepted with
// everything in place, or refused with lines that begin with the file.
func FuzzLoad(f *testing.F) {
	f.Add(valid)
	f.Add(uncomment(Template()))
	f.Add(strings.Replace(valid, sink, sink+"\n      - pgpass: {path: p, hosts: [\"*:*\"]}\n      - pgbouncer: {userlist: u, user: b, password_env: B}", 1))
	f.Add("a: &a [*a]\n<<: *a\n? [x]\n: !t y\nnats: {url: \"nats://u:p@h\"}\n")
	f.Add("clusters: {a: {nodes: {b: {replica_of: c}, c: {replica_of: b}}}}\ncredentials: {x: {cluster: a, nodes: [b, b, ~]}}\n")
	f.Add("credentials:\n  a: {publish: [dotenv, {file: , vault_kv: 1}, {dotenv: {path: pawl.yaml}}], consumers: [{restart: {http: [], none: 2}}], verify: [{sql: []}]}\n")
	file := filepath.Join(f.TempDir(), "pawl.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		inv, err := parse(file, []byte(text))
		if err == nil {
			checkInvariants(t, inv)
			return
		}
		for line := range strings.SplitSeq(err.Error(), "\n") {
			if !strings.HasPrefix(line, file+":") {
				t.Errorf("a line without the file: %q", line)
			}
		}
	})
}

// FuzzAddMissing: what stood in the file is still its beginning, and nothing
// is missing afterwards.
func FuzzAddMissing(f *testing.F) {
	f.Add("")
	f.Add(valid)
	f.Add("contacts:\n  a: |+\n    text")
	f.Add("{nats: {}}")
	f.Add("nats: {}\r\n...\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		out, added, err := AddMissing([]byte(text))
		if err != nil {
			return
		}
		if !strings.HasPrefix(string(out), text) {
			t.Fatalf("changed what stood there: %q", out)
		}
		again, more, err := AddMissing(out)
		if err != nil || len(more) > 0 || !slices.Equal(again, out) {
			t.Fatalf("after %q still adds %q: %v", added, more, err)
		}
	})
}

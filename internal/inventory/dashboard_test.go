package inventory

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestEachFaultOfTheDashboardNamesTheFieldAndTheFix(t *testing.T) {
	const open = "2: dashboard.listen: is reached by other machines, and nobody is asked who they are: add token_file or tls.client_ca_file, or listen on 127.0.0.1"
	for _, c := range []struct{ name, section, want string }{
		{"open to the network", `{listen: "10.0.0.5:9466"}`, open},
		{"open to every network", `{listen: "0.0.0.0:9466"}`, open},
		{"open by a name", `{listen: "pawl.example.org:9466"}`, open},
		{"encrypted, but open", `{listen: "[::]:9466", tls: {cert_file: c, key_file: k}}`, open},
		{"no port", `{listen: "127.0.0.1"}`, `2: dashboard.listen: must be host:port, such as "127.0.0.1:9466"`},
		{"a wild port", `{listen: "127.0.0.1:0"}`, `2: dashboard.listen: the port must be a number from 1 to 65535`},
		{"a token that stands there", `{token: hunter2}`, `2: dashboard.token: unknown key "token": the nearest known key is "listen" (known here: listen, token_file, tls)`},
		{"a password", `{password: hunter2}`, "2: dashboard.password: passwords never stand in this file: use password_file or password_env"},
		{"no certificate", `{tls: {key_file: k}}`, "2: dashboard.tls.cert_file: is missing: the server's certificate, PEM, with what is between it and its authority"},
		{"no key", `{tls: {cert_file: c, client_ca_file: a}}`, "2: dashboard.tls.key_file: is missing: the certificate's private key, PEM"},
		{"a scalar", `"127.0.0.1:9466"`, "2: dashboard: must be a mapping, that is, lines of key: value"},
		{"a scalar for TLS", `{tls: true}`, "2: dashboard.tls: must be a mapping, that is, lines of key: value"},
		{"a home folder", `{token_file: ~/token}`, "2: dashboard.token_file: ~ is not expanded: write the whole path"},
	} {
		t.Run(c.name, func(t *testing.T) { one(t, "keys_dir: keys", "dashboard: "+c.section, c.want) })
	}
}

func TestDashboardIsReadWithItsDefaults(t *testing.T) {
	for _, c := range []struct {
		section, url   string
		asks, warned   bool
		token, clients string
	}{
		{"", "", false, false, "", ""},
		{"dashboard: {}", "http://127.0.0.1:9466/", false, false, "", ""},
		{`dashboard: {listen: "[::1]:80"}`, "http://[::1]:80/", false, false, "", ""},
		{`dashboard: {listen: "localhost:80", token_file: secrets/dashboard}`, "http://localhost:80/", true, false, "secrets/dashboard", ""},
		{`dashboard: {listen: "0.0.0.0:80", token_file: t}`, "http://0.0.0.0:80/", true, true, "t", ""},
		{`dashboard: {listen: "0.0.0.0:80", token_file: t, tls: {cert_file: c, key_file: k}}`, "https://0.0.0.0:80/", true, false, "t", ""},
		{`dashboard: {listen: "0.0.0.0:80", tls: {cert_file: c, key_file: k, client_ca_file: a}}`, "https://0.0.0.0:80/", true, false, "", "a"},
	} {
		inv, err := load(t, change(t, "keys_dir: keys", c.section))
		if err != nil {
			t.Errorf("%s: %v", c.section, err)
			continue
		}
		d := inv.Dashboard
		within := func(path string) string { return strings.TrimPrefix(path, filepath.Dir(inv.File)+"/") }
		if d.URL() != c.url || d.Asks() != c.asks || within(d.TokenFile) != c.token || within(d.ClientCAFile) != c.clients || (len(inv.Warnings) > 0) != c.warned {
			t.Errorf("%s: %+v, warnings %q", c.section, d, inv.Warnings)
		}
	}
}

package inventory

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEachFaultOfADockerSecretNamesTheFieldAndTheFix(t *testing.T) {
	for _, c := range []struct{ name, with, want string }{
		{"without a name", "docker_secret: {format: dsn, services: [api]}", "docker_secret.name: is missing: what the secret is called; each version adds _ and a fingerprint"},
		{"with a name that Docker refuses", "docker_secret: {name: a b, format: dsn, services: [api]}", `docker_secret.name: "a b" is no name that Docker takes: letters, digits, and . _ - between them`},
		{"with a name that leaves no room", "docker_secret: {name: " + strings.Repeat("n", 52) + ", format: dsn, services: [api]}", "docker_secret.name: has 52 bytes, and may have 51"},
		{"in no format", "docker_secret: {name: dsn, services: [api]}", "docker_secret.format: is missing: one of dsn, json, password, user"},
		{"for nobody", "docker_secret: {name: dsn, format: dsn, services: []}", "docker_secret.services: is missing: the Swarm services that read it, such as [api]"},
		{"for one service", "docker_secret: {name: dsn, format: dsn, services: api}", "docker_secret.services: must be a list, that is, [a, b] or lines that begin with -"},
		{"twice for one service", "docker_secret: {name: dsn, format: dsn, services: [api, api]}", "docker_secret.services[1]: credentials.app.publish[0].docker_secret.services[0] already writes file dsn of service api (line 18): give each a name of its own"},
		{"of one name twice", "docker_secret: {name: dsn, format: dsn, services: [api]}\n      - docker_secret: {name: dsn, target: other, format: dsn, services: [worker]}", ""},
		{"with the password alone", "docker_secret: {name: pw, format: password, services: [api]}", "docker_secret: alternating changes the user name too, and nothing gives it to service api: add a docker_secret of format user, or use dsn or json, or strategy in-place"},
		{"with the user alone", "docker_secret: {name: u, format: user, services: [api]}", "docker_secret: gives service api a user and no password: add a docker_secret of format password, or use dsn or json"},
		{"with a login in the URL", `docker_secret: {name: dsn, format: dsn, url: "postgres://app:hunter2@h/db", services: [api]}`, "docker_secret.url: passwords never stand in this file, and Pawl puts the login there: write postgres://host:port/database, and what parameters you need"},
		{"with a password among the parameters", `docker_secret: {name: dsn, format: dsn, url: "postgres://h/db?password=hunter2", services: [api]}`, "docker_secret.url: passwords never stand in this file, and Pawl puts the login there: write postgres://host:port/database, and what parameters you need"},
		{"with a URL of another kind", `docker_secret: {name: dsn, format: dsn, url: "mysql://h/db", services: [api]}`, "docker_secret.url: must be postgres://host:port/database, with what parameters you need"},
		{"with a URL in JSON", `docker_secret: {name: dsn, format: json, url: "postgres://h/db", services: [api]}`, "docker_secret.url: is for format dsn alone: delete it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want == "" {
				one(t, sink, c.with, "19: credentials.app.publish[1].docker_secret.name: credentials.app.publish[0].docker_secret.name already writes Docker secret dsn (line 18): give each a name of its own")
				return
			}
			one(t, sink, c.with, "18: credentials.app.publish[0]."+c.want)
		})
	}
}

func TestEachFaultOfADockerRestartOrEndpointNamesTheFieldAndTheFix(t *testing.T) {
	for _, c := range []struct{ name, with, want string }{
		{"no service of Swarm", "swarm_service: {timeout: 1m}", "swarm_service.service: is missing: the Swarm service, as `docker service ls` names it"},
		{"a service that cannot be", "swarm_service: -api", `swarm_service: "-api" is no name that Docker takes: letters, digits, and . _ - between them`},
		{"longer than the step", "swarm_service: {service: api, timeout: 1h}", `swarm_service.timeout: "1h" is too long: at most 9m0s`},
		{"no container", "container: {timeout: 1m}", "container: says not which container: add name: api, or label: KEY=VALUE"},
		{"two containers", "container: {name: a, label: b}", "container.label: stands beside name: keep one"},
		{"no service of Compose", "compose: {dir: /srv/app}", "compose.service: is missing: the service, as the compose file names it"},
		{"one compose file", "compose: {service: api, files: compose.yml}", "compose.files: must be a list, that is, [a, b] or lines that begin with -"},
	} {
		t.Run(c.name, func(t *testing.T) { one(t, restart, c.with, "21: credentials.app.consumers[0].restart."+c.want) })
	}
	const keys = "keys_dir: keys"
	for with, want := range map[string]string{
		"docker: {host: /run/docker.sock}":                                             "docker.host: must be unix:///var/run/docker.sock or the like, or tcp://host:port",
		"docker: {host: tcp://docker}":                                                 "docker.host: must be unix:///var/run/docker.sock or the like, or tcp://host:port",
		"docker: {host: tcp://docker:0}":                                               "docker.host: the port must be a number from 1 to 65535",
		"docker: {tls: {ca_file: a, cert_file: b, key_file: c}}":                       "docker.host: is missing: tls is for an endpoint such as tcp://docker.example.org:2376",
		"docker: {host: tcp://docker:2376, tls: {ca_file: a, cert_file: b}}":           "docker.tls.key_file: is missing: Docker's endpoint and Pawl show each other who they are: ca_file, cert_file and key_file, PEM",
		"docker: {host: unix:///d.sock, tls: {ca_file: a, cert_file: b, key_file: c}}": "docker.tls: stands beside a socket, which takes none: delete it, or name a tcp://host:port",
		"docker: {hots: unix:///d.sock}":                                               `docker.hots: unknown key "hots": the nearest known key is "host" (known here: host, tls)`,
	} {
		one(t, keys, with, "2: "+want)
	}
}

func TestDockerIsReadWithItsDefaults(t *testing.T) {
	text := change(t, sink, "docker_secret: {name: u, format: user, services: [api]}\n      - docker_secret: {name: p, target: pw, format: password, services: [api, worker]}\n"+
		"      - docker_secret: {name: d, format: dsn, url: \"postgresql://h1:1,h2:2/db?sslmode=verify-full\", services: [worker]}")
	text = strings.Replace(text, restart, "swarm_service: api}\n      - {name: w, restart: {container: worker}}\n      - {name: c, restart: {compose: {service: web, dir: shop, files: [a.yml]}}}\n      - {name: l, restart: {container: {label: tier=web}}", 1)
	text = strings.Replace(text, "keys_dir: keys", "docker: {host: tcp://proxy:2375}", 1)
	inv, err := load(t, text)
	if err != nil {
		t.Fatal(err)
	}
	c := inv.Credentials["app"]
	if d := c.Publish[1].DockerSecret; c.Publish[0].DockerSecret.Target != "u" || d.Target != "pw" || !slices.Equal(d.Services, []string{"api", "worker"}) {
		t.Errorf("%+v", d)
	}
	for i, sound := range []bool{
		*c.Consumers[0].Restart.Swarm == SwarmService{"api", 5 * time.Minute},
		*c.Consumers[1].Restart.Container == Container{Name: "worker", Timeout: time.Minute},
		c.Consumers[2].Restart.Compose.Service == "web" && strings.HasSuffix(c.Consumers[2].Restart.Compose.Dir, "/shop") && strings.HasSuffix(c.Consumers[2].Restart.Compose.Files[0], "/a.yml"),
		c.Consumers[3].Restart.Container.Label == "tier=web",
	} {
		if !sound {
			t.Errorf("consumer %d: %+v", i, c.Consumers[i].Restart)
		}
	}
	if len(inv.Warnings) != 1 || !strings.Contains(inv.Warnings[0], "docker.host: Docker's API passes the network in clear") {
		t.Errorf("warnings %q", inv.Warnings)
	}
}

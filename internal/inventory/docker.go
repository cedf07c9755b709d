package inventory

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Docker is where the Docker API is, for the secret-publisher and the restarter
// alone. With Host empty, DOCKER_HOST and the other variables of Docker's own
// client say, and else it is the usual socket. Files are absolute.
type Docker struct {
	Host     string // unix:///path or tcp://host:port
	CAFile   string // TLS: whom the endpoint's certificate must be of
	CertFile string // TLS: how Pawl shows who it is
	KeyFile  string
}

// Formats of a DockerSecret, beside those of a File.
const FormatUser = "user" // the user name alone, no newline

// DockerSecret publishes as a secret of Docker Swarm. A secret cannot be changed:
// each login is one of its own, NAME_FINGERPRINT, behind a target that stays.
type DockerSecret struct {
	Name     string
	Target   string // the file in the container, below /run/secrets; default: Name
	Format   string
	URL      string   // of the server as containers reach it, without a login; default: that of the primary
	Services []string // that read it
}

// SwarmService awaits that every task of a service uses what was published, and
// replaces them all where the service has it from elsewhere than a secret.
type SwarmService struct {
	Service string
	Timeout time.Duration // default 5m
}

// Container restarts containers, one after the other, each healthy before the
// next one's turn; exactly one of Name and Label is set.
type Container struct {
	Name    string
	Label   string        // KEY=VALUE or KEY
	Timeout time.Duration // default 1m: for each
}

// Compose has Docker Compose make a service's containers anew, so that they get
// the .env as it is now.
type Compose struct {
	Service string
	Dir     string        // of the project, absolute; default: the configuration's
	Files   []string      // absolute; default: as Compose finds them in Dir
	Project string        // default: as Compose names it
	Timeout time.Duration // default 3m
}

func readDocker(v value) Docker {
	o := v.object("host", "tls")
	host, tls := o.at("host"), o.at("tls").object("ca_file", "cert_file", "key_file")
	d := Docker{Host: host.text(), CAFile: tls.at("ca_file").file(""), CertFile: tls.at("cert_file").file(""), KeyFile: tls.at("key_file").file("")}
	if tls.isMapping() {
		for _, key := range []string{"ca_file", "cert_file", "key_file"} {
			if tls.at(key).node == nil {
				tls.at(key).missing("Docker's endpoint and Pawl show each other who they are: ca_file, cert_file and key_file, PEM")
			}
		}
	}
	if d.Host == "" {
		if tls.isMapping() {
			host.missing("tls is for an endpoint such as tcp://docker.example.org:2376")
		}
		return d
	}
	u, err := url.Parse(d.Host)
	switch {
	case err == nil && u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		if tls.isMapping() {
			o.at("tls").fault("stands beside a socket, which takes none: delete it, or name a tcp://host:port")
		}
	case err == nil && u.Scheme == "tcp" && u.Hostname() != "" && u.Port() != "" && u.User == nil && u.Path == "":
		host.checkPort(u.Port(), 1)
		if d.CertFile == "" && !isLoopback(u.Host) {
			host.warn("Docker's API passes the network in clear, and whoever reaches it has the machine: add tls, or see that nobody but Pawl reaches it")
		}
	default:
		host.fault("must be unix:///var/run/docker.sock or the like, or tcp://host:port")
	}
	return d
}

// The longest names: Docker takes 64 bytes for a secret, and Pawl adds _ and a
// fingerprint of 12; a service is a name of DNS.
const (
	longestSecret  = 64 - 1 - 12
	longestService = 63
)

var dockerName = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?$`)

func (v value) dockerName(what string, longest int) string {
	if v.node == nil {
		v.missing(what)
		return ""
	}
	name := v.text()
	switch {
	case name == "":
	case !dockerName.MatchString(name):
		v.fault("%.70q is no name that Docker takes: letters, digits, and . _ - between them", name)
	case len(name) > longest:
		v.fault("has %d bytes, and may have %d", len(name), longest)
	}
	return name
}

func readDockerSecret(v value) *DockerSecret {
	o := v.object("name", "target", "format", "url", "services")
	s := &DockerSecret{Target: o.at("target").text(), URL: o.at("url").serverURL()}
	if o.readable() {
		s.Name = o.at("name").dockerName("what the secret is called; each version adds _ and a fingerprint", longestSecret)
		s.Format = o.at("format").choice("", FormatDSN, FormatJSON, FormatPassword, FormatUser)
	}
	if s.Target == "" {
		s.Target = s.Name
	}
	if s.URL != "" && s.Format != FormatDSN {
		o.at("url").fault("is for format dsn alone: delete it")
	}
	services := o.at("services")
	for _, item := range services.list() {
		if name := item.dockerName("a service", longestService); name != "" {
			item.claimDocker("file "+s.Target+" of service "+name, name, s.Target)
			s.Services = append(s.Services, name)
		}
	}
	if o.readable() && !services.broken && (services.node == nil || services.isEmptyList()) {
		services.missing("the Swarm services that read it, such as [api]")
	}
	if s.Name != "" {
		o.at("name").claimDocker("Docker secret "+s.Name, "", s.Name)
	}
	return s
}

// claimDocker refuses a second writer of a secret, or of a file in a service.
func (v value) claimDocker(what, service, name string) {
	key := place{"docker:" + service, name}
	if other, taken := v.doc.published[key]; taken {
		v.fault("%s already writes %s (line %d): give each a name of its own", other.path, what, other.line)
		return
	}
	v.doc.published[key] = v
}

// serverURL is a postgres:// URL without a login. It is never quoted.
func (v value) serverURL() string {
	text := v.text()
	scheme, rest, ok := strings.Cut(text, "://")
	_, query, _ := strings.Cut(rest, "?")
	login := slices.ContainsFunc(strings.Split(query, "&"), func(p string) bool {
		key, _, _ := strings.Cut(p, "=")
		return key == "user" || key == "password"
	})
	switch {
	case text == "":
	case strings.Contains(rest, "@") || login:
		v.fault("passwords never stand in this file, and Pawl puts the login there: write postgres://host:port/database, and what parameters you need")
	case !ok || scheme != "postgres" && scheme != "postgresql" || rest == "" || strings.HasPrefix(rest, "/"):
		v.fault("must be postgres://host:port/database, with what parameters you need")
	default:
		return text
	}
	return ""
}

// checkServices refuses secrets that do not carry the credential to each service
// at once: a service is updated once, with all that it reads.
func checkServices(sinks []Sink, places []value, strategy string) {
	type reads struct {
		formats []string
		at      value
	}
	services := map[string]*reads{}
	var order []string
	for i, s := range sinks {
		if s.DockerSecret == nil {
			continue
		}
		for _, name := range s.DockerSecret.Services {
			if services[name] == nil {
				services[name], order = &reads{at: places[i]}, append(order, name)
			}
			services[name].formats = append(services[name].formats, s.DockerSecret.Format)
		}
	}
	for _, name := range order {
		has := func(format string) bool { return slices.Contains(services[name].formats, format) }
		switch whole := has(FormatDSN) || has(FormatJSON); {
		case whole:
		case has(FormatUser) && !has(FormatPassword):
			services[name].at.fault("gives service %s a user and no password: add a docker_secret of format password, or use dsn or json", name)
		case !has(FormatUser) && has(FormatPassword) && strategy == Alternating:
			services[name].at.fault("alternating changes the user name too, and nothing gives it to service %s: add a docker_secret of format user, or use dsn or json, or strategy in-place", name)
		}
	}
}

func readSwarmService(v value) *SwarmService {
	s := &SwarmService{Timeout: 5 * time.Minute}
	if v.node != nil && v.node.Kind == yaml.ScalarNode {
		s.Service = v.dockerName("", longestService)
		return s
	}
	o := v.object("service", "timeout")
	if o.readable() {
		s.Service = o.at("service").dockerName("the Swarm service, as `docker service ls` names it", longestService)
	}
	s.Timeout = o.at("timeout").duration(s.Timeout, shortestTimeout, longestTimeout)
	return s
}

func readContainer(v value) *Container {
	c := &Container{Timeout: time.Minute}
	if v.node != nil && v.node.Kind == yaml.ScalarNode {
		c.Name = v.dockerName("", 255)
		return c
	}
	o := v.object("name", "label", "timeout")
	name, label := o.at("name"), o.at("label")
	if name.node != nil {
		c.Name = name.dockerName("", 255)
	}
	c.Label = label.text()
	c.Timeout = o.at("timeout").duration(c.Timeout, shortestTimeout, longestTimeout)
	switch {
	case name.node != nil && label.node != nil:
		label.fault("stands beside name: keep one")
	case name.node == nil && label.node == nil && o.readable():
		o.fault("says not which container: add name: api, or label: KEY=VALUE")
	}
	return c
}

func readCompose(v value) *Compose {
	o := v.object("service", "dir", "files", "project", "timeout")
	c := &Compose{
		Dir:     o.at("dir").file(o.doc.dir),
		Timeout: o.at("timeout").duration(3*time.Minute, shortestTimeout, longestTimeout),
	}
	if o.readable() {
		c.Service = o.at("service").dockerName("the service, as the compose file names it", longestService)
	}
	if o.at("project").node != nil {
		c.Project = o.at("project").dockerName("", longestService)
	}
	for _, item := range o.at("files").list() {
		if file := item.file(""); file != "" {
			c.Files = append(c.Files, file)
		}
	}
	return c
}

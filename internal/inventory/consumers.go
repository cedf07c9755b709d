package inventory

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

var restartKinds = []string{"process", "command", "http", "none", "pgbouncer", "compose", "container", "swarm_service"}

// What may take longer than the saga's restart step would be given up half-way.
const (
	shortestTimeout = 100 * time.Millisecond
	longestTimeout  = 9 * time.Minute
)

func readConsumers(v value) []Consumer {
	var out []Consumer
	first := map[string]int{}
	for _, item := range v.list() {
		o := item.object("name", "application_name", "instances", "restart", "health")
		c := Consumer{
			Restart: readRestart(o.at("restart")),
			Health:  readHealth(o.at("health")),
		}
		least := 1
		if c.Restart.Pgbouncer != nil { // its server connections are its clients' sessions
			least = 0
		}
		c.Instances = o.at("instances").integer(least, least, 1000)
		if o.readable() {
			c.Name = o.at("name").required("what the consumer is called")
		}
		if c.Name != "" {
			o.at("name").checkName(c.Name)
		}
		if line, seen := first[c.Name]; seen && c.Name != "" {
			o.at("name").fault("%.80q stands twice, first on line %d: name each consumer once", c.Name, line)
		}
		if n := len(out); n > 0 && out[n-1].Restart.Pgbouncer != nil && c.Restart.Pgbouncer == nil {
			item.warn("turns after pgbouncer, and until then keeps server connections of the old login open, which nothing closes afterwards: list pgbouncer last")
		}
		first[c.Name] = o.at("name").line
		c.ApplicationName = cmp.Or(o.at("application_name").text(), c.Name)
		o.at("application_name").checkApplicationName(c.ApplicationName)
		out = append(out, c)
	}
	return out
}

// checkApplicationName refuses what PostgreSQL would rewrite: the consumer's
// sessions would never be found under that name.
func (v value) checkApplicationName(name string) {
	foreign := strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' })
	switch {
	case len(name) > 63:
		v.fault("the application name has %d bytes: PostgreSQL cuts it at 63: write application_name, shorter", len(name))
	case foreign:
		v.fault("PostgreSQL replaces all but printable ASCII in an application_name: write it so")
	}
}

func readRestart(v value) Restart {
	if v.node == nil || v.node.Kind == yaml.ScalarNode && v.node.Value == "none" {
		return Restart{}
	}
	kind, body := v.variant("restart", restartKinds)
	switch kind {
	case "process":
		return Restart{Process: readProcess(body)}
	case "command":
		return Restart{Command: readCommand(body)}
	case "http":
		return Restart{HTTP: readHTTPCall(body)}
	case "pgbouncer":
		return Restart{Pgbouncer: readReconnect(body)}
	case "compose":
		return Restart{Compose: readCompose(body)}
	case "container":
		return Restart{Container: readContainer(body)}
	case "swarm_service":
		return Restart{Swarm: readSwarmService(body)}
	case "none":
		body.object() // takes no settings
	}
	return Restart{}
}

// What a process may be asked to take for "read your configuration again"; KILL
// and STOP are never that.
var signals = []string{"HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM", "CONT", "WINCH"}

func readProcess(v value) *Process {
	o := v.object("pid_file", "user", "signal", "start", "dir", "timeout")
	p := &Process{
		PIDFile: o.at("pid_file").file(""),
		User:    o.at("user").text(),
		Start:   o.at("start").argv(),
		Dir:     o.at("dir").file(o.doc.dir),
		Timeout: o.at("timeout").duration(30*time.Second, shortestTimeout, longestTimeout),
	}
	signal, start := o.at("signal"), o.at("start")
	if p.Signal = strings.TrimPrefix(strings.ToUpper(signal.text()), "SIG"); p.Signal != "" && !slices.Contains(signals, p.Signal) {
		signal.fault("must be the name of a signal: %s", strings.Join(signals, ", "))
	}
	if !o.readable() {
		return p
	}
	if o.at("pid_file").node == nil {
		o.at("pid_file").missing("the file that holds the process's id")
	}
	switch {
	case signal.node != nil && start.node != nil:
		start.fault("stands beside signal: keep signal (the process reloads) or start (it is stopped and started anew)")
	case signal.node == nil && start.node == nil && !signal.broken && !start.broken:
		o.fault("says not how to restart: add signal: HUP, or start: [program, argument]")
	}
	return p
}

func readCommand(v value) *Command {
	c := &Command{Dir: v.doc.dir, Timeout: time.Minute}
	if v.node != nil && !v.isMapping() {
		c.Argv = v.argv()
		return c
	}
	o := v.object("argv", "dir", "timeout")
	if o.at("argv").node == nil {
		o.at("argv").missing("the program and its arguments, such as [systemctl, reload, api]")
	}
	c.Argv = o.at("argv").argv()
	c.Dir = o.at("dir").file(v.doc.dir)
	c.Timeout = o.at("timeout").duration(time.Minute, shortestTimeout, longestTimeout)
	return c
}

func readHTTPCall(v value) *HTTPCall {
	c := &HTTPCall{Method: "POST", Timeout: 10 * time.Second}
	if v.node != nil && v.node.Kind == yaml.ScalarNode {
		c.URL = v.url("http", "https")
		return c
	}
	o := v.object("url", "method", "timeout", "token_file")
	if o.at("url").node == nil && o.readable() {
		o.at("url").missing("where the request goes")
	}
	c.URL = o.at("url").url("http", "https")
	c.Method = o.at("method").choice("POST", "POST", "PUT", "PATCH", "GET", "DELETE")
	c.Timeout = o.at("timeout").duration(10*time.Second, shortestTimeout, longestTimeout)
	c.TokenFile = o.at("token_file").file("")
	return c
}

func readHealth(v value) Health {
	if v.node == nil {
		return Health{}
	}
	o := v.object("http", "command", "timeout")
	h := Health{
		HTTP:    o.at("http").url("http", "https"),
		Command: o.at("command").argv(),
		Timeout: o.at("timeout").duration(30*time.Second, shortestTimeout, longestTimeout),
	}
	if v.isMapping() && o.at("http").node == nil && o.at("command").node == nil {
		o.fault("checks nothing: add http: URL, or command: [program, argument]")
	}
	return h
}

func readProbes(v value) []Probe {
	var out []Probe
	for _, item := range v.list() {
		kind, body := item.variant("probe", []string{"sql", "pool"})
		switch kind {
		case "sql":
			p := Probe{SQL: body.raw()}
			if body.node == nil || body.node.Kind == yaml.ScalarNode && strings.TrimSpace(body.node.Value) == "" {
				body.missing("write a statement, such as SELECT 1")
			}
			out = append(out, p)
		case "pool":
			o := body.object("connections")
			if o.at("connections").node == nil && o.readable() {
				o.at("connections").missing("how many to open at once, such as 10")
			}
			out = append(out, Probe{Pool: &Pool{Connections: o.at("connections").integer(0, 1, 1000)}})
		}
	}
	return out
}

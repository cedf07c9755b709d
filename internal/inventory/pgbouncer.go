package inventory

import (
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// consoleKeys are those of an account, but for its database, since pgbouncer calls
// the console's its own name, and for channel binding, which it does not offer.
var consoleKeys = append([]string{"host", "port"}, slices.DeleteFunc(slices.Clone(accountKeys), func(key string) bool { return key == "database" || key == "channel_binding" })...)

const (
	consoleDatabase = "pgbouncer"
	consolePort     = 6432
)

func (o object) console() Console {
	host := o.at("host")
	c := Console{
		Account: o.account(Account{Database: consoleDatabase, ChannelBinding: "prefer"}),
		Host:    host.text(),
		Port:    uint16(o.at("port").integer(consolePort, 1, 65535)),
	}
	if host.node == nil {
		c.Host = "127.0.0.1"
	}
	if c.Host != "" && !isHost(c.Host) {
		host.fault("must be a TCP host name or address alone: no port, brackets, URL or socket folder")
	}
	return c
}

func readUserlist(v value, c *Credential) *Userlist {
	o := v.object(append([]string{"userlist", "auth_file"}, consoleKeys...)...)
	s := &Userlist{Path: o.sinkPath("userlist"), AuthFile: o.at("auth_file").text(), Console: o.console()}
	if s.AuthFile == "" {
		s.AuthFile = s.Path
	}
	if slices.Contains(c.Logins(), s.Console.User) {
		o.at("user").fault("is a login of this credential, and Pawl would lock itself out of the console: name another of pgbouncer's admin_users")
	}
	for _, login := range c.Logins() {
		o.at("userlist").claimLines(s.Path, login, anyHost)
	}
	return s
}

func readReconnect(v value) *Reconnect {
	o := v.object(append([]string{"timeout"}, consoleKeys...)...)
	return &Reconnect{Console: o.console(), Timeout: o.at("timeout").duration(30*time.Second, shortestTimeout, longestTimeout)}
}

// anyHost is what a password file writes for every host or port.
const anyHost = "*"

func readPgpass(v value, c *Credential) *Pgpass {
	o := v.object("path", "hosts")
	s := &Pgpass{Path: o.sinkPath("path")}
	hosts := o.at("hosts")
	for _, item := range hosts.list() {
		if text := item.serverAddress(); text != "" {
			s.Hosts = append(s.Hosts, text)
		}
	}
	switch {
	case hosts.isEmptyList():
		hosts.fault("is an empty list: name the servers as the file does, such as [\"db.example.org:5432\"], or delete the line")
	case hosts.node == nil && c.Cluster != nil:
		for _, n := range c.Members() {
			s.Hosts = append(s.Hosts, n.Address())
		}
	}
	for _, login := range c.Logins() {
		o.at("path").claimLines(s.Path, login, s.Hosts...)
	}
	return s
}

// serverAddress is host:port, either of which may be *; the host may be a socket
// folder.
func (v value) serverAddress() string {
	text := v.text()
	if text == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil || host != anyHost && !strings.HasPrefix(host, "/") && !isHost(host) {
		v.fault("must be host:port as the file's lines have them, such as \"db.example.org:5432\"; * stands for any")
		return ""
	}
	if port != anyHost {
		v.checkPort(port, 1)
	}
	return text
}

// claimLines refuses a second writer of a login's lines: those for these
// servers, or for any.
func (v value) claimLines(path, login string, hosts ...string) {
	key := url.PathEscape(login) // without brackets
	if slices.ContainsFunc(hosts, func(host string) bool { return strings.Contains(host, anyHost) }) {
		v.claim(path, key)
		return
	}
	for _, host := range slices.Compact(slices.Sorted(slices.Values(hosts))) {
		v.claim(path, key+"["+host+"]")
	}
}

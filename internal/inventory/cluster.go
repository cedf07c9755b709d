package inventory

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

func readCluster(v value, environments map[string]Environment) *Cluster {
	v.checkName(v.key)
	o := v.object("environment", "admin", "observer", "nodes", "sslmode", "sslrootcert")
	c := &Cluster{Name: v.key, Environment: o.at("environment").text()}
	o.at("environment").reference("environment", slices.Collect(maps.Keys(environments)))
	if o.at("admin").node == nil {
		o.at("admin").missing("write {user: …, password_file: …}; `pawl init --admin-sql` prints the rights it needs")
	} else {
		c.Admin = readAccount(o.at("admin"), Account{Database: "postgres", SSLMode: o.at("sslmode").optional("", sslModes...), SSLRootCert: o.at("sslrootcert").file("")})
	}
	c.Observer = c.Admin
	if observer := o.at("observer"); observer.isNone() {
		c.Unobserved = true
	} else if observer.node != nil {
		c.Observer = readAccount(observer, Account{Database: c.Admin.Database, SSLMode: c.Admin.SSLMode, SSLRootCert: c.Admin.SSLRootCert, ChannelBinding: c.Admin.ChannelBinding})
	}
	if c.Observer.User == c.Admin.User {
		c.Observer.Database = c.Admin.Database // the admin stands in, and never leaves it
	}
	c.Nodes = readNodes(o.at("nodes"))
	return c
}

// isNone is for who is wanted by nobody.
func (v value) isNone() bool {
	return v.node != nil && v.node.Kind == yaml.ScalarNode && v.node.Value == "none"
}

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

var accountKeys = []string{"user", "password_file", "password_env", "database", "sslmode", "sslrootcert", "channel_binding"}

var sslModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

func readAccount(v value, defaults Account) Account {
	return v.object(accountKeys...).account(defaults)
}

// account reads the fields of an account, which may stand among others.
func (o object) account(defaults Account) Account {
	file, env := o.at("password_file"), o.at("password_env")
	a := Account{
		User:         o.at("user").text(),
		PasswordFile: file.file(""),
		PasswordEnv:  env.text(),
		Database:     o.at("database").text(),
		SSLMode:      o.at("sslmode").optional(defaults.SSLMode, sslModes...),
		SSLRootCert:  o.at("sslrootcert").file(defaults.SSLRootCert),

		ChannelBinding: o.at("channel_binding").optional(defaults.ChannelBinding, "require", "prefer", "disable"),
	}
	if a.Database == "" {
		a.Database = defaults.Database
	}
	if o.at("user").node == nil && o.readable() {
		o.at("user").missing("the role that Pawl logs in as")
	}
	o.at("user").checkIdentifier(a.User)
	o.at("database").checkIdentifier(a.Database)
	switch {
	case file.node != nil && env.node != nil:
		env.fault("stands beside password_file: keep one")
	case file.node == nil && env.node == nil && !file.broken && !env.broken && o.isMapping():
		o.fault("has no password: add password_file or password_env")
	case a.PasswordEnv != "" && !variable.MatchString(a.PasswordEnv):
		env.fault("must be the name of an environment variable, such as PAWL_ADMIN_PASSWORD")
	}
	return a
}

func readNodes(v value) map[string]Node {
	nodes := map[string]Node{}
	all := v.entries()
	if len(all) == 0 && (v.node == nil || v.isMapping()) {
		v.missing("name at least one, such as coordinator: {host: 127.0.0.1, port: 5432}")
	}
	addresses := map[string]string{}
	replicaOf := map[string]value{}
	for _, e := range all {
		var n Node
		n, replicaOf[e.key] = readNode(e)
		if other, taken := addresses[n.Address()]; taken && n.Host != "" {
			e.fault("is the same server as %s: keep one of the two", other)
		}
		addresses[n.Address()] = e.key
		nodes[e.key] = n
	}
	for _, e := range all {
		replicaOf[e.key].checkReplica(nodes[e.key], nodes)
	}
	return nodes
}

func readNode(v value) (n Node, replicaOf value) {
	v.checkName(v.key)
	o := v.object("host", "port", "replica_of")
	n = Node{
		Name:      v.key,
		Port:      uint16(o.at("port").integer(5432, 1, 65535)),
		ReplicaOf: o.at("replica_of").text(),
	}
	if o.readable() {
		n.Host = o.at("host").required("the server's TCP host name or address")
	}
	if n.Host != "" && !isHost(n.Host) {
		o.at("host").fault("must be a TCP host name or address alone: no port, brackets, URL or socket folder")
	}
	return n, o.at("replica_of")
}

// checkReplica follows replica_of up to a primary.
func (v value) checkReplica(n Node, nodes map[string]Node) {
	if n.ReplicaOf == "" {
		return
	}
	v.reference("node in this cluster", slices.Collect(maps.Keys(nodes)))
	seen := []string{n.Name}
	for n.ReplicaOf != "" {
		up, ok := nodes[n.ReplicaOf]
		if !ok {
			return // said of the node that names it
		}
		if seen = append(seen, up.Name); slices.Contains(seen[:len(seen)-1], up.Name) {
			v.fault("leads round in a circle (%s): one of them must be a primary, without replica_of", strings.Join(seen, " of "))
			return
		}
		n = up
	}
}

// checkIdentifier checks what PostgreSQL would cut short in silence.
func (v value) checkIdentifier(name string) {
	if len(name) > 63 {
		v.fault("has %d bytes: PostgreSQL's names have at most 63", len(name))
	}
}

// primaries returns the nodes that are no replicas, by name.
func (c *Cluster) primaries() []Node {
	var out []Node
	for _, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		if n := c.Nodes[name]; n.ReplicaOf == "" {
			out = append(out, n)
		}
	}
	return out
}

// Replicas returns the physical replicas of a primary by name, those that
// follow another replica among them.
func (c *Cluster) Replicas(primary Node) []Node {
	var out []Node
	for _, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		root := c.Nodes[name]
		for range c.Nodes { // no more: a circle is refused elsewhere
			if root.ReplicaOf == "" {
				break
			}
			root = c.Nodes[root.ReplicaOf]
		}
		if root.Name == primary.Name && name != primary.Name {
			out = append(out, c.Nodes[name])
		}
	}
	return out
}

package inventory

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

func (d *document) credential(v value, inv *Inventory) *Credential {
	v.checkName(v.key)
	o := v.object(append([]string{"cluster", "nodes", "database", "role", "strategy", "drain", "drain_deadline",
		"keep", "group", "publish", "consumers", "verify", "apart", "promotes", "within"}, policyKeys...)...)
	c := &Credential{
		Name:          v.key,
		Database:      cmp.Or(o.at("database").text(), "postgres"),
		Role:          o.at("role").required("the PostgreSQL role that applications log in as"),
		Strategy:      readStrategy(o.at("strategy")),
		Drain:         o.at("drain").duration(2*time.Minute, 0, 30*day),
		DrainDeadline: o.at("drain_deadline").duration(24*time.Hour, time.Second, 90*day),
		Keep:          o.at("keep").duration(time.Hour, 0, 90*day),
		Group:         o.at("group").text(),
	}
	cluster := o.at("cluster")
	name := cluster.required("the cluster that the role is in")
	cluster.reference("cluster", slices.Collect(maps.Keys(inv.Clusters)))
	var policy Environment
	if c.Cluster = inv.Clusters[name]; c.Cluster != nil {
		policy = inv.Environments[c.Cluster.Environment]
		c.Nodes = readPrimaries(o.at("nodes"), c.Cluster)
	}
	c.RotateEvery = o.at("rotate_every").rotateEvery(policy.RotateEvery)
	c.Policy = o.policy(policy.Policy)
	c.PasswordLength, c.PasswordAlphabet = o.passwords(policy.PasswordLength, policy.PasswordAlphabet)
	d.policies[c.Name] = o
	if c.DrainDeadline <= c.Drain {
		at := o.at("drain_deadline")
		if at.node == nil {
			at = o.at("drain")
		}
		at.fault("drain_deadline (%s) must be longer than drain (%s)", FormatDuration(c.DrainDeadline), FormatDuration(c.Drain))
	}
	o.at("database").checkIdentifier(c.Database)
	if c.Group != "" {
		o.at("group").checkName(c.Group)
	}
	d.checkRole(o.at("role"), c)
	c.Publish = readPublish(o.at("publish"), c)
	if c.Cluster != nil && c.Role != "" {
		d.checkOwn(o.at("role"), c)
		d.checkPaths(o.at("publish"), c)
		d.checkDatabase(o.at("database"), c)
	}
	c.Consumers = readConsumers(o.at("consumers"))
	c.Verify = readProbes(o.at("verify"))
	d.groups[c.Name] = groupPlaces{o.at("group"), o.at("consumers")}
	return c
}

func readStrategy(v value) string {
	if v.node == nil {
		v.missing("alternating (two logins in turn, no failed login) or in-place (only the password changes)")
		return ""
	}
	return v.choice("", Alternating, InPlace)
}

// readPrimaries returns the nodes on which the role is changed.
func readPrimaries(v value, cluster *Cluster) []Node {
	if v.node == nil && !v.broken {
		return cluster.primaries()
	}
	var out []Node
	for _, item := range v.list() {
		name := item.text()
		node, known := cluster.Nodes[name]
		switch {
		case !known:
			item.reference("node in cluster "+cluster.Name, slices.Collect(maps.Keys(cluster.Nodes)))
		case node.ReplicaOf != "":
			item.fault("%s is a physical replica: it has no password of its own, it follows its primary %s: name primaries alone", name, node.ReplicaOf)
		case slices.Contains(out, node):
			item.fault("%s stands twice: keep one", name)
		default:
			out = append(out, node)
		}
	}
	if v.isEmptyList() {
		v.fault("is an empty list: name a primary, or delete the line")
	}
	return out
}

// checkRole refuses names that cannot be managed, and logins that two
// credentials would fight over.
func (d *document) checkRole(v value, c *Credential) {
	if c.Role == "" {
		return
	}
	lower := strings.ToLower(c.Role)
	switch {
	case len(c.Role) > 63:
		v.checkIdentifier(c.Role)
	case c.Strategy == Alternating && len(c.Sibling()) > 63:
		v.fault("has %d bytes: alternating adds %s for the second login, and PostgreSQL's names have at most 63: use in-place, or a name of 61", len(c.Role), siblingSuffix)
	case strings.HasPrefix(c.Role, "pg_") || lower == "public" || lower == "none":
		v.fault("is a name that PostgreSQL keeps for itself: name a login role")
	}
	if c.Cluster == nil {
		return
	}
	d.claimLogins(v, c)
}

// claimLogins compares by server: the same role may exist on each worker, with a
// password of its own, and two clusters of the file may name the same server.
func (d *document) claimLogins(v value, c *Credential) {
	for _, n := range c.Nodes {
		for _, login := range c.Logins() {
			key := n.Address() + "\x00" + login
			if other, taken := d.logins[key]; taken && other != c.Name {
				v.fault("the login %.63q on %s belongs to the credential %s already: a login is one credential's", login, n.Address(), other)
				return
			}
			d.logins[key] = c.Name
		}
	}
}

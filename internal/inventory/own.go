package inventory

import (
	"maps"
	"slices"
)

// OwnAccount is one of the two that Pawl itself has on a cluster.
type OwnAccount struct {
	Cluster *Cluster
	*Account
}

// accounts of a cluster; one, where the admin is its own observer.
func (c *Cluster) accounts() []OwnAccount {
	if c.Observer.User == c.Admin.User && c.Observer.PasswordFile == c.Admin.PasswordFile && c.Observer.PasswordEnv == c.Admin.PasswordEnv {
		return []OwnAccount{{c, &c.Admin}}
	}
	return []OwnAccount{{c, &c.Admin}, {c, &c.Observer}}
}

// ByHand returns the accounts of the selected clusters and environments that are no
// credential, so that nobody but a person changes their passwords.
func (i *Inventory) ByHand(s Selection) []OwnAccount {
	var found []OwnAccount
	for _, name := range slices.Sorted(maps.Keys(i.Clusters)) {
		c := i.Clusters[name]
		if !s.All && !slices.Contains(s.Clusters, name) && !slices.Contains(s.Environments, c.Environment) {
			continue
		}
		for _, a := range c.accounts() {
			if a.Credential == "" {
				found = append(found, a)
			}
		}
	}
	return found
}

// checkSchemas warns of clusters that have schema pawl in common: each script of
// --admin-sql gives the rights to the roles of one of them alone. It is no fault, since
// an admin with wider rights goes on without those.
func (d *document) checkSchemas(clusters []value, inv *Inventory) {
	for n, v := range clusters {
		for _, before := range clusters[:n] {
			first, second := inv.Clusters[before.key], inv.Clusters[v.key]
			if first != second && first.Admin.Database == second.Admin.Database && first.shares(second) {
				v.warn("its admin uses database %.63q on a server of cluster %s, too: what `pawl init --admin-sql` prints for one takes the rights from the other. Fix: make them one cluster, or give this one an admin of its own with another database", second.Admin.Database, first.Name)
			}
		}
	}
}

// readsPasswords remembers which accounts read which file.
func (d *document) readsPasswords(c *Cluster) {
	for _, a := range c.accounts() {
		if a.PasswordFile != "" {
			file := d.resolve(a.PasswordFile)
			d.accounts[file] = append(d.accounts[file], a)
		}
	}
}

// checkOwn is for a credential whose role is one that Pawl itself logs in as:
// it may turn only so that Pawl follows at once, on every node.
func (d *document) checkOwn(v value, c *Credential) {
	for _, a := range c.Cluster.accounts() {
		switch {
		case !slices.Contains(c.Logins(), a.User):
			continue
		case a.User != c.Role:
			v.fault("the second login, %.63q, is whom Pawl itself logs in as here, and it would lock itself out half-way: use another admin or observer", a.User)
		case c.Strategy != Alternating:
			v.fault("Pawl itself logs in as %.63q here, and would lock itself out half-way: use strategy alternating", a.User)
		case a.PasswordEnv != "":
			v.fault("Pawl itself logs in as %.63q here, and cannot write the environment variable %s: give the account a password_file", a.User, a.PasswordEnv)
		case !slices.ContainsFunc(c.Publish, func(s Sink) bool {
			return s.File != nil && s.File.Format == FormatJSON && d.resolve(s.File.Path) == d.resolve(a.PasswordFile)
		}):
			v.fault("Pawl itself logs in as %.63q here, and must be told the new login: add to publish - file: {path: %s, format: json}", a.User, a.PasswordFile)
		case len(c.Nodes) != len(c.Cluster.primaries()):
			v.fault("Pawl itself logs in as %.63q on every node of %s, with one password: name all its primaries in nodes, or none", a.User, c.Cluster.Name)
		default:
			d.checkShared(v, a)
			a.Credential = c.Name
		}
	}
	if c.Cluster.Observer.User == c.Cluster.Admin.User {
		c.Cluster.Observer.Credential = c.Cluster.Admin.Credential
	}
}

// checkShared refuses an account that another cluster has on the same server:
// nobody would tell it the new login.
func (d *document) checkShared(v value, a OwnAccount) {
	for _, readers := range d.accounts {
		for _, other := range readers {
			if other.Cluster != a.Cluster && other.User == a.User && other.Cluster.shares(a.Cluster) {
				v.fault("cluster %s logs in as %.63q on the same server: give it an account of its own", other.Cluster.Name, a.User)
				return
			}
		}
	}
}

func (c *Cluster) shares(other *Cluster) bool {
	for _, n := range c.Nodes {
		for _, m := range other.Nodes {
			if n.Address() == m.Address() {
				return true
			}
		}
	}
	return false
}

// checkPaths refuses a sink in a file from which Pawl reads the password of
// another account.
func (d *document) checkPaths(v value, c *Credential) {
	for _, s := range c.Publish {
		path := ""
		switch {
		case s.Dotenv != nil:
			path = s.Dotenv.Path
		case s.File != nil:
			path = s.File.Path
		}
		if path == "" {
			continue
		}
		for _, a := range d.accounts[d.resolve(path)] {
			if a.Cluster != c.Cluster || a.User != c.Role {
				v.fault("writes to %s, from which Pawl reads the password of %.63q for cluster %s: name another file, or give that account one of its own", path, a.User, a.Cluster.Name)
			}
		}
	}
}

// IsOwn reports whether Pawl itself logs in with the credential.
func (c *Credential) IsOwn() bool {
	if c.Cluster == nil {
		return false
	}
	for _, a := range c.Cluster.accounts() {
		if a.Credential == c.Name {
			return true
		}
	}
	return false
}

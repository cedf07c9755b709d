package inventory

import (
	"fmt"
	"maps"
	"slices"
)

// HasObserver reports whether the cluster has an account of its own that looks.
// Without one the admin stands in, and never leaves its own database.
func (c *Cluster) HasObserver() bool {
	return c.Observer.User != "" && !slices.Contains(c.Admin.Logins(), c.Observer.User)
}

// LoginDatabase is the database in which a login of the credential is tried. The
// admin's own logins are tried in the admin's database, whatever else is written.
func (c *Credential) LoginDatabase() string {
	if slices.Contains(c.Cluster.Admin.Logins(), c.Role) {
		return c.Cluster.Admin.Database
	}
	return c.Database
}

// Unseen says what Pawl cannot see inside the credential's database because the
// cluster has no observer, and the fix; empty if it can see all of it.
func (c *Credential) Unseen() string {
	if unseen := c.unseen(); unseen != "" {
		return "clusters." + c.Cluster.Name + ".observer: " + unseen
	}
	return ""
}

// Unobserved says why the credential must not be adopted, and the fix: nobody can
// look into its database, and pawl.yaml does not say that nobody is to. Empty if it
// may. One that has been adopted goes on.
func (c *Credential) Unobserved() string {
	if c.Cluster == nil || c.Cluster.Unobserved {
		return ""
	}
	return c.Unseen()
}

func (c *Credential) unseen() string {
	if c.Cluster.HasObserver() || c.LoginDatabase() == c.Cluster.Admin.Database {
		return ""
	}
	is, unless := "is missing", ", or write observer: none"
	if c.Cluster.Unobserved {
		is, unless = "is none", ""
	}
	return fmt.Sprintf("%s, and the admin never logs in to database %.63q: the row-level policies there are seen only by the new login, when it is verified, and an emergency keeps no evidence from there. "+
		"Fix: add {user: pawl_observer, password_file: …}, and run what `pawl init --admin-sql` prints%s", is, c.Database, unless)
}

// checkDatabase warns if the admin logs in to a database that is written down as
// an application's: its owner decides what a session finds there.
func (d *document) checkDatabase(v value, c *Credential) {
	if v.node != nil && c.Database == c.Cluster.Admin.Database && !c.IsOwn() {
		v.warn("is where the admin logs in, too, and whoever owns a database decides what a session finds there. Fix: name another one in clusters.%s.admin.database, and run there what `pawl init --admin-sql` prints", c.Cluster.Name)
	}
}

// checkObserver warns once of a cluster that needs an observer and has none.
func (d *document) checkObserver(v value, inv *Inventory) {
	for _, name := range slices.Sorted(maps.Keys(inv.Credentials)) {
		c := inv.Credentials[name]
		if c.Cluster == nil || c.Cluster != inv.Clusters[v.key] {
			continue
		}
		if unseen := c.unseen(); unseen != "" {
			v.path += ".observer"
			v.warn("%s", unseen)
			return
		}
	}
}

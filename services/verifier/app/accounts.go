package app

import (
	"sync"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
)

// accounts keeps the observer's and the admin's sessions open: logins are what
// a rotation costs.
type accounts struct {
	others postgres.Others
	mu     sync.Mutex
	open   map[accountKey]*postgres.Admin
}

type accountKey struct{ cluster, node, user, database string }

func (a *accounts) on(c *inventory.Credential, node inventory.Node, account inventory.Account) (*postgres.Admin, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := accountKey{c.Cluster.Name, node.Name, account.User, account.Database}
	if admin, ok := a.open[key]; ok {
		return admin, nil
	}
	admin, err := postgres.NewAdmin(node, account, a.others)
	if err != nil {
		return nil, err
	}
	if a.open == nil {
		a.open = map[accountKey]*postgres.Admin{}
	}
	a.open[key] = admin
	return admin, nil
}

// inDatabase is the observer where applications connect to.
func (a *accounts) inDatabase(c *inventory.Credential, node inventory.Node) (*postgres.Admin, error) {
	account := c.Cluster.Observer
	account.Database = c.Database
	return a.on(c, node, account)
}

func (a *accounts) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, admin := range a.open {
		admin.Close()
	}
	a.open = nil
}

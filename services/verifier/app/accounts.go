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

// admin is the admin's, which only reads here.
func (a *accounts) admin(c *inventory.Credential, node inventory.Node) (*postgres.Admin, error) {
	return a.on(c, node, c.Cluster.Admin.User, c.Cluster.Admin.Database, func() (*postgres.Admin, error) {
		return postgres.NewReader(node, c.Cluster, a.others)
	})
}

// observer is the observer in its own database.
func (a *accounts) observer(c *inventory.Credential, node inventory.Node) (*postgres.Admin, error) {
	return a.observerIn(c, node, c.Cluster.Observer.Database)
}

// observerIn is the observer in any database.
func (a *accounts) observerIn(c *inventory.Credential, node inventory.Node, database string) (*postgres.Admin, error) {
	return a.on(c, node, c.Cluster.Observer.User, database, func() (*postgres.Admin, error) {
		return postgres.NewObserver(node, c.Cluster, database, a.others)
	})
}

// on returns what is open, or opens it.
func (a *accounts) on(c *inventory.Credential, node inventory.Node, user, database string, open func() (*postgres.Admin, error)) (*postgres.Admin, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := accountKey{c.Cluster.Name, node.Name, user, database}
	if account, ok := a.open[key]; ok {
		return account, nil
	}
	account, err := open()
	if err != nil {
		return nil, err
	}
	if a.open == nil {
		a.open = map[accountKey]*postgres.Admin{}
	}
	a.open[key] = account
	return account, nil
}

func (a *accounts) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, admin := range a.open {
		admin.Close()
	}
	a.open = nil
}

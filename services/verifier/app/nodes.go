package app

import (
	"sync"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
)

// onEach does work on every node at once. A node that fails keeps no other from
// its turn; every error is returned.
func onEach(nodes []inventory.Node, work func(inventory.Node) error) error {
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, node := range nodes {
		all.Go(func() { errs[i] = work(node) })
	}
	all.Wait()
	return saga.Join(errs)
}

// set is a primary and its replicas: servers that share one catalogue, and of
// which one takes writes.
func set(c *inventory.Credential, primary inventory.Node) []inventory.Node {
	return append([]inventory.Node{primary}, c.Cluster.Replicas(primary)...)
}

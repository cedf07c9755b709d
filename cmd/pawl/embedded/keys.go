package embedded

import (
	"fmt"
	"slices"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/trail"
)

// CreateKeys makes every key file that is missing (sealing, audit, store, NATS users)
// and returns their paths; it never overwrites.
func CreateKeys(inv *inventory.Inventory) (created []string, err error) {
	created, err = sealed.CreateKeys(inv.KeysDir)
	if err != nil {
		return created, fmt.Errorf("keys_dir: %w", err)
	}
	audit, err := trail.CreateKeys(inv.KeysDir)
	created = append(created, audit...)
	if err != nil {
		return created, fmt.Errorf("keys_dir: %w", err)
	}
	store, err := CreateStoreKey(inv)
	if err != nil {
		return created, err
	}
	if store != "" {
		created = append(created, store)
	}
	seeds, err := bus.CreateSeeds(inv)
	return slices.Concat(created, seeds), err
}

package embedded

import (
	"fmt"
	"slices"

	"pawl.dev/cmd/pawl/backup"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/trail"
)

// CreateKeys makes every key file that is missing (sealing, audit, backups, NATS users)
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
	forBackups, err := backup.CreateKey(inv)
	created = append(created, forBackups...)
	if err != nil {
		return created, fmt.Errorf("keys_dir: %w", err)
	}
	seeds, err := bus.CreateSeeds(inv)
	return slices.Concat(created, seeds), err
}

package bus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nkeys"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/newfile"
)

// SeedFile is where a user's nkey seed lies: the clients' in data_dir, where
// `nats --nkey` finds them; the services' beside the other keys.
func SeedFile(inv *inventory.Inventory, user string) string {
	if user == Requester || user == Operator || strings.HasPrefix(user, sourcePrefix) {
		return filepath.Join(inv.DataDir, "clients", user+".nk")
	}
	return filepath.Join(inv.KeysDir, "nats", user+".nk")
}

// LoadSeed reads an nkey seed.
func LoadSeed(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("NATS key: %w (`pawl init` makes it)", err)
	}
	seed := bytes.TrimSpace(raw)
	if _, err := nkeys.FromSeed(seed); err != nil {
		return nil, fmt.Errorf("NATS key %s: not an nkey seed: %w", path, err)
	}
	return seed, nil
}

// CreateSeeds makes the missing seeds of every user and returns their files; it
// never overwrites.
func CreateSeeds(inv *inventory.Inventory) (created []string, err error) {
	for _, user := range UsersOf(inv) {
		path := SeedFile(inv, user)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return created, fmt.Errorf("NATS key: %w", err)
		}
		pair, err := nkeys.CreateUser()
		if err != nil {
			return created, fmt.Errorf("NATS key: %w", err)
		}
		seed, err := pair.Seed()
		if err != nil {
			return created, fmt.Errorf("NATS key: %w", err)
		}
		err = newfile.Write(path, append(seed, '\n'))
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return created, fmt.Errorf("NATS key: %w", err)
		}
		created = append(created, path)
	}
	return created, nil
}

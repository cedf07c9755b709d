package embedded

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"pawl.dev/internal/inventory"
)

func storeKeyFile(inv *inventory.Inventory) string { return filepath.Join(inv.KeysDir, "store.key") }

// CreateStoreKey makes the key that encrypts the embedded store, if it is
// missing; created is its path then. It never overwrites.
func CreateStoreKey(inv *inventory.Inventory) (created string, err error) {
	if err := os.MkdirAll(inv.KeysDir, 0o700); err != nil {
		return "", fmt.Errorf("store key: %w", err)
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return "", fmt.Errorf("store key: %w", err)
	}
	f, err := os.OpenFile(storeKeyFile(inv), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("store key: %w", err)
	}
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return "", fmt.Errorf("store key: %w", err)
	}
	return storeKeyFile(inv), nil
}

// storeKey reads the key and proves that it is the one the store was written
// with. Started with another key, the server would come up empty, and making
// its streams anew would delete what it could not read.
func storeKey(inv *inventory.Inventory, store string) ([]byte, error) {
	raw, err := os.ReadFile(storeKeyFile(inv))
	if err != nil {
		return nil, fmt.Errorf("store key: %w (`pawl init` makes it for a new store; an existing one needs the key it was written with)", err)
	}
	key := []byte(strings.TrimSpace(string(raw)))
	if len(key) != 64 {
		return nil, fmt.Errorf("store key %s: want 64 hexadecimal digits", storeKeyFile(inv))
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("pawl store key fingerprint"))
	want := hex.EncodeToString(mac.Sum(nil))

	file := filepath.Join(store, "key.fingerprint")
	have, err := os.ReadFile(file)
	switch {
	case err == nil && strings.TrimSpace(string(have)) == want:
		return key, nil
	case err == nil:
		return nil, fmt.Errorf("store key %s is not the one that %s was written with: nothing was opened; put the right key back", storeKeyFile(inv), store)
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("store key fingerprint: %w", err)
	}
	if _, err := os.Stat(filepath.Join(store, "jetstream")); err == nil {
		return nil, fmt.Errorf("%s holds a store but no key.fingerprint: cannot tell whether the key fits, so nothing was opened", store)
	}
	if err := os.MkdirAll(store, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := os.WriteFile(file, []byte(want+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("store key fingerprint: %w", err)
	}
	return key, nil
}

package embedded

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"pawl.dev/cmd/pawl/store"
	"pawl.dev/internal/inventory"
)

// decrypt migrates a store of a version that had NATS encrypt it.
func decrypt(s store.Store, inv *inventory.Inventory) error {
	if err := s.FinishMigration(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	encrypted, err := s.Encrypted()
	if err != nil || !encrypted {
		return err
	}
	key, err := storeKey(s, filepath.Join(inv.KeysDir, "store.key"))
	if err != nil {
		return err
	}
	_, err = s.Decrypt(key)
	return err
}

// storeKey reads the key that an encrypted store was written with.
func storeKey(s store.Store, path string) (string, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("store key: %w (%s is encrypted: it needs the key it was written with)", err, s.Dir)
	}
	if err != nil {
		return "", fmt.Errorf("store key: %w", err)
	}
	key := strings.TrimSpace(string(raw))
	if len(key) != 64 {
		return "", fmt.Errorf("store key %s: want 64 hexadecimal digits", path)
	}
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte("pawl store key fingerprint"))
	if err := s.CheckKey(hex.EncodeToString(mac.Sum(nil))); err != nil {
		return "", fmt.Errorf("store key %s is not the one that %s was written with (%w): nothing was opened; put the right key back", path, s.Dir, err)
	}
	return key, nil
}

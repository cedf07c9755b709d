package natsconf

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// storeKey makes the key by which a node encrypts what it stores, once.
func (w *writer) storeKey(path string) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("store key: %w", err)
	}
	text := fmt.Sprintf("# What this node has stored is lost without this key.\nkey: %q\n", hex.EncodeToString(key))
	if err := w.create(path, []byte(text)); err != nil {
		return fmt.Errorf("store key: %w", err)
	}
	return nil
}

// Package keyring deals keys out: to each user of the bus, a folder of those
// that it needs, for a container, a Docker secret or another machine.
package keyring

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
)

// Deal copies to out/USER the keys of each user, read-only to owner (-1: whoever
// calls), and returns the files written. What is there and right is left alone.
// The folders stay the caller's, so that an owner cannot change what it was given.
func Deal(inv *inventory.Inventory, out string, owner int) (written []string, err error) {
	for _, user := range bus.UsersOf(inv) {
		for _, k := range keysOf(inv, user) {
			to := filepath.Join(out, user, k.as)
			fresh, err := put(k.from, to, owner)
			if err != nil {
				return written, fmt.Errorf("keys of %s: %w", user, err)
			}
			if fresh {
				written = append(written, to)
			}
		}
	}
	return written, nil
}

// Files lists a user's keys on a bus with TLS, by their names among its own.
func Files(user string) (names []string) {
	for _, k := range keysOf(&inventory.Inventory{NATS: inventory.NATS{URL: "tls://"}}, user) {
		names = append(names, k.as)
	}
	return names
}

// key is a file of the whole installation, and its name among a user's own.
type key struct{ from, as string }

func keysOf(inv *inventory.Inventory, user string) []key {
	seed := key{bus.SeedFile(inv, user), filepath.Join("nats", user+".nk")}
	var names []string
	if inv.NATS.TLS() {
		names = []string{"tls/ca.pem", "tls/" + user + ".pem", "tls/" + user + ".key"}
	}
	if slices.Contains(sealed.Recipients, user) {
		names = append(names, "sealing/"+user+".agekey", "sealing/fingerprint.key")
		for _, recipient := range sealed.Recipients {
			names = append(names, "sealing/"+recipient+".agepub")
		}
	}
	switch user {
	case saga.DBRotator:
		names = append(names, "sealing/incident.agepub") // seals evidence, and opens none
	case saga.Auditor:
		names = append(names, "audit/auditor.key", "audit/auditor.pub")
	case bus.Operator:
		names = append(names, "sealing/incident.agepub", "audit/auditor.pub")
	}
	if filepath.Base(filepath.Dir(seed.from)) == "clients" {
		seed.as = filepath.Join("clients", user+".nk") // of its data_dir
	}
	keys := []key{seed}
	for _, name := range names {
		keys = append(keys, key{filepath.Join(inv.KeysDir, name), name})
	}
	return keys
}

// put copies a key, unless it is there already.
func put(from, to string, owner int) (fresh bool, err error) {
	text, err := os.ReadFile(from)
	if err != nil {
		return false, fmt.Errorf("%w (`pawl init` and `pawl nats-config` make the keys)", err)
	}
	if have, err := os.ReadFile(to); err == nil && bytes.Equal(have, text) {
		return false, nil
	}
	folder := os.FileMode(0o700)
	if owner >= 0 {
		folder = 0o755 // the owner of the files is another than the folder's
	}
	if err := os.MkdirAll(filepath.Dir(to), folder); err != nil {
		return false, err
	}
	pending, err := renameio.NewPendingFile(to, renameio.WithPermissions(0o400))
	if err != nil {
		return false, err
	}
	defer pending.Cleanup()
	if _, err := pending.Write(text); err != nil {
		return false, err
	}
	if owner >= 0 {
		if err := pending.Chown(owner, owner); err != nil {
			return false, fmt.Errorf("--owner: only root can give a file away: %w", err)
		}
	}
	return true, pending.CloseAtomicallyReplace()
}

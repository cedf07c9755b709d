package keyring_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pawl.dev/cmd/pawl/embedded"
	"pawl.dev/cmd/pawl/keyring"
	"pawl.dev/cmd/pawl/natsconf"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/trail"
)

// A folder that lacks a key is a service that does not start; one with a key too
// many is a service that opens what is not its own.
func TestEachUserHasItsKeysAndNoOther(t *testing.T) {
	dir := t.TempDir()
	inv := &inventory.Inventory{DataDir: filepath.Join(dir, "data"), KeysDir: filepath.Join(dir, "keys"), NATS: inventory.NATS{URL: "tls://nats:4222"}}
	if _, err := embedded.CreateKeys(inv); err != nil {
		t.Fatal(err)
	}
	if _, err := natsconf.Write(inv, natsconf.Options{Out: filepath.Join(dir, "nats"), Nodes: []natsconf.Node{{Name: "nats"}}}); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "dealt")
	written, err := keyring.Deal(inv, out, -1)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := keyring.Deal(inv, out, -1); err != nil || len(again) > 0 {
		t.Errorf("a second time it writes %v, %v", again, err)
	}
	for _, user := range bus.Users {
		own := filepath.Join(out, user)
		its := &inventory.Inventory{DataDir: own, KeysDir: own, NATS: inv.NATS}
		if _, err := bus.For(its, user); err != nil {
			t.Errorf("%s cannot join the bus: %v", user, err)
		}
		if slices.Contains(sealed.Recipients, user) {
			if _, err := sealed.LoadKeys(own, user); err != nil {
				t.Error(err)
			}
		}
		for _, path := range private(t, own) {
			if !strings.Contains(filepath.Base(path), user) && filepath.Base(path) != "fingerprint.key" {
				t.Errorf("%s holds %s", user, path)
			}
		}
	}
	if _, err := trail.LoadSigner(filepath.Join(out, saga.Auditor)); err != nil {
		t.Error(err)
	}
	for _, user := range []string{saga.DBRotator, bus.Operator} {
		if key, err := sealed.LoadIncidentKey(filepath.Join(out, user)); err != nil {
			t.Errorf("%s cannot seal evidence: %v, %v", user, key, err)
		}
	}
	for _, path := range written {
		if strings.Contains(path, "store") || strings.Contains(path, "ca.key") || strings.HasSuffix(path, "incident.agekey") {
			t.Errorf("%s is nobody's but the person's", path)
		}
	}
}

// private lists the files of a folder that hold a private key; all are read-only.
func private(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm() != 0o400 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		switch filepath.Ext(path) {
		case ".nk", ".key", ".agekey":
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

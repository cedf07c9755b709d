package embedded

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pawl.dev/internal/condition"
)

// TestLostDataDirLooksLikeANewInstallation: an empty store beside backups is told of,
// one without backups, and one that was there before, are not.
func TestLostDataDirLooksLikeANewInstallation(t *testing.T) {
	s, inv := startOn(t, t.TempDir(), nil)
	if isNew(inv) {
		t.Error("a store that is there is called new")
	}
	s.Stop()
	for _, lost := range []string{"nats", "streams-made"} {
		if isNew(inv) {
			t.Error("a store of which something is left is called new")
		}
		if err := os.RemoveAll(filepath.Join(inv.DataDir, lost)); err != nil {
			t.Fatal(err)
		}
	}
	if !isNew(inv) {
		t.Error("an empty data_dir is not called new")
	}
	inv.Backup.To = t.TempDir()
	conditions := &condition.Set{}
	if text := tellNew(inv, conditions); text != "" || len(conditions.List()) > 0 {
		t.Errorf("without a backup: %s", text)
	}
	file := filepath.Join(inv.Backup.To, "pawl-20261129T210000.000Z.backup")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if tellNew(inv, conditions); len(conditions.List()) != 1 || !strings.Contains(conditions.List()[0].Text, file) {
		t.Errorf("beside a backup: %v", conditions.List())
	}
}

package backup

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
)

func at(hours int) time.Time {
	return time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC).Add(time.Duration(hours) * time.Hour)
}

// fill makes backups of those hours, and something of somebody else's.
func fill(t *testing.T, hours ...int) string {
	t.Helper()
	dir := t.TempDir()
	names := []string{"pawl-notes.backup", "README", "pawl-20261129T000000.000Z.backup.part"}
	for _, h := range hours {
		names = append(names, fileName(at(h)))
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPruneDeletesTheNewestOrWhatIsNotItsOwn(t *testing.T) {
	for name, c := range map[string]struct {
		keep inventory.Backup
		now  int
		want []int
	}{
		"by number":                  {inventory.Backup{KeepCount: 2}, 4, []int{2, 3}},
		"by age":                     {inventory.Backup{KeepFor: 2 * time.Hour}, 4, []int{2, 3}},
		"the clock is far ahead":     {inventory.Backup{KeepFor: time.Hour}, 1000, []int{2, 3}}, // not all at once
		"one, by number":             {inventory.Backup{KeepCount: 1}, 4, []int{3}},
		"the clock was set far back": {inventory.Backup{KeepFor: time.Hour}, -1000, []int{0, 1, 2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			c.keep.To = fill(t, 0, 1, 2, 3)
			if err := prune(c.keep, at(c.now)); err != nil {
				t.Fatal(err)
			}
			left, err := list(c.keep.To)
			if err != nil {
				t.Fatal(err)
			}
			var have, want []string
			for _, s := range left {
				have = append(have, filepath.Base(s.path))
			}
			for _, h := range c.want {
				want = append(want, fileName(at(h)))
			}
			if !slices.Equal(have, want) {
				t.Errorf("left %v, want %v", have, want)
			}
			if all, _ := os.ReadDir(c.keep.To); len(all) != len(want)+3 {
				t.Errorf("something of somebody else's is gone: %v", all)
			}
		})
	}
}

func TestOldOrFailedBackupIsNotTold(t *testing.T) {
	told := &condition.Set{}
	s := &Schedule{inv: &inventory.Inventory{Backup: inventory.Backup{Every: time.Hour, To: fill(t, 0)}}, conditions: told, log: slog.Default(), began: at(0)}
	text := func() string {
		if all := told.List(); len(all) == 1 && all[0].Name == conditionName && !all[0].Failing {
			return all[0].Text
		}
		return ""
	}
	if wait := s.look(at(0).Add(time.Minute)); wait != 59*time.Minute || text() != "" {
		t.Errorf("a minute after a backup: wait %v, %q", wait, text())
	}
	if wait := s.look(at(3)); wait > 0 || !strings.Contains(text(), "one is wanted every 1h") {
		t.Errorf("three hours after a backup: wait %v, %q", wait, text())
	}
	s.failed = os.ErrPermission
	if s.look(at(0)); !strings.Contains(text(), "permission denied") {
		t.Errorf("after a backup that failed: %q", text())
	}
	s.failed = nil
	if s.look(at(1)); text() != "" {
		t.Errorf("when all is well again: %q", text())
	}
	s.inv.Backup.To = t.TempDir()
	if wait := s.look(at(1)); wait > 0 || text() != "" {
		t.Errorf("before the first backup: wait %v, %q", wait, text())
	}
	if s.look(at(9)); !strings.Contains(text(), "holds no backup") {
		t.Errorf("if there is never one: %q", text())
	}
}

// TestBackupOfAClockThatWasAheadStopsNoOther: it would be the newest for as long as the
// clock was ahead.
func TestBackupOfAClockThatWasAheadStopsNoOther(t *testing.T) {
	told := &condition.Set{}
	s := &Schedule{inv: &inventory.Inventory{Backup: inventory.Backup{Every: time.Hour, To: fill(t, 0, 24*365)}}, conditions: told, log: slog.Default(), began: at(0)}
	if wait := s.look(at(0).Add(time.Minute)); wait != 59*time.Minute {
		t.Errorf("a minute after a backup: wait %v", wait)
	}
	if wait := s.look(at(3)); wait > 0 || len(told.List()) != 1 {
		t.Errorf("three hours after it: wait %v, told %v", wait, told.List())
	}
}

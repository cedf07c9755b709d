package backup

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	"pawl.dev/internal/inventory"
)

const (
	filePrefix = "pawl-"
	fileSuffix = ".backup"
	fileTime   = "20060102T150405.000Z"
)

func fileName(at time.Time) string { return filePrefix + at.UTC().Format(fileTime) + fileSuffix }

// stored is a backup in backup.to.
type stored struct {
	path  string
	at    time.Time
	bytes int64
}

// list returns the backups in backup.to, oldest first. Files of other names are
// somebody else's.
func list(dir string) (all []stored, err error) {
	entries, err := os.ReadDir(dir) // sorted by name, which sorts by time
	if os.IsNotExist(err) {
		return nil, nil
	}
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), filePrefix)
		text, suffixed := strings.CutSuffix(text, fileSuffix)
		at, parsed := time.Parse(fileTime, text)
		if !ok || !suffixed || parsed != nil || !e.Type().IsRegular() {
			continue
		}
		if info, err := e.Info(); err == nil {
			all = append(all, stored{filepath.Join(dir, e.Name()), at, info.Size()})
		}
	}
	return all, err
}

// Newest is the newest file in backup.to, "" if there is none.
func Newest(inv *inventory.Inventory) (path string, err error) {
	all, err := list(inv.Backup.To)
	if len(all) > 0 {
		path = all[len(all)-1].path
	}
	return path, err
}

// agedAtOnce is how many backups prune deletes for their age: more than are made
// between two calls. A clock that is far ahead finds all of them old.
const agedAtOnce = 2

// prune deletes the backups that are no longer kept. The newest always stays.
func prune(b inventory.Backup, now time.Time) error {
	all, err := list(b.To)
	if err != nil {
		return err
	}
	aged := 0
	for i, s := range all {
		after := len(all) - 1 - i // how many are newer
		many := b.KeepCount > 0 && after >= b.KeepCount
		old := !many && b.KeepFor > 0 && now.Sub(s.at) > b.KeepFor
		if after == 0 || !many && !old || old && aged == agedAtOnce {
			continue
		}
		if old {
			aged++
		}
		if err := os.Remove(s.path); err != nil {
			return err
		}
	}
	return nil
}

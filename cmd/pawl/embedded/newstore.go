package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"pawl.dev/cmd/pawl/backup"
	"pawl.dev/cmd/pawl/provision"
	"pawl.dev/internal/condition"
	"pawl.dev/internal/inventory"
)

// ConditionNewStore tells of an empty store that was begun although backups are there:
// mostly of a data_dir that was lost.
const ConditionNewStore = "new-store"

// isNew reports whether the next start begins an empty store.
func isNew(inv *inventory.Inventory) bool {
	for _, path := range []string{storeDir(inv), provision.Record(inv)} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// tellNew raises the condition of an empty store if there is a backup.
func tellNew(inv *inventory.Inventory, conditions *condition.Set) (text string) {
	newest, err := backup.Newest(inv)
	if newest == "" || err != nil { // what is wrong with the folder, the schedule tells
		return ""
	}
	text = fmt.Sprintf("the store in %s was begun empty, and there are backups, the newest of which is %s. If data_dir was lost, stop Pawl and run `pawl restore`. Fix: docs/runbooks/store.md", storeDir(inv), newest)
	conditions.Raise(condition.Condition{Name: ConditionNewStore, Text: text})
	return text
}

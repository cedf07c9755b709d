// Package newfile writes files that must not be there yet, such as keys and backups.
package newfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write makes a file for its owner alone and syncs it. A file that is there stays as
// it is, and the error is fs.ErrExist. A crash leaves no part of the content under
// that name: half a key would be taken for the key.
func Write(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

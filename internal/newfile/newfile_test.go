package newfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestOnlyOneOfManyWritersMakesTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	var writers sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		writers.Go(func() { errs[i] = Write(path, []byte(strings.Repeat(string(rune('a'+i)), 1000))) })
	}
	writers.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, fs.ErrExist) {
			t.Errorf("not ErrExist: %v", err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if made != 1 || len(content) != 1000 || strings.Trim(string(content), string(content[:1])) != "" {
		t.Errorf("%d writers made it, of %d bytes from more than one of them", made, len(content))
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

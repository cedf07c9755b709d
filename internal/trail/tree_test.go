package trail

import (
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// TestEdgeGrowsTheSameTreeAsAllHashes compares every size with tlog's own tree,
// which keeps every hash, also where the tree goes on from its edge alone.
func TestEdgeGrowsTheSameTreeAsAllHashes(t *testing.T) {
	var all []tlog.Hash
	whole := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = all[index]
		}
		return found, nil
	})
	var tree Tree
	for n := range int64(600) {
		data := fmt.Appendf(nil, "record %d", n)
		hashes, err := tlog.StoredHashes(n, data, whole)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, hashes...)
		before, beforeRoot := tree, must(tree.Root())
		if tree, err = tree.With(tlog.RecordHash(data)); err != nil {
			t.Fatal(err)
		}
		if want := must(tlog.TreeHash(n+1, whole)); must(tree.Root()) != want {
			t.Fatalf("another root at %d", n+1)
		}
		if must(before.Root()) != beforeRoot {
			t.Fatalf("the tree of %d changed as another grew from it", n)
		}
		tree = must(TreeOf(n+1, must(split(join(tree.edge)))))
	}
	if _, err := TreeOf(3, tree.edge[:1]); err == nil {
		t.Error("a tree of 3 with one hash at its edge")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

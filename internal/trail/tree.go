package trail

import (
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is a Merkle tree that grows (RFC 6962, as tlog computes it). It keeps its
// right edge alone, the hashes of its perfect subtrees: at most one for each
// power of two in its size. The zero Tree is empty.
type Tree struct {
	size int64
	edge []tlog.Hash // left to right, the largest first
}

// TreeOf is the tree of that size with that edge; it is genuine if its root is.
func TreeOf(size int64, edge []tlog.Hash) (Tree, error) {
	if size < 0 || bits.OnesCount64(uint64(size)) != len(edge) {
		return Tree{}, fmt.Errorf("a tree of %d records has %d hashes at its edge, not %d", size, bits.OnesCount64(uint64(size)), len(edge))
	}
	return Tree{size, edge}, nil
}

// With is the tree with one more leaf; t stays as it was.
func (t Tree) With(leaf tlog.Hash) (Tree, error) {
	// The last is of the largest subtree that the leaf completes.
	completed, err := tlog.StoredHashesForRecordHash(t.size, leaf, t)
	if err != nil {
		return t, fmt.Errorf("append to the tree: %w", err)
	}
	merged := len(completed) - 1
	edge := append(slices.Clone(t.edge[:len(t.edge)-merged]), completed[merged])
	return Tree{t.size + 1, edge}, nil
}

// Root is the hash of the whole tree.
func (t Tree) Root() (tlog.Hash, error) { return tlog.TreeHash(t.size, t) }

// ReadHashes implements tlog.HashReader for the edge.
func (t Tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, wanted := range indexes {
		at := slices.IndexFunc(t.places(), func(index int64) bool { return index == wanted })
		if at < 0 {
			return nil, fmt.Errorf("hash %d is not at the edge of a tree of %d", wanted, t.size)
		}
		found[i] = t.edge[at]
	}
	return found, nil
}

// places are tlog's indexes of the edge.
func (t Tree) places() []int64 {
	var all []int64
	for left := int64(0); left < t.size; {
		level := bits.Len64(uint64(t.size-left)) - 1
		all = append(all, tlog.StoredHashIndex(level, left>>level))
		left += 1 << level
	}
	return all
}

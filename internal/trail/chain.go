package trail

import (
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"pawl.dev/internal/bus"
)

// Chain proves a trail as it is read, entry by entry, in stored order. It holds
// the tree up to the newest checkpoint and the records since: nothing that grows
// with the trail. The roots of all checkpoints are computed from one sequence of
// records, so that each is proved to contain the one before, unchanged.
type Chain struct {
	keys    note.Verifiers
	tree    Tree
	newest  *Checkpoint
	waiting []*Record // those that no checkpoint covers
	kept    []*Checkpoint
}

// NewChain begins at the first record; keys are whose signatures are trusted.
func NewChain(keys note.Verifiers) *Chain { return &Chain{keys: keys} }

// Resume goes on from a checkpoint, with the record after its last. What was
// before it is taken on the word of its signature.
func Resume(keys note.Verifiers, from *Checkpoint) (*Chain, error) {
	tree, err := TreeOf(from.Size, from.Edge)
	if err != nil {
		return nil, from.fault("%v", err)
	}
	if root, err := tree.Root(); err != nil || root != from.Root {
		return nil, from.fault("its hashes are not those of its root: they were altered")
	}
	return &Chain{keys: keys, tree: tree, newest: from}, nil
}

// Keep has the chain prove that it has grown from this checkpoint, which
// somebody kept elsewhere, by nothing but more records.
func (c *Chain) Keep(kept *Checkpoint) { c.kept = append(c.kept, kept) }

// Newest is the newest checkpoint; nil before the first.
func (c *Chain) Newest() *Checkpoint { return c.newest }

// Waiting are the records that no checkpoint covers yet.
func (c *Chain) Waiting() []*Record { return c.waiting }

// Add takes the next entry. Its error is a Fault, and the chain has ended.
func (c *Chain) Add(e Entry) error {
	if e.Record != nil {
		if next := c.tree.size + int64(len(c.waiting)); e.Record.Index != next {
			return &Fault{e.Record.Index, e.Record.Subject, fmt.Sprintf("stands where record %d belongs", next)}
		}
		c.waiting = append(c.waiting, e.Record)
		return nil
	}
	return c.advance(e.Checkpoint)
}

// advance grows the tree to the checkpoint's size, and compares.
func (c *Chain) advance(to *Checkpoint) error {
	if to.Sequence != 0 && c.newest != nil && to.Sequence <= c.newest.Sequence {
		return nil // the one that the chain goes on from, or one before it
	}
	if to.Size <= c.tree.size {
		return to.fault("comes after the one of %d records: an older one was put back", c.tree.size)
	}
	n := int(to.Size - c.tree.size)
	var leaves []tlog.Hash
	for _, r := range c.waiting[:min(n, len(c.waiting))] {
		leaves = append(leaves, r.Hash())
	}
	if n > len(leaves) {
		return c.blame(to, leaves)
	}
	tree, err := c.grow(leaves)
	if err != nil {
		return err
	}
	if root, err := tree.Root(); err != nil {
		return err
	} else if root != to.Root {
		return c.blame(to, leaves)
	}
	switch last := c.waiting[n-1]; {
	case !slices.Equal(to.Leaves, leaves):
		return to.fault("its root is right, but not the hashes of the records beside it: they were altered")
	case to.Sequence == 0: // an export has no more
	case !slices.Equal(to.Edge, tree.edge):
		return to.fault("its root is right, but not the edge beside it: it was altered")
	case last.Sequence != to.Last:
		return to.fault("its last record is at sequence %d, and was at %d when it was signed", last.Sequence, to.Last)
	}
	c.tree, c.newest, c.waiting = tree, to, slices.Clone(c.waiting[n:])
	return nil
}

// grow returns the tree with these leaves. Where it passes the size of a kept
// checkpoint, the roots must agree.
func (c *Chain) grow(leaves []tlog.Hash) (Tree, error) {
	tree, err := c.tree, error(nil)
	for _, leaf := range leaves {
		if tree, err = tree.With(leaf); err != nil {
			return tree, err
		}
		for _, kept := range c.kept {
			if kept.Size != tree.size {
				continue
			}
			if root, err := tree.Root(); err != nil || root != kept.Root {
				return tree, kept.fault("the one that was kept has another root: the trail was rewritten since")
			}
		}
	}
	return tree, nil
}

// blame names the first record that is not the one that was hashed. The
// checkpoint's list of hashes says which, unless it was altered as well.
func (c *Chain) blame(to *Checkpoint, leaves []tlog.Hash) error {
	there := c.tree.size + int64(len(leaves))
	for i, r := range c.waiting[:len(leaves)] {
		if i < len(to.Leaves) && leaves[i] != to.Leaves[i] && c.genuine(to) {
			return &Fault{r.Index, r.Subject, "is not the one that was hashed: it was changed, or one was removed, put in or moved before it"}
		}
	}
	if there < to.Size {
		return &Fault{there, "", fmt.Sprintf("is gone: the checkpoint covers %d records, and only %d are there", to.Size, there)}
	}
	first := c.waiting[0]
	return &Fault{first.Index, first.Subject, fmt.Sprintf("this one or a later one, up to %d, is not the one that was hashed; the list of hashes was altered as well", to.Size-1)}
}

// genuine reports whether the checkpoint's list of hashes is of its root.
func (c *Chain) genuine(to *Checkpoint) bool {
	tree, err := c.tree, error(nil)
	for _, leaf := range to.Leaves {
		if tree, err = tree.With(leaf); err != nil {
			return false
		}
	}
	root, err := tree.Root()
	return err == nil && tree.size == to.Size && root == to.Root
}

// End tells whether the trail ends where it may: after all that a kept
// checkpoint covers.
func (c *Chain) End() error {
	for _, kept := range c.kept {
		if kept.Size > c.tree.size {
			return &Fault{c.tree.size, "", fmt.Sprintf("is gone: a checkpoint of %d records was kept, and the trail's newest covers %d: it was cut off, or an older one put back", kept.Size, c.tree.size)}
		}
	}
	return nil
}

// MaxLeaves is how many records one checkpoint adds at most: their hashes are
// half of the largest message.
const MaxLeaves = bus.MaxEvent / 2 / tlog.HashSize

// Draft is the next checkpoint, to be signed, of the records that wait; nil
// where none does.
func (c *Chain) Draft() (*Checkpoint, error) {
	n := min(len(c.waiting), MaxLeaves)
	if n == 0 {
		return nil, nil
	}
	draft := &Checkpoint{Last: c.waiting[n-1].Sequence}
	for _, r := range c.waiting[:n] {
		draft.Leaves = append(draft.Leaves, r.Hash())
	}
	tree, err := c.grow(draft.Leaves)
	if err != nil {
		return nil, err
	}
	draft.Size, draft.Edge = tree.size, tree.edge
	draft.Root, err = tree.Root()
	return draft, err
}

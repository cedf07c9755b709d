package trail

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Proof shows that one record is among those that a checkpoint covers, to whoever
// has nothing but the two.
type Proof struct {
	Record     *Record
	Checkpoint *Checkpoint
	Hashes     tlog.RecordProof // from the leaf to the root, RFC 6962 section 2.1.1
}

// Prove finds the record of the message at that sequence of a stream, and proves
// it to be in the trail's newest checkpoint. It holds all hashes of the tree, 64
// bytes a record.
func Prove(entries Entries, stream string, sequence uint64) (*Proof, error) {
	var all []tlog.Hash
	stored := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		found := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			found[i] = all[index]
		}
		return found, nil
	})
	p := &Proof{}
	for e, err := range entries {
		if err != nil {
			return nil, err
		}
		if e.Checkpoint != nil {
			p.Checkpoint = e.Checkpoint
			continue
		}
		hashes, err := tlog.StoredHashes(e.Record.Index, e.Record.Body, stored)
		if err != nil {
			return nil, fmt.Errorf("hash record %d: %w", e.Record.Index, err)
		}
		all = append(all, hashes...)
		if e.Record.GetStream() == stream && e.Record.GetSequence() == sequence {
			p.Record = e.Record
		}
	}
	switch {
	case p.Record == nil:
		return nil, fmt.Errorf("message %d of %s has no record", sequence, stream)
	case p.Checkpoint == nil || p.Record.Index >= p.Checkpoint.Size:
		return nil, &Fault{p.Record.Index, p.Record.Subject, "is covered by no checkpoint yet: ask again in a few seconds"}
	}
	var err error
	if p.Hashes, err = tlog.ProveRecord(p.Checkpoint.Size, p.Record.Index, stored); err != nil {
		return nil, fmt.Errorf("prove record %d: %w", p.Record.Index, err)
	}
	return p, p.Check()
}

// Check verifies the proof.
func (p *Proof) Check() error {
	if err := tlog.CheckRecord(p.Hashes, p.Checkpoint.Size, p.Checkpoint.Root, p.Record.Index, p.Record.Hash()); err != nil {
		return &Fault{p.Record.Index, p.Record.Subject, fmt.Sprintf("is not among the records of the checkpoint of %d", p.Checkpoint.Size)}
	}
	return nil
}

package trail

import (
	"context"
	"time"

	"golang.org/x/mod/sumdb/note"

	"pawl.dev/internal/bus"
)

// Result is what was proved.
type Result struct {
	Records     int64       // covered by Newest, and proved
	Checkpoints int         // each of which contains the one before
	Newest      *Checkpoint // nil: nothing is signed yet
	// Unsigned are records that no checkpoint covers yet: the auditor signs within
	// seconds. Since is when what the first of them records happened.
	Unsigned int
	Since    time.Time
	// Unrecorded are stored events, notes and dead messages that the auditor has
	// yet to record. Of an export, and of Verify alone: 0.
	Unrecorded int
}

// Verify proves a trail: that every record is the one that was hashed, in its
// place, that each checkpoint is signed by one of keys and contains the one
// before, and that all has grown from those that were kept. The first thing that
// is wrong is the error, a *Fault.
func Verify(entries Entries, keys note.Verifiers, kept ...*Checkpoint) (Result, error) {
	return verify(entries, keys, func(*Record) error { return nil }, kept)
}

// VerifyLive is Verify of the live trail. It also proves that each record is of a
// message that lies where the record says, and that no message lacks its record.
// The user needs the right to make consumers on what the auditor records.
func VerifyLive(ctx context.Context, b *bus.Bus, keys note.Verifiers, kept ...*Checkpoint) (Result, error) {
	s, err := recorded(ctx, b) // before the trail is read: what is recorded by now must be found there
	if err != nil {
		return Result{}, err
	}
	defer s.stop()
	result, err := verify(Live(ctx, b, keys), keys, s.compare, kept)
	if err == nil {
		result.Unrecorded, err = s.rest()
	}
	return result, err
}

func verify(entries Entries, keys note.Verifiers, look func(*Record) error, kept []*Checkpoint) (Result, error) {
	var result Result
	chain := NewChain(keys)
	for _, k := range kept {
		chain.Keep(k)
	}
	for e, err := range entries {
		if err == nil {
			err = chain.Add(e)
		}
		if err == nil && e.Record != nil {
			err = look(e.Record)
		}
		if err != nil {
			return result, err
		}
		if e.Checkpoint != nil {
			result.Checkpoints++
		}
	}
	result.Newest = chain.Newest()
	if result.Newest != nil {
		result.Records = result.Newest.Size
	}
	if waiting := chain.Waiting(); len(waiting) > 0 {
		result.Unsigned, result.Since = len(waiting), waiting[0].GetAt().AsTime()
	}
	return result, chain.End()
}

// Package restored says what may be done with a credential after `pawl restore`.
//
// A restored log is older than the databases and sinks. A rotation that is open in
// it may have ended since, and others may have followed: to go on with it would
// write an old password over a newer one. So nobody does a step of a rotation that
// was restored, and nobody repairs what differs from it, until the db-rotator has
// compared it with the fence and the logins of every node. What it found is the
// note on bus.RestoredSubject. The log itself needs no event for that.
package restored

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Standing is what a restored credential's log is worth.
type Standing string

// The standings. Their texts are kinds of notes.
const (
	// Agrees: the databases are where the log is, or no further than its next step.
	// This is also the standing of whatever was not restored.
	Agrees Standing = "agrees after restore"
	// Undone: the databases show that the rotation was rolled back after the backup.
	// Its log is led there by the normal rows.
	Undone Standing = "undone after restore"
	// Held: the databases are further than the log, or hold what it does not know.
	// Nothing is done until a person runs `pawl adopt` or `pawl emergency`.
	Held Standing = "held after restore"
	// Unknown: not compared yet.
	Unknown Standing = "not compared after restore"
)

// Verdict is a standing, and why.
type Verdict struct {
	Standing Standing
	Why      string
}

// Again is how soon a comparison is looked for again.
const Again = time.Second

// Of returns the standing of a credential's newest rotation.
func Of(ctx context.Context, b *bus.Bus, log bus.Log) (Verdict, error) {
	if len(log.Records) == 0 {
		return Verdict{Standing: Agrees}, nil
	}
	mark, err := b.Restored(ctx)
	if err != nil || mark == nil {
		return Verdict{Standing: Agrees}, err
	}
	restored, err := isRestored(ctx, b, mark, log)
	if err != nil || !restored {
		return Verdict{Standing: Agrees}, err
	}
	return newest(ctx, b, mark, log.Credential)
}

// isRestored reports whether what the log says of the world comes from the backup.
// An adoption that did not complete has said nothing: what it began from counts.
func isRestored(ctx context.Context, b *bus.Bus, mark *bus.RestoreMark, log bus.Log) (bool, error) {
	first := log.Records[0]
	if first.Seq <= mark.Log {
		return true, nil
	}
	begin := first.Body.GetRequested()
	if !saga.FlowLike(begin.GetFlow()).Adopts || log.Find(saga.RolledBack) == nil || begin.GetBasis() == "" {
		return false, nil
	}
	basis, err := b.ReadRotation(ctx, log.Credential, begin.GetBasis())
	return err == nil && len(basis.Records) > 0 && basis.Records[0].Seq <= mark.Log, err
}

// newest reads what the db-rotator found last, since the restore.
func newest(ctx context.Context, b *bus.Bus, mark *bus.RestoreMark, credential string) (Verdict, error) {
	note := &pawlv1.Note{}
	m, err := b.Last(ctx, bus.StreamNote, bus.RestoredSubject(credential), note)
	if m == nil && err == nil || m != nil && m.Sequence <= mark.Notes {
		return Verdict{Unknown, fmt.Sprintf("restored on %s from a backup of %s, and not compared with every node yet", mark.At.Format(time.RFC3339), mark.Backup.Format(time.RFC3339))}, nil
	}
	if err != nil {
		return Verdict{}, fmt.Errorf("what was compared of %s after the restore: %w", credential, err)
	}
	return Verdict{Standing(note.GetKind()), note.GetText()}, nil
}

// Tell stores what the db-rotator found.
func Tell(ctx context.Context, b *bus.Bus, log bus.Log, v Verdict) error {
	return b.Publish(ctx, bus.RestoredSubject(log.Credential), &pawlv1.Note{Kind: string(v.Standing), Credential: log.Credential, Rotation: log.Rotation,
		At: timestamppb.Now(), Text: v.Why}, nats.Header{})
}

// Permit returns nil if the step may be done. Otherwise it returns a *saga.NotYet
// or, of a rotation that was undone after the backup, an error that fails the
// step, so that the log is rolled back, too.
func Permit(v Verdict, step *saga.Step) error {
	switch v.Standing {
	case Agrees:
		return nil
	case Undone:
		if !step.Retriable() {
			return saga.Permanent(errors.New(v.Why))
		}
		return nil
	case Unknown:
		return &saga.NotYet{Again: Again, Why: v.Why}
	}
	return &saga.NotYet{Again: 30 * time.Second, Why: v.Why}
}

package schedule

import (
	"context"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/rotation"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Logs are where the past is read: a *bus.Bus.
type Logs interface {
	ReadNewest(ctx context.Context, credential string) (bus.Log, error)
	ReadRotation(ctx context.Context, credential, rotation string) (bus.Log, error)
}

// Past reads what the log tells of a credential, and the id of its newest
// rotation. ok is false where it was never adopted.
func Past(ctx context.Context, logs Logs, credential string) (turned Turned, newest string, ok bool, err error) {
	log, err := logs.ReadNewest(ctx, credential)
	if err != nil || log.Empty() {
		return Turned{}, "", false, err
	}
	turned, ok, err = PastOf(log, func(rotation string) (Made, error) {
		before, err := logs.ReadRotation(ctx, credential, rotation)
		if err != nil {
			return Made{}, err
		}
		return MadeBy(before)
	})
	return turned, log.Rotation, ok, err
}

// Made is the rotation, or adoption, under which a password was made.
type Made struct {
	At         time.Time // when it ended
	Adopted    bool      // it was an adoption
	Generation uint64
}

// MadeBy reads the log of a rotation that has ended.
func MadeBy(log bus.Log) (Made, error) {
	r, err := rotation.Fold(log)
	if err != nil {
		return Made{}, err
	}
	ended, _ := r.Ended()
	return Made{ended.At, r.Flow.Adopts, r.Requested().GetGeneration()}, nil
}

// PastOf is Past of the log of a credential's newest rotation; made finds
// another, of before, whose password is the current one.
func PastOf(log bus.Log, made func(rotation string) (Made, error)) (turned Turned, ok bool, err error) {
	newest, err := rotation.Fold(log)
	if err != nil {
		return Turned{}, false, err
	}
	begin := newest.Requested()
	ended, _ := newest.Ended()
	turned = Turned{Running: newest.Open(), Locked: newest.Flow.Locks, Tried: ended.At, Since: ended.At,
		Adopted: newest.Flow.Adopts, Undone: begin.GetAction() == pawlv1.Action_ACTION_ROLLBACK}
	current := newest.Current()
	switch {
	case turned.Locked:
		return turned, true, nil
	case current.Rotation == "" && turned.Running && !newest.Flow.Adopts: // an unlock: nothing is current
		turned.Since = newest.Began()
		return turned, true, nil
	case current.Rotation == "":
		return Turned{}, false, nil
	case current.Rotation == newest.Rotation:
		return turned, true, nil
	}
	before, err := made(current.Rotation)
	if err != nil {
		return turned, false, err
	}
	turned.Since, turned.Adopted = before.At, before.Adopted
	if !turned.Running {
		turned.Failed = max(1, int(begin.GetGeneration()-before.Generation))
	}
	return turned, true, nil
}

package glass

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/internal/bus"
	"pawl.dev/internal/evidence"
	"pawl.dev/internal/inventory"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// NoteKind is the kind of the note that tells of a broken glass.
const NoteKind = "glass broken"

// Carry tells the log of every break that it has not learned of, and asks for
// the emergency that follows each: once, however often it is called and whoever
// else does.
func Carry(ctx context.Context, inv *inventory.Inventory, c *client.Client) error {
	return alone(inv, "", func(all []*Record) error {
		var failed error
		for _, r := range all {
			rotation, err := r.follow(ctx, c)
			if err == nil {
				err = r.tell(ctx, c, rotation)
			}
			failed = errors.Join(failed, err)
		}
		return failed
	})
}

// Tell tells the log of the credential's breaks, which a person has followed up
// with this rotation.
func Tell(ctx context.Context, inv *inventory.Inventory, c *client.Client, credential, rotation string) error {
	return alone(inv, credential, func(all []*Record) error {
		var failed error
		for _, r := range all {
			failed = errors.Join(failed, r.tell(ctx, c, rotation))
		}
		return failed
	})
}

// alone works on the records while no other process does.
func alone(inv *inventory.Inventory, credential string, work func([]*Record) error) error {
	if all, err := Untold(inv, credential); len(all) == 0 {
		return err
	}
	lock := flock.New(filepath.Join(folder(inv), "lock"))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("records of broken glass: %w", err)
	}
	defer func() { _ = lock.Unlock() }() // the kernel does it anyway
	all, unread := Untold(inv, credential)
	return errors.Join(work(all), unread)
}

// follow asks for the emergency, unless the credential has had a rotation since:
// then whoever asked for that has seen to it.
func (r *Record) follow(ctx context.Context, c *client.Client) (rotation string, err error) {
	log, err := c.ReadNewest(ctx, r.Credential)
	if err != nil {
		return "", err
	}
	if len(log.Records) > 0 && log.Records[0].At.After(r.Began) {
		return log.Rotation, nil
	}
	reason := "the glass was broken at " + r.Began.Format(time.RFC3339)
	if r.Reason != "" {
		reason += ": " + r.Reason
	}
	answer, err := c.AskOnce(ctx, r.ID, r.Credential, &pawlv1.Request{Action: pawlv1.Action_ACTION_CONTAIN, Reason: reason, RequestedBy: r.By, GlassBroken: true})
	if err != nil {
		return "", err
	}
	return answer.GetRotation(), nil // rejected: it is under way, locked, or the credential is gone
}

// tell stores the note and the evidence, and marks the record. Each is looked
// for first, so that whatever was done before a crash is not done again.
func (r *Record) tell(ctx context.Context, c *client.Client, rotation string) error {
	notes, err := c.Notes(ctx, r.Began)
	if err != nil {
		return err
	}
	told := false
	for _, n := range notes {
		told = told || n.Note.GetKind() == NoteKind && strings.HasPrefix(n.Note.GetText(), r.ID+":")
	}
	if !told {
		note := &pawlv1.Note{Kind: NoteKind, Credential: r.Credential, Rotation: rotation, Actor: r.By, Text: r.summary(), At: timestamppb.New(r.Began)}
		if err := c.Publish(ctx, bus.NoteSubject(bus.Operator), note, nil); err != nil {
			return err
		}
	}
	for _, p := range r.Evidence {
		if err := evidence.Put(ctx, c.Bus, r.Credential, cmp.Or(rotation, r.ID), p.Node, p.ID, p.Box); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	r.Told, r.Rotation, r.Evidence = &now, rotation, nil
	return r.Save()
}

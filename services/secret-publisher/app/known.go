package app

import (
	"context"
	"errors"
	"fmt"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/secret-publisher/internal/sink"
)

// known collects the logins that Pawl wrote or adopted: all that is sealed, which
// includes what a rotation that died or was rolled back made, and what that replaced.
func (a *app) known(ctx context.Context, c *inventory.Credential, inUse string) (*sink.Known, error) {
	k := &sink.Known{Credential: c, InUse: inUse, Fingerprint: a.sealed.Fingerprint}
	err := effect.Do(ctx, "open known logins", c.Name, func(ctx context.Context) error {
		rotations, err := a.sealed.Rotations(ctx, c.Name)
		if err != nil {
			return err
		}
		for _, rotation := range rotations {
			e, err := a.sealed.Open(ctx, c.Name, rotation)
			switch {
			case errors.Is(err, sealed.ErrNotFound): // erased meanwhile
			case errors.Is(err, sealed.ErrWrongKey):
				k.Unsure = true
				effect.Warn(ctx, "whether each sink holds a login of Pawl's cannot be told: %v", err)
			case err != nil:
				return err
			default:
				k.Logins, k.Earlier = append(k.Logins, a.content(e, e.Generation)), append(k.Earlier, e.Earlier...)
			}
		}
		return nil
	})
	return k, err
}

// checkKnown refuses in preflight what publish and restore would refuse to replace.
func (a *app) checkKnown(ctx context.Context, c *inventory.Credential, current []*sealed.Credential) (found []*pawlv1.Check) {
	k, err := a.known(ctx, c, current[0].User)
	if err == nil && k.Unsure {
		err = sealed.ErrWrongKey
	}
	if err != nil {
		return []*pawlv1.Check{{Service: saga.SecretPublisher, Target: "sealed credentials", Finding: fmt.Sprintf("warning: whether each sink holds a login of Pawl's cannot be told: %v", err)}}
	}
	for _, s := range a.sinks(c) {
		held, err := s.Held(ctx)
		if err != nil {
			continue // preflight has said so
		}
		if err := k.Admit(s, held); err != nil {
			found = append(found, &pawlv1.Check{Service: saga.SecretPublisher, Target: s.Name(), Finding: err.Error(), Refused: true})
		}
	}
	return found
}

// admit refuses to replace a login that is not known. An emergency replaces it all
// the same: the application must come back, and an attacker who can edit the sink must
// not be able to prevent that. The backup keeps what stood there.
func admit(r *service.Rotation, s sink.Sink, k *sink.Known, held []sink.Content) (foreign bool, err error) {
	err = k.Admit(s, held)
	if err != nil && r.State.Flow != nil && r.State.Flow.Urgent {
		return true, nil
	}
	return false, err
}

// tellOverwritten is called after the backup and before the write, so that a crash can
// repeat the note but not lose it.
func (a *app) tellOverwritten(ctx context.Context, r *service.Rotation, s sink.Sink) {
	text := fmt.Sprintf("%s held a login that Pawl neither wrote nor adopted. The emergency replaces it; the sealed backup of this rotation keeps what stood there first", s.Name())
	effect.Warn(ctx, "%s", text)
	a.note(ctx, &pawlv1.Note{Kind: "foreign login replaced", Credential: r.Credential.Name, Rotation: r.ID, Step: r.Step.Name, Text: text})
}

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

// known are the logins that Pawl wrote or adopted: the envelopes at hand and what they
// tell of the past and, if a sink holds none of these, all else that is sealed. That
// includes what a rotation that died or was rolled back made, and what that replaced.
func (a *app) known(c *inventory.Credential, inUse string, opened ...*sealed.Credential) *sink.Known {
	k := &sink.Known{Credential: c, InUse: inUse, Fingerprint: a.sealed.Fingerprint, Others: a.openOthers}
	a.add(k, opened...)
	return k
}

func (a *app) add(k *sink.Known, opened ...*sealed.Credential) {
	for _, e := range opened {
		k.Logins, k.Earlier = append(k.Logins, a.content(e, e.Generation)), append(k.Earlier, e.Earlier...)
	}
}

// openOthers is sink.Known's Others.
func (a *app) openOthers(ctx context.Context, k *sink.Known) error {
	c := k.Credential
	return effect.Do(ctx, "open known logins", c.Name, func(ctx context.Context) error {
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
				a.add(k, e)
			}
		}
		return nil
	})
}

// checkKnown refuses in preflight what publish and restore would refuse to replace.
func (a *app) checkKnown(ctx context.Context, c *inventory.Credential, current []*sealed.Credential) (found []*pawlv1.Check) {
	k := a.known(c, current[0].User, current...)
	var unsure error
	for _, s := range a.sinks(c) {
		held, err := s.Held(ctx)
		if err != nil {
			continue // preflight has said so
		}
		switch err := k.Admit(ctx, s, held); {
		case sink.IsRefusal(err):
			found = append(found, &pawlv1.Check{Service: saga.SecretPublisher, Target: s.Name(), Finding: err.Error(), Refused: true})
		case err != nil:
			unsure = err
		case k.Unsure:
			unsure = sealed.ErrWrongKey
		}
	}
	if unsure != nil {
		found = append(found, &pawlv1.Check{Service: saga.SecretPublisher, Target: "sealed credentials", Finding: fmt.Sprintf("warning: whether each sink holds a login of Pawl's cannot be told: %v", unsure)})
	}
	return found
}

// admit refuses to replace a login that is not known. An emergency replaces it all
// the same: the application must come back, and an attacker who can edit the sink must
// not be able to prevent that. The backup keeps what stood there.
func admit(ctx context.Context, r *service.Rotation, s sink.Sink, k *sink.Known, held []sink.Content) (foreign bool, err error) {
	err = k.Admit(ctx, s, held)
	if sink.IsRefusal(err) && r.State.Flow != nil && r.State.Flow.Urgent {
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

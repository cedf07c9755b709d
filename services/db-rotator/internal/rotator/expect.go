package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
)

// expectation is what a credential's logins must be on every node, by its log.
type expectation struct {
	credential *inventory.Credential
	seq        uint64             // of the newest event: it holds while that stays the newest
	fence      postgres.Fence     // what every node has committed
	current    *sealed.Credential // must be able to log in
	idle       string             // must not; empty: nothing is expected of it
	kept       *sealed.Credential // the predecessor, while the idle login must carry it for a way back
	refused    []string           // must not log in, whatever the node's fence says: they are stolen, or locked
	undone     *sealed.Credential // what the idle login carried until its rotation was taken back
}

// expect reads the log. It returns nil where two things may be true at once:
// before adoption, while a step changes the logins, while one is taken back.
func (o *Rotator) expect(ctx context.Context, c *inventory.Credential, log bus.Log) (*expectation, error) {
	if len(log.Records) == 0 {
		return nil, nil
	}
	state, err := log.Fold()
	if err != nil {
		return nil, err
	}
	begin := log.Records[0].Body.GetRequested()
	e := &expectation{credential: c, seq: log.LastSeq(), fence: postgres.Fence{Role: c.Role, Generation: begin.GetGeneration(), Rotation: log.Rotation}}
	if e.fence.Phase, e.refused = refusedBy(log, state); e.refused != nil && state.Flow.Locks {
		return e, nil
	}
	current := bus.CurrentOf(log, state)
	_, staged := state.Has(saga.Staged)
	switch {
	case state.Open() && staged && state.Failed == nil:
		current = bus.Current{Rotation: log.Rotation, User: log.Find(saga.Staged).Body.GetStaged().GetUser()}
		e.fence.Phase = phaseBegin
		if state.Flow.Urgent {
			if _, released := state.Has(saga.Released); !released {
				return nil, nil // the guard's
			}
			e.fence.Phase = phaseRetire
		}
		if _, retired := state.Has(saga.Retired); retired {
			e.fence.Phase = phaseRetire
			if state.Flow.Logins == saga.Two {
				e.idle = begin.GetBasisUser()
			}
		}
	case state.Open() || current.Rotation == "":
		return nil, nil
	case state.Flow.Adopts:
		e.fence.Generation = 0 // it passes no fence
		if adopted := log.Find(saga.Adopted); adopted != nil {
			e.fence.Generation = adopted.Body.GetStaged().GetFence()
		}
	default:
		e.fence.Phase = closedPhase(state)
		if state.Flow.Logins == saga.Two {
			e.idle = other(c, current.User)
		}
	}
	if e.current, err = o.envelopes.Open(ctx, c.Name, current.Rotation); err != nil {
		return nil, err
	}
	if _, erased := state.Has(saga.Erased); e.idle == "" || erased {
		return e, nil
	}
	if e.kept, err = o.sealedFor(ctx, c, begin.GetBasis(), e.idle); err == nil {
		e.undone, err = o.sealedFor(ctx, c, log.Rotation, e.idle)
	}
	return e, err
}

// isLock reports whether nobody is to log in at all.
func (e *expectation) isLock() bool { return e.current == nil && len(e.refused) > 0 }

// refusedBy are the logins that must not come back after an emergency or a lock,
// and the phase that it has passed on every node.
func refusedBy(log bus.Log, state saga.State) (phase int, logins []string) {
	contained := log.Find(saga.Contained)
	if contained == nil {
		return 0, nil
	}
	if state.Flow.Locks {
		return phaseBegin, contained.Body.GetContained().GetLogins()
	}
	return phaseBegin, stolen(contained.Body.GetContained())
}

// closedPhase is the last one that an ended rotation has passed on every node.
func closedPhase(state saga.State) int {
	_, erased := state.Has(saga.Erased)
	ended, _ := state.Ended()
	switch {
	case erased && state.Flow.Logins != saga.One:
		return phaseErase
	case ended.Event == saga.Completed:
		return phaseRetire
	}
	return phaseUndo
}

// sealedFor is what is sealed for the login under a rotation; nil where nothing is.
func (o *Rotator) sealedFor(ctx context.Context, c *inventory.Credential, rotation, login string) (*sealed.Credential, error) {
	envelope, err := o.envelopes.Open(ctx, c.Name, rotation)
	if errors.Is(err, sealed.ErrNotFound) || err == nil && envelope.User != login {
		return nil, nil
	}
	return envelope, err
}

// logins are those about which something is expected.
func (e *expectation) logins() []string {
	logins := slices.Clone(e.refused)
	if e.current != nil {
		logins = append(logins, e.current.User)
	}
	if e.idle != "" {
		logins = append(logins, e.idle)
	}
	return logins
}

// verdict on what one node holds.
type verdict struct {
	lost  bool   // a write was lost: repair it
	back  bool   // of a login that must not come back: it is refused again, whoever did it
	wrong string // what is not as it should be; empty: nothing
}

// judge compares. A login is repaired only where the node's own fence shows
// that it has lost the transaction which made it so, and what it holds is
// nothing or an earlier value of Pawl's: everything else is somebody's doing,
// and is reported.
func (e *expectation) judge(o *Rotator, held postgres.Holdings) verdict {
	var wrong []string
	for _, login := range e.refused {
		if role := held.Roles[login]; role.CanLogin {
			with := ""
			if e.current != nil {
				with = ", with " + e.describe(o, role)
			}
			return verdict{lost: true, back: true, wrong: fmt.Sprintf("login %q, which is stolen or locked, may log in%s", login, with)}
		}
	}
	if e.current == nil {
		return verdict{}
	}
	for _, login := range []string{e.current.User, e.idle} {
		if role := held.Roles[login]; role.CanLogin && slices.Contains(e.current.Compromised, o.envelopes.Fingerprint(login, role.Verifier)) {
			return verdict{lost: true, back: true, wrong: fmt.Sprintf("login %q carries a stolen password again", login)}
		}
	}
	known := true
	now := held.Roles[e.current.User]
	switch {
	case !now.Exists:
		wrong, known = append(wrong, fmt.Sprintf("login %q does not exist", now.Name)), known && now.Name != e.credential.Role
	case !carries(now, e.current):
		wrong, known = append(wrong, fmt.Sprintf("login %q carries %s", now.Name, e.describe(o, now))), known && e.isEarlier(o, now)
	case !now.CanLogin:
		wrong = append(wrong, fmt.Sprintf("login %q may not log in", now.Name))
	}
	switch idle := held.Roles[e.idle]; {
	case e.idle == "":
	case idle.CanLogin:
		wrong, known = append(wrong, fmt.Sprintf("login %q, which was retired, may log in", idle.Name)), known && e.isEarlier(o, idle)
	case e.kept != nil && !carries(idle, e.kept):
		wrong, known = append(wrong, fmt.Sprintf("login %q does not carry the predecessor's password, which is kept", idle.Name)), known && e.isEarlier(o, idle)
	}
	if len(wrong) == 0 {
		return verdict{}
	}
	return verdict{lost: known && held.Fences[e.credential.Role].Behind(e.fence), wrong: strings.Join(wrong, ", ")}
}

func (e *expectation) describe(o *Rotator, role postgres.Role) string {
	switch {
	case role.Verifier.IsZero():
		return "no password"
	case e.isEarlier(o, role):
		return "an earlier password"
	}
	return "a password that Pawl did not set"
}

// isEarlier reports whether the role carries nothing, or what the credential
// once had.
func (e *expectation) isEarlier(o *Rotator, role postgres.Role) bool {
	for _, envelope := range []*sealed.Credential{e.kept, e.undone} {
		if envelope != nil && role.Name == envelope.User && carries(role, envelope) {
			return true
		}
	}
	return role.Verifier.IsZero() || slices.Contains(slices.Concat(e.current.Earlier, e.current.Compromised), o.envelopes.Fingerprint(role.Name, role.Verifier))
}

package rotator

import (
	"context"
	"fmt"
	"slices"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// What an emergency commits waits for no standby. So a failover can give a node's writes to
// a server that lacks it, and a primary that was away can come back without it.

// reach contains a node that is back, and issues the new password there, once.
func (o *Rotator) reach(ctx context.Context, r *service.Rotation, s *primary, envelope *sealed.Credential) error {
	if ours, err := holds(ctx, s.Admin, envelope); err != nil || ours {
		return err
	}
	return o.containAndIssue(ctx, r, s, phaseRetire, envelope)
}

// regain does so on a node that has lost what was committed there, once that was issued.
// It reports whether something was lost.
func (o *Rotator) regain(ctx context.Context, r *service.Rotation, s *primary, envelope *sealed.Credential) (lost bool, err error) {
	fences, err := s.StoredOf(ctx, r.Credential.Role)
	if err != nil {
		return false, err
	}
	stored := fences[r.Credential.Role]
	if isOvertaken(stored, r.ID, max(r.Requested().GetGeneration(), r.Staged().GetFence())) {
		return false, nil
	}
	what := "its containment and the new password"
	if isIssued(stored, r.ID) {
		role, err := s.RoleState(ctx, envelope.User)
		if err != nil || !lacksLogin(role, stored, r.Staged(), s.Name, envelope) {
			return false, err
		}
		what = "that the login may log in"
		err = o.allowAnew(ctx, r, s, envelope)
		if err != nil {
			return true, err
		}
	} else if err := o.containAndIssue(ctx, r, s, phaseBegin, envelope); err != nil { // of that phase, so that only the issue counts as done
		return true, err
	}
	if o.note != nil {
		o.note(ctx, &pawlv1.Note{Kind: "repaired", Credential: r.Credential.Name, Rotation: r.ID,
			Text: fmt.Sprintf("%s had lost %s, by a failover or an older backup, in the middle of the emergency: done again", s.Node, what)})
	}
	return true, nil
}

// lacksLogin reports whether only that is missing which comes last: that what carries the
// new password may log in. Whoever has refused it since has done so later.
func lacksLogin(role postgres.Role, stored postgres.Fence, staged *pawlv1.Staged, node string, envelope *sealed.Credential) bool {
	issued := staged.GetCommittedAt()[node]
	return issued != nil && stored.Passed.Before(issued.AsTime()) && !role.CanLogin && role.Verifier.Equal(envelope.Verifier)
}

// containAndIssue contains a node, and issues the new password there, where it lets in at
// once: its replicas are waited for by the release alone.
func (o *Rotator) containAndIssue(ctx context.Context, r *service.Rotation, s *primary, phase int, envelope *sealed.Credential) error {
	if err := o.containAgain(ctx, r, s, phase); err != nil {
		return err
	}
	return o.setAnew(ctx, r, s, envelope, true)
}

// stillContained contains those nodes once more that have lost it since.
func (o *Rotator) stillContained(ctx context.Context, r *service.Rotation, nodes []inventory.Node) error {
	c := *r.Credential
	c.Nodes = nodes
	return o.onEach(ctx, &c, "look whether contained", func(ctx context.Context, s *primary) error {
		fences, err := s.StoredOf(ctx, c.Role)
		if err != nil || fences[c.Role].Rotation == r.ID {
			return err
		}
		effect.Warn(ctx, "%s has lost its containment, by a failover or an older backup: contained again", s.Node)
		return o.containAgain(ctx, r, s, phaseBegin)
	})
}

func (o *Rotator) containAgain(ctx context.Context, r *service.Rotation, s *primary, phase int) error {
	k := o.newContainment(r.Credential, fence(r, phase), r.StillDue)
	k.on(ctx, slices.DeleteFunc(slices.Clone(r.Credential.Nodes), func(n inventory.Node) bool { return n.Name != s.Name }))
	k.seen.settle(ctx)
	switch why := k.found.Pending[s.Name]; {
	case k.found.At[s.Name] == nil && k.crowded[s.Name]:
		return &saga.NotYet{Again: crowdedAgain, Why: why}
	case k.found.At[s.Name] == nil:
		return fmt.Errorf("%s", why)
	case len(k.found.Unending) > 0: // the log, by which they are told again, does not name them
		return fmt.Errorf("%s", unending(k.found.Unending))
	}
	return nil
}

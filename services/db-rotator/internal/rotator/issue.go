package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Issue gives the login that returns a new password on every node that was
// reached. A clean one may log in with the same statement; another only when the
// new verifier is everywhere, and whoever began a handshake before is ended as
// soon as it succeeds, by the guard.
func (o *Rotator) Issue(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	envelope, err := o.decideAnew(ctx, r)
	if err != nil {
		return nil, err
	}
	o.guardOf(r)
	staged := &pawlv1.Staged{User: envelope.User, Fingerprint: o.envelopes.Fingerprint(envelope.User, envelope.Password), CommittedAt: map[string]*timestamppb.Timestamp{}}
	nodes := r.Reached(r.Credential.Nodes)
	if err := o.stillContained(ctx, r, nodes); err != nil {
		return nil, err
	}
	for _, node := range nodes {
		defer o.crowd.enter(serverOf(r.Credential, node.Name))()
	}
	if err := o.issueOn(ctx, r, nodes, envelope, staged.CommittedAt); err != nil {
		return nil, err
	}
	if staged.Fence, err = o.ahead(ctx, r, nodes); err != nil {
		return nil, err
	}
	return &pawlv1.Event{Summary: fmt.Sprintf("%q carries the new password on %s", envelope.User, nodeNames(nodes)),
		Detail: &pawlv1.Event_Staged{Staged: staged}}, nil
}

// ahead is the counter of the database's fence where that is ahead of the log, which
// an emergency passes all the same; 0 elsewhere. The next rotation goes on from there.
func (o *Rotator) ahead(ctx context.Context, r *service.Rotation, nodes []inventory.Node) (counter uint64, err error) {
	c := *r.Credential
	c.Nodes = nodes
	var mu sync.Mutex
	err = o.onEach(ctx, &c, "read fence", func(ctx context.Context, s *primary) error {
		stored, err := s.Stored(ctx, c.Role)
		mu.Lock()
		defer mu.Unlock()
		if stored.Generation > r.Requested().GetGeneration() {
			counter = max(counter, stored.Generation)
		}
		return err
	})
	return counter, err
}

// decideAnew returns this rotation's sealed credential, making it at first. Of
// what was there before, nothing is wanted back.
func (o *Rotator) decideAnew(ctx context.Context, r *service.Rotation) (*sealed.Credential, error) {
	envelope, err := o.envelopes.Open(ctx, r.Credential.Name, r.ID)
	if errors.Is(err, sealed.ErrNotFound) {
		if envelope, err = o.makeAnew(ctx, r); err == nil {
			envelope, err = o.sealOnce(ctx, envelope)
		}
	}
	if err != nil {
		return nil, err
	}
	return envelope, o.sealFor(ctx, envelope)
}

func (o *Rotator) makeAnew(ctx context.Context, r *service.Rotation) (*sealed.Credential, error) {
	contained := r.Events[saga.Contained].GetContained()
	known, _, _, err := o.known(ctx, r.Credential.Name)
	if err != nil {
		return nil, err
	}
	made, err := generate(r, contained.GetReturns())
	if err != nil {
		return nil, err
	}
	made.Earlier, made.Compromised = o.compromised(known, contained.GetCarried())
	made.Settings = lastRecorded(known, r.Credential)
	return made, nil
}

// compromised is all that the logins are known to have carried.
func (o *Rotator) compromised(known []*sealed.Credential, carried []string) (earlier, compromised []string) {
	slices.SortFunc(known, func(a, b *sealed.Credential) int { return int(b.Generation) - int(a.Generation) })
	compromised = slices.Clone(carried)
	for _, e := range known {
		verifier := o.envelopes.Fingerprint(e.User, e.Verifier)
		compromised = append(append(compromised, verifier), e.Compromised...)
		earlier = append(append(earlier, verifier, o.envelopes.Fingerprint(e.User, e.Password)), e.Earlier...)
	}
	earlier = append(earlier, carried...)
	return bounded(earlier), bounded(compromised)
}

// issueOn does so on the nodes, and tells by what clock each of them has it.
func (o *Rotator) issueOn(ctx context.Context, r *service.Rotation, nodes []inventory.Node, envelope *sealed.Credential, at map[string]*timestamppb.Timestamp) error {
	c := *r.Credential
	c.Nodes = nodes
	clean := r.Events[saga.Contained].GetContained().GetClean()
	err := o.onEach(ctx, &c, "alter role", func(ctx context.Context, s *primary) error {
		return o.setAnew(ctx, r, s, envelope, clean)
	})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	err = o.onEach(ctx, &c, "read back", func(ctx context.Context, s *primary) error {
		role, err := s.RoleState(ctx, envelope.User)
		if err == nil && !role.Verifier.Equal(envelope.Verifier) {
			err = fmt.Errorf("%s: role %q does not carry what was committed", s.Node, envelope.User)
		}
		mu.Lock()
		defer mu.Unlock()
		at[s.Node] = timestamppb.New(role.At)
		return err
	})
	if err != nil {
		return err
	}
	replayed, err := o.awaitReplicas(ctx, &c, r.Pending())
	for replica, clock := range replayed {
		at[replica] = timestamppb.New(clock)
	}
	if err != nil || clean {
		return err
	}
	err = o.onEach(ctx, &c, "allow login", func(ctx context.Context, s *primary) error {
		return o.allowAnew(ctx, r, s, envelope)
	})
	if err == nil {
		_, err = o.awaitReplicas(ctx, &c, r.Pending())
	}
	return err
}

// setAnew sets the new verifier, and with it LOGIN, if it is to let in at once.
func (o *Rotator) setAnew(ctx context.Context, r *service.Rotation, s *primary, envelope *sealed.Credential, atOnce bool) error {
	return behindFence(ctx, s, fence(r, phaseRetire), r.StillDue, func(ctx context.Context, tx *postgres.Tx) error {
		role, err := tx.RoleState(ctx, envelope.User)
		switch {
		case err != nil:
			return err
		case role.Exists && role.Verifier.Equal(envelope.Verifier):
			return nil // by an earlier attempt; it may log in already
		case r.Events[saga.Contained].GetContained().GetClean():
			err = prepareIdle(ctx, s.Name, tx, r.Credential, role, nil) // restoreSettings gives it those that it can
		default:
			err = unfit(role)
		}
		if err == nil {
			_, err = o.restoreSettings(ctx, tx, s.Name, r, envelope, restoreFor)
		}
		if err != nil {
			return err
		}
		return tx.SetVerifier(ctx, envelope.User, atOnce, envelope.Verifier)
	})
}

// allowAnew gives LOGIN to what carries the new verifier, and to nothing else.
func (o *Rotator) allowAnew(ctx context.Context, r *service.Rotation, s *primary, envelope *sealed.Credential) error {
	return behindFence(ctx, s, fence(r, phaseRetire), r.StillDue, func(ctx context.Context, tx *postgres.Tx) error {
		role, err := tx.RoleState(ctx, envelope.User)
		switch {
		case err != nil:
			return err
		case !role.Verifier.Equal(envelope.Verifier):
			return fmt.Errorf("%s: role %q carries another password than Pawl has just set: set again", s.Node, role.Name)
		case role.CanLogin:
			return nil
		}
		return tx.SetLogin(ctx, envelope.User, true)
	})
}

func nodeNames(nodes []inventory.Node) string {
	all := make([]string, len(nodes))
	for i, n := range nodes {
		all[i] = n.Name
	}
	return strings.Join(all, ", ")
}

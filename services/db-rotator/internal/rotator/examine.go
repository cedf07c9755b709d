package rotator

import (
	"context"
	"fmt"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/restored"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Examine tells, beside what each login carries, whether each node and replica
// holds what the log says it should.
func (r *Reconciler) Examine(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	checks := r.rotator.Examine(ctx, c)
	log, err := r.log(ctx, c.Name)
	if err != nil {
		return append(checks, &pawlv1.Check{Target: "log", Finding: err.Error(), Refused: true})
	}
	switch verdict, err := r.standing(ctx, log); {
	case err != nil:
		return append(checks, &pawlv1.Check{Target: "log", Finding: err.Error(), Refused: true})
	case verdict.Standing != restored.Agrees:
		return append(checks, &pawlv1.Check{Target: c.Name, Finding: fmt.Sprintf("%s: %s", verdict.Standing, verdict.Why), Refused: true})
	}
	e, err := r.rotator.expect(ctx, c, log)
	if err != nil {
		return append(checks, &pawlv1.Check{Target: "sealed credentials", Finding: err.Error(), Refused: true})
	}
	switch {
	case len(log.Records) == 0:
		return append(checks, &pawlv1.Check{Target: c.Name, Finding: "no rotation ever was: nothing is expected"})
	case e == nil:
		checks = append(checks, &pawlv1.Check{Target: c.Name, Finding: "a rotation is at work: old and new are both expected"})
		return append(checks, eachNode(c.Members(), func(f *findings, node inventory.Node) error { return r.examineUnsettled(ctx, f, c, log, node) })...)
	}
	return append(checks, eachNode(c.Members(), func(f *findings, node inventory.Node) error { return r.examineNode(ctx, f, e, node) })...)
}

// examineUnsettled is for a node while old and new are both expected there: one
// of them must be let in.
func (r *Reconciler) examineUnsettled(ctx context.Context, f *findings, c *inventory.Credential, log bus.Log, node inventory.Node) error {
	admin, err := r.rotator.admin(c, node)
	if err != nil {
		return err
	}
	roles, err := admin.RoleStates(ctx, c.Logins()...)
	if err != nil {
		return err
	}
	for _, role := range roles {
		if role.CanLogin && !role.Verifier.IsZero() {
			return nil
		}
	}
	who := fmt.Sprintf("no login of %q can log in with a password", c.Role)
	switch state, err := log.Fold(); {
	case err != nil:
		return err
	case state.Flow.Locks:
		f.refuse("%s: lock %s is refusing them", who, log.Rotation)
	case state.Flow.Urgent:
		f.refuse("%s: emergency %s has refused them, and the new password is not there yet: `pawl status %s` says what is in the way", who, log.Rotation, c.Name)
	default:
		f.refuse("%s, and rotation %s did not do it: find out who did; ALTER ROLE … LOGIN undoes it, `pawl emergency %s` issues a new password", who, log.Rotation, c.Name)
	}
	return nil
}

func (r *Reconciler) examineNode(ctx context.Context, f *findings, e *expectation, node inventory.Node) error {
	admin, err := r.rotator.admin(e.credential, node)
	if err != nil {
		return err
	}
	held, err := admin.Holdings(ctx, e.logins(), []string{e.credential.Role})
	if err != nil {
		return err
	}
	switch v := e.judge(r.rotator, held); {
	case v.wrong == "":
		f.note("as the log says")
	case v.back:
		f.refuse("%s: it is being refused again: find out whether somebody gave it back, or a failover or an older backup did", v.wrong)
	case v.lost && node.ReplicaOf != "":
		f.refuse("%s: it has not replayed what its primary has, or has lost it", v.wrong)
	case v.lost:
		f.refuse("%s: a write was lost: it is being repaired", v.wrong)
	default:
		f.refuse("%s, and Pawl did not do it: find out who did; `pawl adopt` takes over what is published, ALTER ROLE undoes the rest", v.wrong)
	}
	return nil
}

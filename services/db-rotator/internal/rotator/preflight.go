package rotator

import (
	"context"

	"pawl.dev/internal/inventory"
)

// checkReplica finds out whether the admin can log in on a replica: staging
// awaits it there. Whether it is a good replica the verifier says.
func (o *Rotator) checkReplica(ctx context.Context, f *findings, c *inventory.Credential, node inventory.Node) error {
	admin, err := o.admin(c, node)
	if err != nil {
		return err
	}
	standby, err := admin.InRecovery(ctx)
	if err != nil {
		return err
	}
	checkAccount(ctx, f, admin, c.Cluster.Admin)
	if standby {
		f.note("%q can await it", c.Cluster.Admin.User)
	}
	return nil
}

package rotator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
)

// nodeTimeout bounds one effect on one node, so that a hung node is named while
// its step can still be tried again.
const nodeTimeout = 20 * time.Second

// primary is a configured primary and its replicas as they are now.
type primary struct {
	*postgres.Admin // of the one that takes writes: after a failover a former replica
	Name            string
	replicas        []*postgres.Admin
}

// onEach does work on every node of the credential at once, as one effect each.
// A node that fails keeps no other from its turn.
func (o *Rotator) onEach(ctx context.Context, c *inventory.Credential, name string, work func(context.Context, *primary) error) error {
	errs := make([]error, len(c.Nodes))
	var all sync.WaitGroup
	for i, node := range c.Nodes {
		all.Go(func() {
			errs[i] = effect.Do(ctx, name, node.Name, func(ctx context.Context) error {
				ctx, cancel := context.WithTimeoutCause(ctx, nodeTimeout, fmt.Errorf("%s: no answer within %v", node.Name, nodeTimeout))
				defer cancel()
				s, err := o.lead(ctx, c, node)
				if err == nil {
					err = work(ctx, s)
				}
				if errors.Is(err, context.DeadlineExceeded) {
					err = context.Cause(ctx)
				}
				return err
			})
		})
	}
	all.Wait()
	return saga.Join(errs)
}

// lead finds who takes the node's writes now. A node without replicas is not
// asked: it is the one.
func (o *Rotator) lead(ctx context.Context, c *inventory.Credential, node inventory.Node) (*primary, error) {
	members := append([]inventory.Node{node}, c.Cluster.Replicas(node)...)
	admins := make([]*postgres.Admin, len(members))
	for i, member := range members {
		var err error
		if admins[i], err = o.admin(c, member); err != nil {
			return nil, err
		}
	}
	if len(admins) == 1 {
		return &primary{admins[0], node.Name, nil}, nil
	}
	standby, errs := make([]bool, len(admins)), make([]error, len(admins))
	var all errgroup.Group
	for i, admin := range admins {
		all.Go(func() error { standby[i], errs[i] = admin.InRecovery(ctx); return nil })
	}
	_ = all.Wait() // each has its own error
	var primaries []string
	s := &primary{Name: node.Name}
	for i, admin := range admins {
		if errs[i] != nil || standby[i] {
			s.replicas = append(s.replicas, admin)
			continue
		}
		primaries = append(primaries, admin.Node)
		s.Admin = admin
	}
	switch {
	case len(primaries) > 1:
		return nil, fmt.Errorf("%s all take writes, and only one of them may: stop the others, or correct replica_of in pawl.yaml", strings.Join(primaries, " and "))
	case len(primaries) == 0 && errs[0] != nil:
		return nil, errs[0]
	case len(primaries) == 0:
		return nil, fmt.Errorf("%s is a standby, and none of its replicas takes writes: promote one, or correct pawl.yaml", node.Name)
	case s.Node != node.Name:
		effect.Warn(ctx, "%s takes the writes of %s: correct pawl.yaml", s.Node, node.Name)
	}
	return s, nil
}

// sessionsInReplicas names who is logged in as user on the replicas.
func (s *primary) sessionsInReplicas(ctx context.Context, user string) (named []string, err error) {
	for _, replica := range s.replicas {
		sessions, err := replica.Sessions(ctx, []string{user})
		if err != nil {
			return nil, err
		}
		named = append(named, names(replica.Node, sessions)...)
	}
	return named, nil
}

// awaitReplicas waits until every replica of every node has replayed what the
// node has committed, and returns the replicas' clocks then. Those of without are
// not waited for.
func (o *Rotator) awaitReplicas(ctx context.Context, c *inventory.Credential, without map[string]string) (map[string]time.Time, error) {
	var mu sync.Mutex
	at := map[string]time.Time{}
	if len(c.Members()) == len(c.Nodes) {
		return at, nil
	}
	errs := make([]error, len(c.Nodes))
	var all sync.WaitGroup
	for i, node := range c.Nodes {
		all.Go(func() {
			s, err := o.lead(ctx, c, node)
			if err != nil || len(s.replicas) == 0 {
				errs[i] = err
				return
			}
			lsn, err := s.Position(ctx)
			if err != nil {
				errs[i] = err
				return
			}
			behind := make([]error, len(s.replicas))
			var replicas sync.WaitGroup
			for j, replica := range s.replicas {
				if _, skip := without[replica.Node]; skip {
					continue
				}
				replicas.Go(func() {
					behind[j] = effect.Do(ctx, "await replica", replica.Node, func(ctx context.Context) error {
						clock, err := replica.AwaitReplay(ctx, lsn)
						mu.Lock()
						defer mu.Unlock()
						at[replica.Node] = clock
						return err
					})
				})
			}
			replicas.Wait()
			errs[i] = saga.Join(behind)
		})
	}
	all.Wait()
	return at, saga.Join(errs)
}

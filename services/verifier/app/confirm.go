package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/verifier/internal/probe"
)

// confirm reads in the catalogue of every server that the new login carries the
// sealed password and that the old one is refused. It tries no login: a refused
// one would ring the alarm that watches for stolen passwords.
func (a *app) confirm(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	cred, err := a.open(ctx, r)
	if err != nil {
		return nil, err
	}
	err = onEach(r.Credential.Nodes, func(primary inventory.Node) error {
		servers := set(r.Credential, primary)
		return onEach(servers, func(node inventory.Node) error {
			return effect.Do(ctx, "read catalogue", node.Name, func(ctx context.Context) error {
				return a.unlessLate(ctx, r.Credential, servers, node, a.confirmNode(ctx, r, node, cred))
			})
		})
	})
	if err != nil {
		return nil, err
	}
	summary := fmt.Sprintf("%s carries the new password on %s", cred.User, service.Count(len(r.Credential.Members()), "node"))
	if alternates(r) {
		summary += ", " + r.Requested().GetBasisUser() + " cannot log in"
	}
	return &pawlv1.Event{Summary: summary}, nil
}

// unlessLate makes a fault of a standby's catalogue a wait while the standby has
// yet to replay what was committed where writes are taken.
func (a *app) unlessLate(ctx context.Context, c *inventory.Credential, servers []inventory.Node, node inventory.Node, fault error) error {
	if fault == nil || len(servers) == 1 {
		return fault
	}
	standby, err := a.accounts.observer(c, node)
	if err != nil {
		return fault
	}
	for _, other := range servers {
		primary, err := a.accounts.observer(c, other)
		if err != nil || other == node {
			continue
		}
		if behind, err := primary.InRecovery(ctx); err != nil || behind {
			continue
		}
		lsn, err := primary.Position(ctx)
		if err != nil {
			continue
		}
		if _, err = standby.Replayed(ctx, lsn); errors.As(err, new(*postgres.Behind)) {
			return &saga.NotYet{Again: time.Second, Why: fmt.Sprintf("replica %s has WAL yet to replay: %v", node.Name, fault), Laggards: []string{node.Name}}
		}
	}
	return fault
}

func (a *app) confirmNode(ctx context.Context, r *service.Rotation, node inventory.Node, cred *sealed.Credential) error {
	reader, err := a.catalogueReader(ctx, r.Credential, node)
	if err != nil {
		return err
	}
	before := r.Requested().GetBasisUser()
	roles, err := reader.RoleStates(ctx, cred.User, before)
	now := roles[cred.User]
	switch {
	case err != nil:
		return err
	case !now.Exists:
		return fmt.Errorf("%s: login %q does not exist any more", node.Name, cred.User)
	case !now.CanLogin:
		return fmt.Errorf("%s: login %q, which is in use, may not log in: ALTER ROLE it LOGIN", node.Name, cred.User)
	case now.Verifier.IsZero():
		return fmt.Errorf("%s: login %q has no password: somebody took it after it was staged", node.Name, cred.User)
	case !now.Verifier.Equal(cred.Verifier) && !postgres.Matches(cred.User, cred.Password, now.Verifier):
		return fmt.Errorf("%s: login %q carries another password than the published one: somebody changed it after it was staged", node.Name, cred.User)
	}
	if alternates(r) && roles[before].CanLogin {
		return fmt.Errorf("%s: the old login %q may log in again: somebody let it after it was retired; ALTER ROLE it NOLOGIN", node.Name, before)
	}
	return nil
}

// readsVerifiers asks without provoking an error in the server's log.
const readsVerifiers = `
SELECT has_column_privilege('pg_catalog.pg_authid', 'rolpassword', 'select') OR EXISTS (
	SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = pronamespace
	WHERE nspname = 'pawl' AND proname = 'verifier'
	  AND has_schema_privilege(n.oid, 'usage') AND has_function_privilege(p.oid, 'execute'))`

// catalogueReader is the observer, where it may read verifiers, else the admin,
// whose own error then says which right is missing.
func (a *app) catalogueReader(ctx context.Context, c *inventory.Credential, node inventory.Node) (*postgres.Admin, error) {
	observer, err := a.accounts.observer(c, node)
	if err != nil {
		return nil, err
	}
	var may bool
	err = observer.Do(ctx, func(conn *pgx.Conn) error {
		err := conn.QueryRow(ctx, readsVerifiers).Scan(&may)
		if err != nil {
			return probe.Explain(node.Name+": read the observer's rights", err)
		}
		return nil
	})
	if err != nil || may {
		return observer, err
	}
	return a.accounts.admin(c, node)
}

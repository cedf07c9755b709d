package app

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

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

// verify logs in on every server, once, runs the probes on that connection, and
// then awaits that every consumer is seen on the new login. An adoption
// restarts nobody, so there it ends with the probes.
func (a *app) verify(ctx context.Context, r *service.Rotation) (*pawlv1.Event, error) {
	cred, err := a.open(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := onEach(r.Reached(r.Credential.Nodes), func(primary inventory.Node) error { return a.probeSet(ctx, r, primary, cred) }); err != nil {
		return nil, err
	}
	event := &pawlv1.Event{Summary: fmt.Sprintf("%s logged in on %s, %s passed", cred.User, service.Count(len(r.Credential.Members()), "node"), service.Count(len(probe.For(r.Credential)), "probe"))}
	if r.State.Flow.Adopts {
		return event, nil
	}
	proof, err := a.prove(ctx, r, cred)
	if err != nil {
		return nil, err
	}
	event.Detail = &pawlv1.Event_Proof{Proof: proof}
	event.Summary += ", " + service.Count(len(proof.GetConsumers()), "consumer") + " proven"
	return event, nil
}

// open reads the rotation's envelope, and checks it against the log.
func (a *app) open(ctx context.Context, r *service.Rotation) (*sealed.Credential, error) {
	cred, err := a.sealed.Open(ctx, r.Credential.Name, r.ID)
	if err != nil {
		return nil, err
	}
	if staged := r.Staged().GetUser(); cred.User != staged {
		return nil, saga.Permanentf("the sealed credential is %q's, the log says %q", cred.User, staged)
	}
	return cred, nil
}

// probeSet probes a primary and its replicas. All must let the new login in; the
// rest is probed where writes are taken now: after a failover, on a former
// replica.
func (a *app) probeSet(ctx context.Context, r *service.Rotation, primary inventory.Node, cred *sealed.Credential) error {
	servers := r.Reached(set(r.Credential, primary))
	var written atomic.Bool
	err := onEach(servers, func(node inventory.Node) error {
		standby, err := a.probeNode(ctx, r, node, cred, len(servers) > 1)
		if !standby {
			written.Store(true)
		}
		return err
	})
	if err == nil && !written.Load() {
		return fmt.Errorf("%s is a standby, and none of its replicas takes writes: promote one, or correct pawl.yaml", primary.Name)
	}
	return err
}

// probeNode reports whether the server is a standby, if it mayBe one.
func (a *app) probeNode(ctx context.Context, r *service.Rotation, node inventory.Node, cred *sealed.Credential, mayBe bool) (standby bool, err error) {
	login := &probe.Login{User: cred.User, Role: cred.User, Another: func(ctx context.Context) (*pgx.Conn, error) {
		return logIn(ctx, r.Credential, node, cred)
	}}
	unseen := r.Credential.Unseen() != "" // the new login itself looks, then
	if !unseen {
		observer, err := a.accounts.observerIn(r.Credential, node, r.Credential.LoginDatabase())
		if err != nil {
			return false, err
		}
		login.Catalogue = observer.Do
	}
	if alternates(r) {
		login.Role = r.Requested().GetRole()
		login.Old = r.Requested().GetBasisUser()
	}
	err = effect.Do(ctx, "log in", node.Name, func(ctx context.Context) (err error) {
		if login.Conn, err = login.Another(ctx); err != nil || !mayBe {
			return explainLogin(err, cred.User, node)
		}
		if err = login.Conn.QueryRow(ctx, "SELECT pg_catalog.pg_is_in_recovery()").Scan(&standby); err != nil {
			return probe.Explain(node.Name+": ask for recovery", err)
		}
		return nil
	})
	if login.Conn != nil {
		defer probe.Close(login.Conn)
	}
	if err != nil {
		return standby, err
	}
	probes := probe.For(r.Credential)
	switch {
	case standby:
		probes = probe.ForStandby()
	case unseen && r.State.Flow.Logins == saga.Two: // an emergency is not held up by it
		probes = append(probes, probe.Policies{})
	}
	for _, p := range probes {
		err := effect.Do(ctx, "probe", node.Name+" "+p.Name(), func(ctx context.Context) error {
			if err := p.Run(ctx, login); err != nil {
				return fmt.Errorf("%s: %w", node.Name, err)
			}
			return nil
		})
		if err != nil {
			return standby, err
		}
	}
	return standby, nil
}

func logIn(ctx context.Context, c *inventory.Credential, node inventory.Node, cred *sealed.Credential) (*pgx.Conn, error) {
	target := postgres.CredentialTarget(node, c.Cluster.Observer)
	target.User, target.Database, target.Password = cred.User, c.LoginDatabase(), cred.Password
	return postgres.Login(ctx, target)
}

// unproven begins pgx's text for a login that was granted, or asked for, in
// another way than SCRAM; it has no type of its own.
const unproven = "authentication method requirement"

func explainLogin(err error, user string, node inventory.Node) error {
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), unproven):
		return saga.Permanentf("%s: pg_hba lets %q in without proof of the password (trust, peer, or another method than SCRAM), so its login proves nothing: find its line in pg_hba.conf, %s", node.Name, user, hbaFix)
	}
	return probe.Explain(fmt.Sprintf("%s: log in as %q", node.Name, user), err)
}

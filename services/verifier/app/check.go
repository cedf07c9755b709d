package app

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/verifier/internal/probe"
)

// check looks, without a login of the credential, at what verify will need, and
// at what would make the two logins of an alternating credential differ.
func (a *app) check(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	members := c.Members()
	standings := make([]standing, len(members))
	reports := survey(members, func(i int, r *report) {
		standings[i].node, standings[i].report = members[i], r
		checkWire(c, members[i], r)
		observer, err := a.accounts.observer(c, members[i])
		if err == nil {
			err = observer.Do(ctx, func(conn *pgx.Conn) error {
				if !checkRights(ctx, conn, c, r) {
					return nil
				}
				checkRules(ctx, conn, c, r)
				checkRoom(ctx, conn, c, r)
				checkAudit(ctx, conn, r)
				checkMembers(ctx, conn, c, r)
				standings[i].read(ctx, conn)
				return nil
			})
		}
		if err != nil {
			r.refuse("observer %q cannot log in: %v", c.Cluster.Observer.User, err)
		}
	})
	var all sync.WaitGroup
	for _, primary := range c.Nodes {
		size := len(set(c, primary))
		servers := standings[:size]
		standings = standings[size:]
		all.Go(func() {
			lead := a.checkStandings(ctx, c, servers)
			if lead != nil && c.Strategy == inventory.Alternating {
				a.checkAlternation(ctx, c, lead.node, lead.report)
			}
		})
	}
	all.Wait()
	return lines(reports)
}

// report collects the lines about one node.
type report struct {
	node  string
	lines []*pawlv1.Check
}

func (r *report) find(format string, args ...any) { r.add(false, format, args...) }

func (r *report) refuse(format string, args ...any) { r.add(true, format, args...) }

func (r *report) add(refused bool, format string, args ...any) {
	r.lines = append(r.lines, &pawlv1.Check{Service: saga.Verifier, Target: r.node, Finding: fmt.Sprintf(format, args...), Refused: refused})
}

// about finds what reports look for by its topic.
func (r *report) about(topic, format string, args ...any) {
	r.find(format, args...)
	r.lines[len(r.lines)-1].Topic = topic
}

// survey looks at all nodes at once, each with a report of its own.
func survey(nodes []inventory.Node, look func(i int, r *report)) []*report {
	reports := make([]*report, len(nodes))
	var all sync.WaitGroup
	for i, node := range nodes {
		reports[i] = &report{node: node.Name}
		all.Go(func() { look(i, reports[i]) })
	}
	all.Wait()
	return reports
}

func lines(reports []*report) (all []*pawlv1.Check) {
	for _, r := range reports {
		all = append(all, r.lines...)
	}
	return all
}

// checkWire notes what pawl.yaml leaves open to others on the network.
func checkWire(c *inventory.Credential, node inventory.Node, r *report) {
	accounts := []inventory.Account{c.Cluster.Admin}
	if c.Cluster.Observer != c.Cluster.Admin {
		accounts = append(accounts, c.Cluster.Observer)
	}
	for _, account := range accounts {
		if exposed := postgres.CredentialTarget(node, account).Exposed(); exposed != "" {
			r.find("warning: sessions of %q are not protected on the network: %s", account.User, exposed)
		}
	}
}

// checkRights returns whether the observer sees what the other checks look at.
func checkRights(ctx context.Context, conn *pgx.Conn, c *inventory.Credential, r *report) (sees bool) {
	var alters bool
	err := conn.QueryRow(ctx, `SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user`).Scan(&sees, &alters)
	switch {
	case err != nil:
		r.refuse("%v", probe.Explain("read the observer's rights", err))
	case !sees:
		r.refuse("observer %q may not see others' sessions: GRANT pg_monitor TO it", c.Cluster.Observer.User)
	default:
		r.find("observer %q sees every session", c.Cluster.Observer.User)
	}
	if alters && c.Cluster.HasObserver() {
		r.find("warning: observer %q logs in to applications' databases, and may alter roles. Fix: ALTER ROLE %s NOSUPERUSER NOCREATEROLE", c.Cluster.Observer.User, quote(c.Cluster.Observer.User))
	}
	return sees
}

// examine tells which login each consumer's sessions use.
func (a *app) examine(ctx context.Context, c *inventory.Credential) []*pawlv1.Check {
	members := c.Members()
	return lines(survey(members, func(i int, r *report) {
		checkWire(c, members[i], r)
		observer, err := a.accounts.observer(c, members[i])
		if err != nil {
			r.refuse("%v", err)
			return
		}
		sessions, err := observer.Sessions(ctx, c.Logins())
		if err != nil {
			r.refuse("%v", err)
			return
		}
		for _, consumer := range c.Consumers {
			if consumer.Instances == 0 {
				continue
			}
			uses := map[string]int{}
			for _, s := range sessions {
				if s.Application == consumer.ApplicationName {
					uses[s.User]++
				}
			}
			r.add(len(uses) > 1, "%s: %s", consumer.Name, describeUses(uses))
		}
	}))
}

func describeUses(uses map[string]int) string {
	if len(uses) == 0 {
		return "no session"
	}
	var texts []string
	for login, n := range uses {
		texts = append(texts, fmt.Sprintf("%s as %q", service.Count(n, "session"), login))
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

package rotator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Reconciler compares, for ever, what every node holds with what the log says
// it should. A lost write is repaired, behind the same fence as a rotation's;
// anything else is reported, and never fought over. Replicas of the service may
// all do so: a repair is idempotent.
type Reconciler struct {
	rotator *Rotator
	d       service.Dependencies
	log     func(ctx context.Context, credential string) (bus.Log, error)
	// standing is restored.Of: what the log of a restored store is worth.
	standing func(ctx context.Context, log bus.Log) (restored.Verdict, error)
	every    time.Duration

	mu       sync.Mutex
	expected map[string]*expectation     // by credential
	history  map[string]postgres.History // by cluster and node
	said     map[string]string           // by credential and node
}

// NewReconciler returns one that compares everything this often, and a node
// whose history has changed at once.
func NewReconciler(o *Rotator, d service.Dependencies, every time.Duration) *Reconciler {
	return &Reconciler{rotator: o, d: d, every: every, log: d.Bus.ReadNewest,
		standing: func(ctx context.Context, log bus.Log) (restored.Verdict, error) { return restored.Of(ctx, d.Bus, log) },
		expected: map[string]*expectation{}, history: map[string]postgres.History{}, said: map[string]string{}}
}

// Run reconciles until ctx ends.
func (r *Reconciler) Run(ctx context.Context) error {
	var comparing sync.WaitGroup
	defer comparing.Wait()
	comparing.Go(func() { r.compareRestored(ctx) })
	tick := time.NewTicker(max(r.every/10, min(r.every, time.Second)))
	defer tick.Stop()
	var last time.Time
	for {
		all := time.Since(last) >= r.every
		if all {
			last = time.Now()
		}
		r.pass(ctx, all)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pass looks at every node; at all that it holds, or only at its history.
func (r *Reconciler) pass(ctx context.Context, all bool) {
	type place struct { // two clusters may name one server, each with its own admin
		cluster *inventory.Cluster
		node    inventory.Node
	}
	on := map[place][]*inventory.Credential{}
	for _, c := range r.d.Inventory.Credentials {
		for _, node := range c.Nodes {
			at := place{c.Cluster, node}
			on[at] = append(on[at], c)
		}
	}
	var nodes sync.WaitGroup
	for at, credentials := range on {
		node := at.node
		nodes.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
			defer cancel()
			if err := r.node(ctx, node, credentials, all); err != nil && ctx.Err() == nil {
				r.d.Log.Warn("node not compared; again soon", "node", node.Name, "error", err)
			}
		})
	}
	nodes.Wait()
}

func (r *Reconciler) node(ctx context.Context, node inventory.Node, credentials []*inventory.Credential, all bool) error {
	at := credentials
	if !all {
		at = r.locked(credentials)
	}
	expected := r.expectations(ctx, at)
	r.keepOut(ctx, node, expected)
	p, err := r.rotator.lead(effect.With(ctx, &effect.Recorder{}), credentials[0], node)
	if err != nil {
		return err
	}
	now, err := p.History(ctx)
	if err != nil {
		return err
	}
	if !r.remember(ctx, credentials[0].Cluster.Name+"/"+node.Name, p, now) && !all {
		return nil
	}
	if !all {
		expected = r.expectations(ctx, credentials)
	}
	if len(expected) == 0 {
		return nil
	}
	var logins, roles []string
	for _, e := range expected {
		roles = append(roles, e.credential.Role)
		logins = append(logins, e.logins()...)
	}
	held, err := p.Holdings(ctx, logins, roles)
	if err != nil {
		return err
	}
	for _, e := range expected {
		r.settle(ctx, p, e, e.judge(r.rotator, held))
	}
	return nil
}

// locked are those of the credentials that were, when they were last looked at.
func (r *Reconciler) locked(credentials []*inventory.Credential) []*inventory.Credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(credentials), func(c *inventory.Credential) bool { e := r.expected[c.Name]; return e == nil || !e.isLock() })
}

// keepOut ends who is logged in with a locked login on the node and its replicas. No
// guard follows a lock, and a replica that has yet to replay it still lets in.
func (r *Reconciler) keepOut(ctx context.Context, node inventory.Node, expected []*expectation) {
	expected = slices.DeleteFunc(slices.Clone(expected), func(e *expectation) bool { return !e.isLock() })
	if len(expected) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var all sync.WaitGroup
	for _, member := range append([]inventory.Node{node}, expected[0].credential.Cluster.Replicas(node)...) {
		admin, err := r.rotator.admin(expected[0].credential, member)
		if err != nil {
			continue
		}
		all.Go(func() {
			var roles, logins []string
			for _, e := range expected {
				roles = append(roles, e.credential.Role)
			}
			fences, _ := admin.StoredOf(ctx, roles...)
			for _, e := range expected {
				if !isOvertaken(fences[e.credential.Role], e.fence.Rotation, e.fence.Generation) { // unlocked since: the log may be a late follower's
					logins = append(logins, e.refused...)
				}
			}
			_, _ = admin.Evict(ctx, postgres.Eviction{Logins: logins}) // at the next pass, where it cannot be
		})
	}
	all.Wait()
}

// remember reports whether the node's history is another one than before.
func (r *Reconciler) remember(ctx context.Context, key string, p *primary, now postgres.History) (changed bool) {
	r.mu.Lock()
	before, known := r.history[key]
	r.history[key] = now
	r.mu.Unlock()
	if !known || before == now {
		return !known
	}
	r.d.Note(ctx, &pawlv1.Note{Kind: "history changed", Text: fmt.Sprintf("%s: was system %s timeline %d, up since %s; is system %s timeline %d, up since %s: compared at once", p.Node,
		before.System, before.Timeline, before.Started.Format(time.RFC3339), now.System, now.Timeline, now.Started.Format(time.RFC3339))})
	return true
}

// expectations of the credentials that have one now. What was worked out
// before is used again while the log is the same.
func (r *Reconciler) expectations(ctx context.Context, credentials []*inventory.Credential) []*expectation {
	var all []*expectation
	for _, c := range credentials {
		e, err := r.expectation(ctx, c)
		if err != nil && ctx.Err() == nil {
			r.d.Log.Warn("credential not compared; again soon", "credential", c.Name, "error", err)
		}
		if e != nil {
			all = append(all, e)
		}
	}
	return all
}

func (r *Reconciler) expectation(ctx context.Context, c *inventory.Credential) (*expectation, error) {
	log, err := r.log(ctx, c.Name)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	e := r.expected[c.Name]
	r.mu.Unlock()
	if e != nil && e.seq == log.LastSeq() && e.fence.Rotation == log.Rotation {
		return e, nil
	}
	if verdict, err := r.standing(ctx, log); err != nil || verdict.Standing != restored.Agrees {
		return nil, err // the node may be right, and the log old
	}
	// What a process has left undone that has died.
	if state, err := log.Fold(); err == nil && state.Flow.Urgent && log.Find(saga.Contained) != nil {
		if contained := log.Find(saga.Contained); r.d.Clock.Since(contained.At) < evidenceFor {
			by := contained.Body.GetContained()
			if log.Find(saga.Released) != nil { // those that were late, too
				by = everywhereAt(c, by)
			}
			r.rotator.gather(c, log.Rotation, by)
		}
		if state.Open() && log.Find(saga.Staged) != nil {
			r.rotator.guard(c, log.Rotation, log.Records[0].Seq)
		}
	}
	if e, err = r.rotator.expect(ctx, c, log); err != nil || e == nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expected[c.Name] = e
	return e, nil
}

// settle repairs or reports.
func (r *Reconciler) settle(ctx context.Context, p *primary, e *expectation, v verdict) {
	drifts := v.wrong != "" && !v.lost
	if v.lost {
		err := r.repair(ctx, p, e, v)
		switch {
		case errors.Is(err, errMovedOn):
			return
		case err != nil:
			r.d.Log.Warn("lost write not repaired; again soon", "credential", e.credential.Name, "node", p.Node, "error", err)
			return
		}
	}
	r.d.Metrics.Drift(e.credential.Name, p.Name, drifts)
	if !r.news(e.credential.Name+"/"+p.Name, v) {
		return
	}
	note := &pawlv1.Note{Kind: "drift", Credential: e.credential.Name, Rotation: e.fence.Rotation,
		Text: fmt.Sprintf("%s: %s, and Pawl did not do it: it is left as it is; `pawl doctor %s` shows more", p.Node, v.wrong, e.credential.Name)}
	switch {
	case v.back:
		note.Kind, note.Text = "repaired", fmt.Sprintf("%s: %s: refused again; somebody had given it back, or a failover or an older backup had", p.Node, v.wrong)
	case v.lost:
		note.Kind, note.Text = "repaired", fmt.Sprintf("%s had lost what was committed there (%s): done again", p.Node, v.wrong)
	case v.wrong == "":
		note.Kind, note.Text = "drift over", p.Node+" holds what it should again"
	}
	r.d.Note(ctx, note)
}

// news reports whether the verdict is another one than the last, or a repair.
func (r *Reconciler) news(key string, v verdict) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := r.said[key]
	if v.lost {
		delete(r.said, key)
		return true
	}
	r.said[key] = v.wrong
	return said != v.wrong
}

var errMovedOn = errors.New("the log has moved on, or the node holds something else by now")

// repair does again what the node has lost. The log and the node are both
// looked at once more while the fence's lock is held.
func (r *Reconciler) repair(ctx context.Context, p *primary, e *expectation, v verdict) error {
	ctx, span := r.d.Tracer.Start(ctx, "reconcile")
	defer span.End()
	ctx = effect.With(ctx, &effect.Recorder{Credential: e.credential.Name, Step: "reconcile"})
	err := effect.Do(ctx, "repair", p.Name, func(ctx context.Context) error {
		if err := p.EnsureFence(ctx); err != nil {
			return err
		}
		return p.Fenced(ctx, e.fence, func(ctx context.Context, tx *postgres.Tx) error {
			log, err := r.log(ctx, e.credential.Name)
			if err != nil {
				return err
			}
			if log.LastSeq() != e.seq {
				return errMovedOn
			}
			return e.restore(ctx, r.rotator, tx, p.Name)
		})
	})
	if err != nil || len(e.refused) == 0 {
		return err
	}
	for _, a := range append([]*postgres.Admin{p.Admin}, p.replicas...) {
		if _, err := a.Evict(ctx, postgres.Eviction{Logins: e.refused}); err != nil {
			return err
		}
	}
	return nil
}

// restore makes the logins what they should be, if what they are was Pawl's.
func (e *expectation) restore(ctx context.Context, o *Rotator, tx *postgres.Tx, node string) error {
	for _, login := range e.refused {
		role, err := tx.RoleState(ctx, login)
		if err == nil && role.Exists && (role.CanLogin || !role.Verifier.IsZero()) {
			err = tx.SetVerifier(ctx, login, false, secret.String{})
		}
		if err != nil {
			return err
		}
	}
	if e.current == nil {
		return nil
	}
	err := e.restoreLogin(ctx, o, tx, node, e.current.User, func(now postgres.Role) error {
		if carries(now, e.current) && now.CanLogin {
			return nil
		}
		return tx.SetVerifier(ctx, now.Name, true, e.current.Verifier)
	})
	if err != nil || e.idle == "" {
		return err
	}
	return e.restoreLogin(ctx, o, tx, node, e.idle, func(idle postgres.Role) error {
		switch {
		case e.kept == nil && idle.CanLogin:
			return tx.SetVerifier(ctx, idle.Name, false, secret.String{})
		case e.kept == nil:
			return nil
		case !carries(idle, e.kept):
			return tx.SetVerifier(ctx, idle.Name, false, e.kept.Verifier)
		}
		return tx.SetLogin(ctx, idle.Name, false)
	})
}

// restoreLogin looks at one of the two, makes the second one where it is
// missing, and has it set.
func (e *expectation) restoreLogin(ctx context.Context, o *Rotator, tx *postgres.Tx, node, login string, set func(postgres.Role) error) error {
	now, err := tx.RoleState(ctx, login)
	if err != nil {
		return err
	}
	if !now.Exists && login == e.idle && e.kept == nil {
		return nil
	}
	if !now.Exists && login != e.credential.Role {
		owner, err := tx.RoleState(ctx, e.credential.Role)
		if err == nil {
			err = unfit(owner)
		}
		var settings []postgres.Setting
		if err == nil {
			settings, err = e.settings(ctx, tx, node)
		}
		if err == nil {
			err = tx.CreateSibling(ctx, owner, login, settings)
		}
		if err != nil {
			return err
		}
		now.Exists = true
	}
	if err := unfit(now); err != nil {
		return err
	}
	if !carries(now, e.current) && !e.isEarlier(o, now) {
		return errMovedOn
	}
	return set(now)
}

package app

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/verifier/internal/consumers"
	"pawl.dev/services/verifier/internal/probe"
)

// prove awaits every consumer on the new login. When the time is up it names
// all that are missing.
func (a *app) prove(ctx context.Context, r *service.Rotation, cred *sealed.Credential) (*pawlv1.Proof, error) {
	logins := consumers.Logins{User: r.Staged().GetUser(), Old: r.Staged().GetUser(), Since: map[string]time.Time{}}
	if alternates(r) {
		logins.Old = r.Requested().GetBasisUser()
	}
	for _, node := range r.Reached(r.Credential.Members()) {
		committed, ok := r.Staged().GetCommittedAt()[node.Name]
		if !ok {
			return nil, saga.Permanentf("node %q was not staged, so no session on it proves anything: it is new in pawl.yaml; rotate again", node.Name)
		}
		logins.Since[node.Name] = committed.AsTime()
	}
	look := func(ctx context.Context) (consumers.Seen, error) { return a.sessions(ctx, r, cred, logins.Old) }
	until := time.Now().Add(time.Until(giveUp(ctx, r)) * 9 / 10)

	proof := &pawlv1.Proof{}
	var missing []string
	for _, c := range r.Credential.Consumers {
		if c.Instances == 0 { // such as a pooler: its sessions are its clients'
			continue
		}
		err := effect.Do(ctx, "prove consumer", c.Name, func(ctx context.Context) error {
			proven, err := logins.Await(ctx, until, c, look, a.teller(ctx, r))
			if err == nil {
				proof.Consumers = append(proof.Consumers, proven)
			}
			return err
		})
		switch {
		case err == nil:
		case errors.As(err, new(*consumers.Unproven)):
			missing = append(missing, err.Error())
		default:
			return nil, err
		}
	}
	if len(missing) > 0 {
		return nil, saga.Permanentf("consumers not proven: %s", strings.Join(missing, "; "))
	}
	if !alternates(r) {
		proof.Outage = outage(r)
	}
	return proof, nil
}

// teller notes whom the step waits for, so that a person can see to it in time.
func (a *app) teller(ctx context.Context, r *service.Rotation) func(missing string) {
	last, said := time.Now(), ""
	return func(missing string) {
		if missing == said || time.Since(last) < a.tellEvery {
			return
		}
		last, said = time.Now(), missing
		a.note(ctx, &pawlv1.Note{Kind: "waiting", Credential: r.Credential.Name, Rotation: r.ID, Step: r.Step.Name, Text: missing})
	}
}

// giveUp is when the handler must have ended.
func giveUp(ctx context.Context, r *service.Rotation) time.Time {
	if ends, ok := ctx.Deadline(); ok && ends.Before(r.Deadline) {
		return ends
	}
	return r.Deadline
}

// sessions asks every server who uses the logins. One that an emergency was too late to
// contain is asked, too: by now it may have the new password, and be where the
// application is.
func (a *app) sessions(ctx context.Context, r *service.Rotation, cred *sealed.Credential, old string) (consumers.Seen, error) {
	var mu sync.Mutex
	seen := consumers.Seen{}
	add := func(node inventory.Node, sessions []postgres.Session) {
		mu.Lock()
		defer mu.Unlock()
		seen[node.Name] = sessions
	}
	_ = onEach(r.Late(r.Credential.Members()), func(node inventory.Node) error {
		ctx, cancel := context.WithTimeout(ctx, lateFor)
		defer cancel()
		if sessions := a.arrived(ctx, r, node, cred, old); sessions != nil {
			add(node, sessions)
		}
		return nil
	})
	err := onEach(r.Reached(r.Credential.Members()), func(node inventory.Node) error {
		sessions, err := a.sessionsOn(ctx, r, node, cred.User, old)
		if err == nil {
			add(node, sessions)
		}
		return err
	})
	return seen, err
}

func (a *app) sessionsOn(ctx context.Context, r *service.Rotation, node inventory.Node, logins ...string) ([]postgres.Session, error) {
	observer, err := a.accounts.observer(r.Credential, node)
	if err != nil {
		return nil, err
	}
	sessions, err := observer.Sessions(ctx, logins)
	if err != nil {
		return nil, err
	}
	for _, s := range sessions {
		if s.BackendStart.Unix() == 0 {
			return nil, saga.Permanentf("%s: observer %q may not see others' sessions: GRANT pg_monitor TO it", node.Name, r.Credential.Cluster.Observer.User)
		}
	}
	return sessions, nil
}

// lateFor bounds the look at a server that may still be away.
const lateFor = 500 * time.Millisecond

// arrived are the sessions of a late server, if it lets the new login in by now: whoever
// was in before has been ended, so each of them has the new password. A login is tried
// only where somebody is in: one that fails feeds alarms.
func (a *app) arrived(ctx context.Context, r *service.Rotation, node inventory.Node, cred *sealed.Credential, old string) []postgres.Session {
	sessions, err := a.sessionsOn(ctx, r, node, cred.User, old)
	if err != nil || !slices.ContainsFunc(sessions, func(s postgres.Session) bool { return s.User == cred.User }) {
		return nil
	}
	conn, err := logIn(ctx, r.Credential, node, cred)
	if err != nil {
		return nil
	}
	probe.Close(conn)
	return sessions
}

// outage is how long the published password was refused: from the first commit,
// by the database's clock, to the end of the last sink's write, by the
// publisher's; nil where no sink was written.
func outage(r *service.Rotation) *durationpb.Duration {
	var written, committed time.Time
	for _, op := range r.Events[saga.Published].GetOperations() {
		if end := op.GetStartedAt().AsTime().Add(op.GetDuration().AsDuration()); op.GetName() == "write sink" && end.After(written) {
			written = end
		}
	}
	for _, at := range r.Staged().GetCommittedAt() {
		if committed.IsZero() || at.AsTime().Before(committed) {
			committed = at.AsTime()
		}
	}
	if written.IsZero() {
		return nil
	}
	return durationpb.New(max(0, written.Sub(committed)))
}

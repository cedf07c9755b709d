package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// kind is one way through a flow that the drills exercise.
type kind struct {
	name     string
	strategy string
	fails    bool // a probe fails, so that the rotation is taken back
	before   []pawlv1.Action
	action   pawlv1.Action
	keep     string
	end      saga.Event
	first    saga.Event // where the drilled part begins: earlier points belong to another kind
	cancels  bool       // it is cancelled while it is verified, which a probe holds up
	own      bool       // the credential is Pawl's own admin's
	cluster  bool       // on every node of the cluster, not on the first alone
}

const (
	adopt    = pawlv1.Action_ACTION_ADOPT
	rotate   = pawlv1.Action_ACTION_ROTATE
	rollback = pawlv1.Action_ACTION_ROLLBACK
	plan     = pawlv1.Action_ACTION_PLAN
	contain  = pawlv1.Action_ACTION_CONTAIN
)

// drainWindow is long enough for the oracle to log in with what it has read.
const drainWindow = time.Second

var kinds = []kind{
	{name: "alternating", strategy: "alternating", before: []pawlv1.Action{adopt}, action: rotate, end: saga.Completed},
	{name: "alternating-back", strategy: "alternating", fails: true, before: []pawlv1.Action{adopt}, action: rotate, end: saga.RolledBack, first: saga.VerifyFailed},
	{name: "in-place", strategy: "in-place", before: []pawlv1.Action{adopt}, action: rotate, end: saga.Completed},
	{name: "in-place-back", strategy: "in-place", fails: true, before: []pawlv1.Action{adopt}, action: rotate, end: saga.RolledBack, first: saga.VerifyFailed},
	{name: "cancelled", strategy: "alternating", cancels: true, before: []pawlv1.Action{adopt}, action: rotate, end: saga.RolledBack, first: saga.Cancelled},
	{name: "adopt", strategy: "alternating", action: adopt, end: saga.Completed},
	{name: "undo-alternating", strategy: "alternating", before: []pawlv1.Action{adopt, rotate}, action: rollback, keep: "1h", end: saga.RolledBack},
	{name: "own-admin", strategy: "alternating", own: true, before: []pawlv1.Action{adopt}, action: rotate, end: saga.Completed},
	{name: "own-admin-back", strategy: "alternating", own: true, fails: true, before: []pawlv1.Action{adopt}, action: rotate, end: saga.RolledBack, first: saga.VerifyFailed},
	{name: "cluster", strategy: "alternating", cluster: true, before: []pawlv1.Action{adopt}, action: rotate, end: saga.Completed},
	{name: "cluster-back", strategy: "in-place", cluster: true, fails: true, before: []pawlv1.Action{adopt}, action: rotate, end: saga.RolledBack, first: saga.VerifyFailed},
	{name: "emergency", strategy: "alternating", before: []pawlv1.Action{adopt}, action: contain, end: saga.Completed},
	{name: "emergency-in-place", strategy: "in-place", cluster: true, before: []pawlv1.Action{adopt}, action: contain, end: saga.Completed},
	{name: "undo-in-place", strategy: "in-place", before: []pawlv1.Action{adopt, rotate}, action: rollback, keep: "1h", end: saga.RolledBack},
}

// credential of a drill of this kind. A failing probe begins to fail when the
// role is given a comment, so that adoption still passes.
func (k kind) credential(name string, apps *site.Apps) site.Credential {
	c := site.Credential{Name: name, Strategy: k.strategy, Keep: k.keep, Drain: drainWindow.String(), Restart: apps.RestartYAML(name), Own: k.own}
	if !k.cluster {
		c.Nodes = []string{"primary"}
	}
	if k.fails {
		c.Probes = []string{fmt.Sprintf("SELECT 1/(CASE WHEN shobj_description('%s'::regrole, 'pg_authid') = 'refuse' THEN 0 ELSE 1 END)", site.Role(name))}
	}
	if k.cancels {
		c.Probes = []string{fmt.Sprintf("SELECT pg_sleep(CASE WHEN shobj_description('%s'::regrole, 'pg_authid') = 'refuse' THEN 30 ELSE 0 END)", site.Role(name))}
	}
	return c
}

// prepare runs what precedes the drilled rotation.
func (k kind) prepare(ctx context.Context, w *world, credential string) error {
	for _, action := range k.before {
		for done := false; !done; { // its time may have been up while other drills had the services killed
			log, err := w.client.Do(ctx, credential, action)
			if err != nil {
				return err
			}
			done = log.Find(saga.Completed) != nil
		}
	}
	if k.fails || k.cancels {
		conn, err := w.site.Superuser(ctx)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, fmt.Sprintf("COMMENT ON ROLE %s IS 'refuse'", site.Role(credential)))
		return err
	}
	return nil
}

// points returns the crash points that a finished rotation has passed, in
// order: each step's effects, and its append.
func points(log bus.Log, k kind) []string {
	flow, _ := saga.FlowByName(log.Records[0].Body.GetRequested().GetFlow())
	skip := k.first != ""
	var found []string
	if k.cancels {
		found = append(found, "cancel.append.before", "cancel.append.after")
	}
	for _, r := range log.Records[1:] {
		if r.Event == k.first {
			skip = false
			continue
		}
		if skip {
			continue
		}
		for _, step := range slices.Concat(flow.Forward, flow.Undo, flow.Tail) {
			if r.Event != step.Emits && r.Event != step.Fails {
				continue
			}
			for _, op := range r.Body.GetOperations() {
				at := fmt.Sprintf("%s.%s(%s)", step.Name, op.GetName(), op.GetTarget())
				found = append(found, at+".before", at+".after")
			}
			found = append(found, step.Name+".append.before", step.Name+".append.after")
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// check asserts what must hold after any rotation, whatever happened during it.
func (w *world) check(ctx context.Context, credential string, log bus.Log, strategy string) error {
	faults := []error{legal(log), w.agree(ctx, credential, log, strategy)}
	if nodes := w.site.Inventory.Credentials[credential].Nodes; len(nodes) > 1 && len(w.site.Nodes) >= len(nodes) {
		faults = append(faults, w.everywhere(ctx, credential))
	}
	return errors.Join(faults...)
}

// legal replays the log: each event must have been the one due, or have turned
// the rotation round.
func legal(log bus.Log) error {
	log = unrehearsed(log)
	var faults []error
	for i := 1; i < len(log.Records); i++ {
		so, err := bus.Log{Credential: log.Credential, Rotation: log.Rotation, Records: log.Records[:i]}.Fold()
		if err != nil {
			return err
		}
		next, e := so.Next(), log.Records[i].Event
		if next == nil || e != next.Emits && (next.Retriable() || e != next.Fails && !slices.Contains(saga.Reversals, e)) {
			faults = append(faults, fmt.Errorf("event %s was not due in %v", e, site.Events(log)))
		}
	}
	return errors.Join(faults...)
}

// agree asserts that database, sealed store and sink say the same.
func (w *world) agree(ctx context.Context, credential string, log bus.Log, strategy string) error {
	state, err := log.Fold()
	if err != nil {
		return err
	}
	current := log.Rotation
	if ended, _ := state.Ended(); ended.Event == saga.RolledBack {
		begin := log.Records[0].Body.GetRequested()
		if current = begin.GetBasis(); begin.GetAction() == rollback {
			current = begin.GetRestores()
		}
	}
	if current == "" { // an adoption that failed: there was nothing before it
		return nil
	}
	held, err := w.sealed.Open(ctx, credential, current)
	if err != nil {
		return fmt.Errorf("sealed store: %w", err)
	}
	published, err := w.site.Published(credential)
	if err != nil {
		return fmt.Errorf("sink: %w", err)
	}
	var faults []error
	if published.User != held.User || !published.Password.Equal(held.Password) {
		faults = append(faults, fmt.Errorf(".env publishes %s %s, sealed is %s %s", published.User, w.sealed.Fingerprint(published.User, published.Password), held.User, w.sealed.Fingerprint(held.User, held.Password)))
	}
	faults = append(faults, w.ownFile(credential, held))
	conn, err := w.site.LoginPublished(ctx, credential, "check")
	if err != nil {
		faults = append(faults, fmt.Errorf("the published credential does not log in: %w", err))
	} else {
		faults = append(faults, conn.Close(ctx))
	}
	if strategy == "alternating" {
		faults = append(faults, w.idle(ctx, credential, held, state))
	}
	if _, erased := state.Has(saga.Erased); erased {
		left, err := w.sealed.Rotations(ctx, credential)
		if err != nil || len(left) != 1 || left[0] != current {
			faults = append(faults, fmt.Errorf("envelopes left after erase: %v (%v), want only %s", left, err, current))
		}
	}
	return errors.Join(faults...)
}

// ownFile asserts that the file from which Pawl itself reads its login, if the
// credential is that, says the same.
func (w *world) ownFile(credential string, held *sealed.Credential) error {
	if w.site.Inventory.Credentials[credential].Cluster.Admin.Credential == "" {
		return nil
	}
	login, err := w.site.Inventory.Credentials[credential].Cluster.Admin.Login()
	if err == nil && (login.User != held.User || !login.Password.Equal(held.Password)) {
		err = fmt.Errorf("Pawl's own file names %s, or another password; sealed is %s", login.User, held.User)
	}
	return err
}

// idle asserts that the login not in use cannot log in, and, once erased, has
// no password.
func (w *world) idle(ctx context.Context, credential string, held *sealed.Credential, state saga.State) error {
	idle := site.Role(credential)
	if held.User == idle {
		idle += "_b"
	}
	role, err := w.admin.RoleState(ctx, idle)
	if err != nil {
		return fmt.Errorf("idle login: %w", err)
	}
	_, erased := state.Has(saga.Erased)
	switch {
	case role.Exists && role.CanLogin:
		return fmt.Errorf("idle login %s can log in", idle)
	case role.Exists && erased && !role.Verifier.IsZero():
		return fmt.Errorf("idle login %s still has a password after erase", idle)
	}
	return nil
}

// drill is one rotation with its faults.
type drill struct {
	credential string
	kind       kind
	points     []string // each kills the process that reaches it
	what       string   // KILL or STOP
}

func (d drill) String() string {
	return fmt.Sprintf("%s of %s %s at %s", d.kind.name, d.credential, d.what, strings.Join(d.points, " and "))
}

// run performs the drill and returns what was violated.
func (w *world) run(ctx context.Context, d drill) error {
	ctx, cancel := context.WithTimeout(ctx, 150*time.Second)
	defer cancel()
	if err := w.apps.Start(ctx, d.credential); err != nil {
		return err
	}
	defer w.apps.Stop(context.WithoutCancel(ctx), d.credential)
	if err := d.kind.prepare(ctx, w, d.credential); err != nil {
		return fmt.Errorf("before the drill: %w", err)
	}
	for _, p := range d.points {
		if err := w.fleet.Order(d.credential, p, d.what); err != nil {
			return err
		}
	}
	defer w.withdraw(d)
	oracle := w.site.Watch(ctx, d.credential, 25*time.Millisecond, drainWindow/2)
	log, err := w.through(ctx, d)
	oracle.Stop()
	for _, password := range oracle.Seen {
		w.seen.add(password.Reveal())
	}
	if err != nil {
		return err
	}
	var faults []error
	for _, p := range d.points {
		if !w.fleet.Hit(d.credential, p) {
			w.seen.miss(fmt.Sprintf("%s: nobody came by %s", d.credential, p))
		}
	}
	if ended := log.Find(d.kind.end); ended == nil && d.what == "KILL" {
		faults = append(faults, fmt.Errorf("ended otherwise than %s: %v %s", d.kind.end, site.Events(log), failureOf(log)))
	}
	if d.kind.strategy == "alternating" && d.kind.action != contain && len(oracle.Refusals) > 0 {
		faults = append(faults, fmt.Errorf("%d of %d logins with the published credential were refused: %v", len(oracle.Refusals), oracle.Logins+len(oracle.Refusals), oracle.Refusals[:min(3, len(oracle.Refusals))]))
	}
	w.seen.sawOutage(oracle.Outage)
	return errors.Join(append(faults, w.check(ctx, d.credential, log, d.kind.strategy))...)
}

// through asks for the rotation and follows it to its end; a stopped process is
// woken once the rotation has ended without it, or cannot.
func (w *world) through(ctx context.Context, d drill) (bus.Log, error) {
	answer, err := w.ask(ctx, d.credential, d.kind.action)
	if err != nil {
		return bus.Log{}, err
	}
	if d.kind.cancels {
		if err := w.cancel(ctx, d.credential, answer.GetRotation()); err != nil {
			return bus.Log{}, err
		}
	}
	last := []saga.Event{saga.Erased}
	if d.kind.keep != "" || d.kind.action == adopt {
		last = []saga.Event{saga.Completed, saga.RolledBack}
	}
	return w.await(ctx, d, answer.GetRotation(), last...)
}

// cancel cancels the rotation once its consumers have restarted.
func (w *world) cancel(ctx context.Context, credential, rotation string) error {
	if _, err := w.client.Await(ctx, credential, rotation, saga.Restarted); err != nil {
		return err
	}
	answer, err := w.client.Cancel(ctx, credential, rotation)
	if err == nil && answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		err = fmt.Errorf("cancel of %s: %s: %s", rotation, answer.GetOutcome(), answer.GetReason())
	}
	return err
}

// await waits for the rotation's end. Who is stopped at the drill's points sleeps
// until then, or for long enough: a zombie that holds a lock keeps it from ending.
func (w *world) await(ctx context.Context, d drill, rotation string, last ...saga.Event) (log bus.Log, err error) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		log, err = w.client.Await(ctx, d.credential, rotation, last...)
	}()
	woken := w.wakeInTime(ctx, d, ended)
	<-ended
	return log, errors.Join(err, woken)
}

func (w *world) wakeInTime(ctx context.Context, d drill, ended <-chan struct{}) error {
	if d.what != "STOP" {
		return nil
	}
	hit := func() bool { return w.fleet.Hit(d.credential, d.points[0]) }
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for over := false; !over && !hit(); {
		select {
		case <-ended:
			over = true
		case <-tick.C:
		}
	}
	w.fleet.Withdraw(d.credential, d.points[0]) // nobody would wake who comes by later
	select {
	case <-ended:
	case <-time.After(2 * stepDeadline):
	}
	return w.wake(context.WithoutCancel(ctx), d)
}

// withdraw takes back what was ordered for the drill; who was stopped by it
// goes on.
func (w *world) withdraw(d drill) {
	for _, p := range d.points {
		w.fleet.Withdraw(d.credential, p)
		if pid, _, err := w.fleet.Stopped(d.credential, p); err == nil && d.what == "STOP" {
			_ = syscall.Kill(pid, syscall.SIGCONT) // it may have been woken, or have died
		}
	}
}

// ask asks until it is answered for a reason of its own: other drills may have
// stopped every replica of a service, without which a request is refused.
func (w *world) ask(ctx context.Context, credential string, action pawlv1.Action) (*pawlv1.Answer, error) {
	answer, err := w.client.Ask(ctx, credential, action)
	for err == nil && answer.GetOutcome() == pawlv1.Outcome_OUTCOME_REJECTED && strings.Contains(answer.GetReason(), "does not answer") {
		answer, err = w.client.Ask(ctx, credential, action)
	}
	if err != nil {
		return nil, err
	}
	if answer.GetOutcome() != pawlv1.Outcome_OUTCOME_ACCEPTED {
		return nil, fmt.Errorf("%s of %s: %s: %s", action, credential, answer.GetOutcome(), answer.GetReason())
	}
	return answer, nil
}

func failureOf(log bus.Log) string {
	for _, r := range log.Records {
		if f := r.Body.GetFailure(); f != nil {
			return fmt.Sprintf("(%s: %s)", f.GetStep(), f.GetReason())
		}
	}
	return ""
}

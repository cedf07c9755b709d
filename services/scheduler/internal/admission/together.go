package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/restored"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// member is one credential of those that a request would turn together.
type member struct {
	*inventory.Credential
	newest rotation.Rotation
	begin  *pawlv1.Requested // nil where it is refused
}

func names(members []*member) []string {
	var all []string
	for _, m := range members {
		all = append(all, m.Name)
	}
	return all
}

// together returns what the request is about, in the order of names: its
// credential, for a rotation also those that it names beside it, and the group
// of each.
func (c *Clerk) together(q *request) ([]*member, error) {
	action, inv := q.body.GetAction(), c.d.Inventory
	rotates := action == pawlv1.Action_ACTION_ROTATE || action == pawlv1.Action_ACTION_PLAN
	if len(q.body.GetWith()) > 0 && !rotates {
		return nil, fmt.Errorf("%s is of one credential at a time: leave out `with`, and ask for each", actionName(action))
	}
	var all []string
	for _, name := range append([]string{q.credential}, q.body.GetWith()...) {
		known, ok := inv.Credentials[name]
		switch {
		case !ok:
			has := "does not have it"
			if q.user != bus.Requester { // whose key is given away
				has = "has " + c.knownNames()
			}
			return nil, fmt.Errorf("unknown credential %q: pawl.yaml, as read when the scheduler started, %s", name, has)
		case rotates:
			all = append(all, inv.Together(known)...)
		default:
			all = append(all, name)
		}
	}
	all = slices.Compact(sorted(all))
	if len(all) > inventory.MaxTogether {
		return nil, fmt.Errorf("%d credentials would turn together: at most %d can: name fewer", len(all), inventory.MaxTogether)
	}
	if err := inv.CanTurnTogether(all); err != nil {
		return nil, err
	}
	var members []*member
	for _, name := range all {
		members = append(members, &member{Credential: inv.Credentials[name]})
	}
	if len(members) > 1 {
		q.group = all
	}
	return members, nil
}

// look reads the member's log, and prepares its requested event or says what is
// in the way.
func (c *Clerk) look(ctx context.Context, q *request, m *member) (refusal *pawlv1.Answer, err error) {
	log, err := c.d.Bus.ReadNewest(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	if before, bound := q.follows[m.Name]; bound && before != log.Rotation {
		return rejected(m.Name + " was turned meanwhile"), nil
	}
	held, err := c.held(ctx, log)
	if err != nil {
		return nil, err
	}
	if held != "" && q.body.GetAction() != pawlv1.Action_ACTION_ADOPT {
		return rejected(held), nil
	}
	if m.newest, err = rotation.Of(log, nil); err == nil {
		m.begin, refusal = prepare(q, m.Credential, m.newest, held != "", c.d.Clock)
	}
	return refusal, err
}

// held says why nothing may begin from a restored log, but what takes over from
// it: an adoption, or an emergency. It is empty where the log can be trusted.
func (c *Clerk) held(ctx context.Context, log bus.Log) (why string, err error) {
	verdict, err := restored.Of(ctx, c.d.Bus, log)
	if err != nil || verdict.Standing == restored.Agrees || verdict.Standing == restored.Undone {
		return "", err
	}
	return verdict.Why, nil
}

// preflight asks the services about all members, some at a time. reasons is
// what they refused, empty for nothing.
func (c *Clerk) preflight(ctx context.Context, action pawlv1.Action, members []*member) (found []*pawlv1.Check, reasons string, missing error) {
	type result struct {
		checks  []*pawlv1.Check
		missing error
	}
	results := make([]result, len(members))
	var all errgroup.Group
	all.SetLimit(8)
	for i, m := range members {
		all.Go(func() error {
			asked, sealed := takingPart(action, m.begin)
			checks, missing := service.Preflight(ctx, c.d.Bus, m.Name, asked, sealed...)
			results[i] = result{checks, missing}
			return nil
		})
	}
	_ = all.Wait() // none returns an error
	var refused []string
	if err := c.d.Process.Err(); err != nil && action != pawlv1.Action_ACTION_ROLLBACK {
		refused = append(refused, err.Error()) // what has begun can go on, as long as nothing is added
	}
	for i, r := range results {
		why := refusals(r.checks, r.missing)
		if why != "" && len(members) > 1 {
			why = members[i].Name + ": " + why
		}
		if why != "" {
			refused = append(refused, why)
		}
		if missing == nil {
			missing = r.missing
		}
		for _, check := range r.checks {
			check.Target = target(members, members[i], check.GetTarget())
		}
		found = append(found, r.checks...)
	}
	return found, strings.Join(refused, "; "), missing
}

// takingPart returns whom to ask, and the rotations whose sealed credentials
// they will have to open.
func takingPart(action pawlv1.Action, begin *pawlv1.Requested) (services, sealed []string) {
	switch action {
	case pawlv1.Action_ACTION_ADOPT:
		return service.Checked, nil // the way out where nothing can be opened any more
	case pawlv1.Action_ACTION_ROLLBACK:
		// The verifier has no part in it. Nor is the restarter asked: a consumer
		// that cannot be restarted may be the reason for it.
		return []string{saga.DBRotator, saga.SecretPublisher}, []string{begin.GetBasis(), begin.GetRestores()}
	}
	return service.Checked, []string{begin.GetBasis()}
}

// target names the member where there are several.
func target(members []*member, m *member, what string) string {
	if len(members) == 1 {
		return what
	}
	return m.Name + ": " + what
}

// refusals joins what preflight refused of one credential, empty for nothing.
func refusals(checks []*pawlv1.Check, missing error) string {
	var reasons []string
	for _, c := range checks {
		if !c.GetRefused() {
			continue
		}
		finding := c.GetFinding()
		if !strings.HasPrefix(finding, c.GetTarget()+": ") { // an error may name its node itself
			finding = c.GetTarget() + ": " + finding
		}
		reasons = append(reasons, c.GetService()+": "+finding)
	}
	if missing != nil {
		reasons = append(reasons, strings.ReplaceAll(missing.Error(), "\n", "; "))
	}
	return strings.Join(reasons, "; ")
}

package admission

import (
	"context"
	"slices"
	"strings"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// plan is preflight and the steps, touching nothing.
func (c *Clerk) plan(ctx context.Context, q *request, members []*member) (*pawlv1.Answer, time.Duration, error) {
	as := *q
	as.body = &pawlv1.Request{Action: pawlv1.Action_ACTION_ROTATE}
	var reasons []string
	for _, m := range members {
		refusal, err := c.look(ctx, &as, m)
		if err != nil {
			return nil, 0, err
		}
		if refusal != nil {
			reasons = append(reasons, refusal.GetReason())
		}
	}
	checks, refused, _ := c.preflight(ctx, as.body.GetAction(), members)
	if refused != "" {
		reasons = append(reasons, refused)
	}
	answer := &pawlv1.Answer{Outcome: pawlv1.Outcome_OUTCOME_ACCEPTED, Plan: append(checks, c.asOne(members)...), Reason: strings.Join(reasons, "; ")}
	if answer.Reason != "" {
		answer.Outcome = pawlv1.Outcome_OUTCOME_REJECTED
	}
	for _, m := range members {
		for _, warning := range c.unproven(ctx, &as, m) {
			answer.Plan = append(answer.Plan, &pawlv1.Check{Service: saga.Scheduler, Target: m.Name, Finding: "warning: " + warning})
		}
		flow, begins := saga.FlowByName(m.begin.GetFlow())
		if !begins {
			continue
		}
		for _, step := range flow.Forward {
			answer.Plan = append(answer.Plan, &pawlv1.Check{Service: step.Owner, Target: target(members, m, step.Name), Finding: "step: " + step.Does})
		}
	}
	return answer, 0, nil
}

// asOne tells what is different because several turn together.
func (c *Clerk) asOne(members []*member) (lines []*pawlv1.Check) {
	if len(members) == 1 {
		return nil
	}
	group := names(members)
	var told []string
	for _, m := range members {
		if m.Strategy == inventory.InPlace {
			lines = append(lines, &pawlv1.Check{Service: saga.Scheduler, Target: m.Name,
				Finding: "warning: in-place: its logins fail from its own change until all of " + strings.Join(group, ", ") + " are published and its consumers have restarted; alone it would take less"})
		}
		for _, consumer := range m.Consumers {
			if sharing := c.d.Inventory.Sharing(consumer.Name, group); len(sharing) > 1 && !slices.Contains(told, consumer.Name) {
				told = append(told, consumer.Name)
				lines = append(lines, &pawlv1.Check{Service: saga.Restarter, Target: "consumer " + consumer.Name,
					Finding: "restarts once, for " + strings.Join(sharing, ", ") + ", when all are published"})
			}
		}
	}
	return lines
}

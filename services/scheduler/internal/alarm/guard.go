package alarm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/rotation"
	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/scheduler/internal/admission"
)

// What holds an alert back: before it is decided upon, and then.
const (
	undecodable = "undecodable"
	resolved    = "resolved"
	repeat      = "repeat"
	unmapped    = "unmapped"
	own         = "own"
	age         = "age"
	rotating    = "rotation"
	cooldown    = "cooldown"
	storm       = "storm"
	dryRun      = "dry-run"
)

// guards are asked in this order; the first that objects holds the alert back.
var guards = []struct {
	name string
	// objects says why, empty where it has no objection.
	objects func(d *Desk, ctx context.Context, q *question, a *pawlv1.Alarm) (string, error)
}{
	{own, (*Desk).isOwn},             // Pawl never locks itself out
	{age, (*Desk).isOld},             // somebody may have acted long ago
	{rotating, (*Desk).isARotations}, // failed logins that a rotation causes cause none
	{cooldown, (*Desk).isCooling},    // one emergency, however many alerts tell of the theft
	{storm, (*Desk).isStorming},      // who can raise alerts cannot cut everybody off
	{dryRun, (*Desk).isDry},          // a rehearsal
}

// callsPeople are the guards after which a person has to do something.
var callsPeople = map[string]bool{own: true, age: true, storm: true}

const (
	oldest = time.Hour       // an alert that began before is a person's
	ahead  = 5 * time.Minute // how much the clock of its source may be fast
)

// weigh decides, upon what the newest decision hands on.
func (d *Desk) weigh(ctx context.Context, q *question, last *pawlv1.Alarm) (*pawlv1.Alarm, error) {
	settings := d.d.Inventory.Alerts
	now := d.d.Clock.Now()
	a := &pawlv1.Alarm{Source: q.source, Sequence: q.sequence, Fingerprint: q.GetFingerprint(), StartsAt: q.GetStartsAt(),
		Alert: q.line(), Credential: q.credential(), At: timestamppb.New(now), Fired: map[string]*timestamppb.Timestamp{}, Rehearsal: settings.DryRun}
	if last.GetRehearsal() != settings.DryRun { // what was only rehearsed has cut nobody off
		last = nil
	}
	for name, at := range last.GetFired() {
		if d.d.Clock.Since(at.AsTime()) < max(settings.Cooldown, settings.Storm.Within) {
			a.Fired[name] = at
		}
	}
	if braked := last.GetBraked(); braked != nil && d.d.Clock.Since(braked.AsTime()) < settings.Storm.Within {
		a.Braked = braked
	}
	if q.rule == nil {
		a.Guard, a.Reason = unmapped, "no rule in pawl.yaml names a credential for it; its labels are "+labelNames(q.GetLabels())
		if other := settings.SourceFor(q.GetLabels()); other != "" {
			a.Reason = fmt.Sprintf("the rule for it believes %s alone, and it came from %s: see \"Wire it\" in docs/runbooks/alerts.md", other, short(q.source))
		}
		return a, nil
	}
	for _, g := range guards {
		reason, err := g.objects(d, ctx, q, a)
		if err != nil {
			return nil, err
		}
		if reason != "" {
			a.Guard, a.Reason = g.name, reason
			break
		}
	}
	switch a.GetGuard() {
	case storm:
		a.Braked = a.At
	case dryRun:
		a.Fired[a.Credential] = a.At
	case "":
		a.Fired[a.Credential] = a.At
		a.Rotation = admission.RotationID(now, q.sequence)
	}
	return a, nil
}

func (d *Desk) isOwn(_ context.Context, q *question, _ *pawlv1.Alarm) (string, error) {
	if !q.rule.Credential.IsOwn() {
		return "", nil
	}
	return fmt.Sprintf("Pawl itself logs in with %[1]s, and would lock itself out: rotate it (`pawl rotate %[1]s`), and have a superuser end the sessions of the old login", q.credential()), nil
}

func (d *Desk) isOld(_ context.Context, q *question, a *pawlv1.Alarm) (string, error) {
	switch began := q.GetStartsAt().AsTime(); {
	case a.At.AsTime().Sub(began) > oldest:
		return fmt.Sprintf("it began at %s, and who was told then may have acted: if nobody has, `pawl emergency %s`", began.Format(time.RFC3339), q.credential()), nil
	case began.Sub(a.At.AsTime()) > ahead:
		return fmt.Sprintf("it is to begin at %s: is the clock of its source right? If it is real, `pawl emergency %s`", began.Format(time.RFC3339), q.credential()), nil
	}
	return "", nil
}

// isARotations looks at what the log says of the moment in which the alert began.
func (d *Desk) isARotations(ctx context.Context, q *question, _ *pawlv1.Alarm) (string, error) {
	if !q.rule.Holds(q.source) {
		return "", nil
	}
	began, grace := q.GetStartsAt().AsTime(), d.d.Inventory.Alerts.Grace
	events, err := d.d.Bus.ReadSince(ctx, q.credential(), began.Add(-grace))
	if err != nil {
		return "", err
	}
	for _, e := range events {
		ended := e.Event == saga.Completed || e.Event == saga.RolledBack
		switch {
		case e.Event == saga.Erased: // after the end
		case !e.At.After(began) && ended:
			return fmt.Sprintf("rotation %s had ended only at %s, and may have caused it: it is given %v", e.Rotation, e.At.UTC().Format(time.RFC3339), grace), nil
		case e.At.After(began) && e.Event != saga.Requested:
			return fmt.Sprintf("rotation %s was under way when it began, and may have caused it", e.Rotation), nil
		case e.At.After(began):
			return d.isIdle(ctx, q)
		}
	}
	return d.isIdle(ctx, q)
}

// isIdle objects where a rotation is under way, and where the login is not the
// one in use: who still tries that one has an old credential.
func (d *Desk) isIdle(ctx context.Context, q *question) (string, error) {
	newest, err := rotation.Of(d.d.Bus.ReadNewest(ctx, q.credential()))
	if err != nil {
		return "", err
	}
	if newest.Open() && !newest.Began().After(q.GetStartsAt().AsTime()) {
		return fmt.Sprintf("rotation %s was under way when it began, and may have caused it", newest.Rotation), nil
	}
	role := q.GetLabels()[inventory.LabelRole]
	if current := newest.Current(); !newest.Open() && current.User != "" && current.User != role {
		return fmt.Sprintf("%q is not the login in use, and lets nobody in", role), nil
	}
	return "", nil
}

func (d *Desk) isCooling(ctx context.Context, q *question, a *pawlv1.Alarm) (string, error) {
	newest, err := rotation.Of(d.d.Bus.ReadNewest(ctx, q.credential()))
	switch {
	case err != nil:
		return "", err
	case newest.Flow.Locks:
		return q.credential() + " is locked: nobody can log in with it", nil
	case newest.Flow.Urgent && newest.Open():
		return fmt.Sprintf("emergency %s of %s is under way", newest.Rotation, q.credential()), nil
	}
	cool := d.d.Inventory.Alerts.Cooldown
	contained, err := d.d.Bus.LastOf(ctx, q.credential(), saga.Contained)
	if err != nil {
		return "", err
	}
	if !contained.At.IsZero() && d.d.Clock.Since(contained.At) < cool {
		return fmt.Sprintf("%s was contained by %s at %s: the cool-down is %v", q.credential(), contained.Rotation, contained.At.UTC().Format(time.RFC3339), cool), nil
	}
	if at, ok := a.GetFired()[q.credential()]; ok && d.d.Clock.Since(at.AsTime()) < cool {
		return fmt.Sprintf("another alert has cut %s off at %s: the cool-down is %v", q.credential(), at.AsTime().Format(time.RFC3339), cool), nil
	}
	return "", nil
}

// isStorming counts what alerts have cut off. Once it has braked, it does for as
// long as alerts come that it would let pass otherwise.
func (d *Desk) isStorming(_ context.Context, q *question, a *pawlv1.Alarm) (string, error) {
	limit := d.d.Inventory.Alerts.Storm
	var others []string
	for name, at := range a.GetFired() {
		if name != q.credential() && d.d.Clock.Since(at.AsTime()) < limit.Within {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	ask := fmt.Sprintf("look whether the alerts are real; then `pawl emergency %s`", q.credential())
	switch {
	case a.GetBraked() != nil:
		return fmt.Sprintf("the storm brake holds until no alert has come for %v: %s", limit.Within, ask), nil
	case len(others) >= limit.Credentials:
		return fmt.Sprintf("alerts have cut off %d credentials within %v (%s), and do no more by themselves: %s", len(others), limit.Within, strings.Join(others, ", "), ask), nil
	}
	return "", nil
}

func (d *Desk) isDry(_ context.Context, q *question, _ *pawlv1.Alarm) (string, error) {
	if !d.d.Inventory.Alerts.DryRun {
		return "", nil
	}
	return q.credential() + " would have been cut off (alerts.dry_run in pawl.yaml)", nil
}

// line is the alert in one line: its name and the labels by which it was mapped.
// The others, and the annotations, stay where the alert is stored: a scanner may
// have put there what it found.
func (q *question) line() string {
	names := []string{inventory.LabelCluster, inventory.LabelRole}
	if q.rule != nil {
		names = append(names, slices.Collect(maps.Keys(q.rule.Labels))...)
	}
	slices.Sort(names)
	var labels []string
	for _, name := range names {
		if value, there := q.GetLabels()[name]; there && name != inventory.LabelAlert {
			labels = append(labels, name+"="+strconv.Quote(short(value)))
		}
	}
	return fmt.Sprintf("%s{%s} from %s", short(q.GetLabels()[inventory.LabelAlert]), strings.Join(labels, ","), short(q.source))
}

// labelNames lists the first of them.
func labelNames(labels map[string]string) string {
	const most = 20
	names, more := slices.Sorted(maps.Keys(labels)), ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(names)-most)
	}
	for i, name := range names {
		names[i] = short(name)
	}
	return strings.Join(names, ", ") + more
}

// short keeps a line a line.
func short(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 100 {
		text = strings.ToValidUTF8(text[:100], "") + "…"
	}
	return text
}

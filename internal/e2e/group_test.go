package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	"pawl.dev/internal/saga"
)

// together is one way in which the three credentials of one application may go.
type together struct {
	name string
	ends [3]saga.Event // of a, b and c
	// spoil makes c fail where preflight does not see it; mend undoes that.
	spoil, mend func(ctx context.Context, w *world, c string) error
	restarts    int // of the application they share, undisturbed
}

func comment(text string) func(context.Context, *world, string) error {
	return func(ctx context.Context, w *world, c string) error {
		return w.execute(ctx, fmt.Sprintf("COMMENT ON ROLE %s IS '%s'", site.Role(c), text))
	}
}

var togethers = []together{
	{name: "all", ends: [3]saga.Event{saga.Completed, saga.Completed, saga.Completed}, restarts: 1},
	// The verification of one fails: the others stay, and the application reads
	// its old credential again.
	{name: "alone", ends: [3]saga.Event{saga.Completed, saga.Completed, saga.RolledBack}, restarts: 2, spoil: comment("refuse"), mend: comment("")},
	// The first step of one fails: all roll back, and nobody needs a restart.
	{name: "none", ends: [3]saga.Event{saga.RolledBack, saga.RolledBack, saga.RolledBack}, restarts: 0,
		spoil: func(ctx context.Context, w *world, c string) error {
			return w.execute(ctx, fmt.Sprintf(`CREATE FUNCTION pawl.no_%[1]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				RAISE insufficient_privilege USING MESSAGE = 'not now'; END $$;
				CREATE TRIGGER no_%[1]s BEFORE INSERT OR UPDATE ON pawl.fence FOR EACH ROW
				WHEN (NEW.role = '%[1]s' AND NEW.phase = 1) EXECUTE FUNCTION pawl.no_%[1]s()`, site.Role(c)))
		},
		mend: func(ctx context.Context, w *world, c string) error {
			return w.execute(ctx, fmt.Sprintf("DROP FUNCTION pawl.no_%s() CASCADE", site.Role(c)))
		}},
}

func (w *world) execute(ctx context.Context, sql string) error {
	conn, err := w.site.Superuser(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, s := range []string{"SET log_statement = 'none'", "SET log_min_duration_statement = -1", "SET pg_stat_statements.track = 'none'", sql} {
		if _, err := conn.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// trio names the members of one group: two alternate, the third is in place.
func trio(group string) []string { return []string{group + "-a", group + "-b", group + "-c"} }

func layOutGroups(of map[string]int) func(*site.Apps, *pgserver.Server) []site.Credential {
	return func(apps *site.Apps, _ *pgserver.Server) (all []site.Credential) {
		for _, k := range togethers {
			for i := range of[k.name] {
				group := fmt.Sprintf("%s-%d", k.name, i)
				for n, name := range trio(group) {
					all = append(all, site.Credential{Name: name, Strategy: []string{"alternating", "alternating", "in-place"}[n], Drain: drainWindow.String(),
						Group: group, Consumer: group + "-app", Restart: apps.RestartYAML(group + "-app"),
						Probes: []string{fmt.Sprintf("SELECT 1/(CASE WHEN shobj_description('%s'::regrole, 'pg_authid') = 'refuse' THEN 0 ELSE 1 END)", site.Role(name))}})
				}
				apps.Share(group+"-app", trio(group)...)
			}
		}
		return all
	}
}

// groupDrill is one group rotation in which processes die.
type groupDrill struct {
	together
	group  string
	deaths [][2]string // credential and point
}

// perform runs the drill, returns the members' logs, and what was violated.
func (w *world) perform(ctx context.Context, d groupDrill) (logs []bus.Log, err error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	members, app := trio(d.group), d.group+"-app"
	if err := w.apps.Start(ctx, app); err != nil {
		return nil, err
	}
	for _, name := range members {
		defer w.apps.Stop(context.WithoutCancel(ctx), name)
		if _, err := w.client.Do(ctx, name, adopt); err != nil {
			return nil, err
		}
	}
	if d.spoil != nil {
		if err := d.spoil(ctx, w, members[2]); err != nil {
			return nil, err
		}
	}
	for _, death := range d.deaths {
		if err := w.fleet.Order(death[0], death[1], "KILL"); err != nil {
			return nil, err
		}
	}
	var oracles []*site.Oracle
	for _, name := range members[:2] {
		oracles = append(oracles, w.site.Watch(ctx, name, 25*time.Millisecond, drainWindow/2))
	}
	answer, err := w.ask(ctx, members[1], rotate)
	for _, name := range members {
		if err == nil {
			var log bus.Log
			log, err = w.client.Await(ctx, name, answer.GetRotation(), saga.Erased)
			logs = append(logs, log)
		}
	}
	var faults []error
	for i, oracle := range oracles {
		oracle.Stop()
		for _, password := range oracle.Seen {
			w.seen.add(password.Reveal())
		}
		if len(oracle.Refusals) > 0 {
			faults = append(faults, fmt.Errorf("%s: %d logins were refused: %s", members[i], len(oracle.Refusals), oracle.Refusals[0]))
		}
	}
	if err != nil {
		return logs, errors.Join(append(faults, err)...)
	}
	if d.mend != nil {
		if err := d.mend(ctx, w, members[2]); err != nil {
			return logs, err
		}
	}
	for _, death := range d.deaths {
		if !w.fleet.Hit(death[0], death[1]) {
			w.seen.miss(death[0] + " " + death[1])
		}
	}
	for i, log := range logs {
		if log.Find(d.ends[i]) == nil {
			faults = append(faults, fmt.Errorf("%s ended otherwise than %s: %v %s", log.Credential, d.ends[i], site.Events(log), failureOf(log)))
		}
		if err := w.check(ctx, log.Credential, log, []string{"alternating", "alternating", "in-place"}[i]); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", log.Credential, err))
		}
	}
	if n := w.apps.Restarts(app); len(d.deaths) == 0 && n != d.restarts {
		faults = append(faults, fmt.Errorf("the application restarted %d times, want %d", n, d.restarts))
	}
	return logs, errors.Join(faults...)
}

// deathsIn lists every point that the members of an undisturbed group passed
// where one of the services that make a group of them works.
func deathsIn(logs []bus.Log) (all [][2]string) {
	all = append(all, [2]string{logs[1].Credential, "begin.append.before"}, [2]string{logs[1].Credential, "begin.append.after"})
	for _, log := range logs {
		flow, _ := saga.FlowByName(log.Records[0].Body.GetRequested().GetFlow())
		for _, p := range points(log, kind{}) {
			step, _, _ := strings.Cut(p, ".")
			if i := slices.IndexFunc(slices.Concat(flow.Forward, flow.Undo), func(s saga.Step) bool { return s.Name == step }); i < 0 && !*full {
				continue
			}
			for _, s := range slices.Concat(flow.Forward, flow.Undo) {
				if s.Name == step && (s.Owner == saga.Restarter || s.Owner == saga.Scheduler || *full) {
					all = append(all, [2]string{log.Credential, p})
				}
			}
		}
	}
	return all
}

// TestCredentialsOfOneApplicationTurnTogether, undisturbed and while services
// are killed: each member ends as it should, in the database, in the files and
// in the store, and the application restarts once.
func TestCredentialsOfOneApplicationTurnTogether(t *testing.T) {
	n := 3
	if *full {
		n = 200
	}
	w := newWorld(t, 2, layOutGroups(map[string]int{"all": n, "alone": n, "none": n}))
	var drills []groupDrill
	for _, k := range togethers {
		logs, err := w.perform(t.Context(), groupDrill{together: k, group: k.name + "-0"})
		if err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		deaths := deathsIn(logs)
		if len(deaths) < 10 {
			t.Fatalf("%s has only %d crash points: %v", k.name, len(deaths), deaths)
		}
		for i, at := range w.random.Perm(len(deaths))[:min(len(deaths), n-1)] {
			group := fmt.Sprintf("%s-%d", k.name, i+1)
			death := [2]string{strings.Replace(deaths[at][0], k.name+"-0", group, 1), strings.ReplaceAll(deaths[at][1], k.name+"-0", group)}
			drills = append(drills, groupDrill{k, group, [][2]string{death}})
		}
	}
	slots := make(chan struct{}, 4)
	var wait sync.WaitGroup
	for _, d := range drills {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			if _, err := w.perform(t.Context(), d); err != nil {
				t.Errorf("%s, killed at %v:\n%v", d.group, d.deaths, err)
			}
		})
	}
	wait.Wait()
	if missed := w.seen.misses(); len(missed) > 1+len(drills)/10 {
		t.Errorf("points that nobody came by: %v", missed)
	}
	t.Logf("%d drills, %d processes died", len(drills), w.fleet.Died())
}

package rotator

import (
	"context"
	"errors"
	"slices"
	"time"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/postgres"
)

const (
	together  = 128 // emergencies share one transaction
	witnessed = 16  // credentials are looked at by the same sessions, one after the other
	// crowdedFor is how long the look at what logins have left waits for emergencies that
	// still contain, or issue, at the server.
	crowdedFor = 10 * time.Second
)

// jointly is what the emergencies at one server do together, if there are several: in
// few transactions, a few sessions at a time. What is out of the ordinary is left to
// each of them by itself.
type jointly struct {
	fences   joint[string, postgres.Fence]
	refusals joint[postgres.Refusal, postgres.Met]
	sweeps   joint[[]string, []postgres.Ended]
	prepared joint[[]string, []postgres.Prepared]
	clocks   joint[struct{}, postgres.Clock]
	evidence joint[looked, []postgres.Table]
}

// looked are the logins of a credential whose evidence is wanted.
type looked struct {
	logins   []string
	database string
}

// jointlyOn returns that of the server.
func (o *Rotator) jointlyOn(a *postgres.Admin, c *inventory.Cluster) *jointly {
	o.mu.Lock()
	defer o.mu.Unlock()
	if j := o.joint[a]; j != nil {
		return j
	}
	j := &jointly{
		fences:   joint[string, postgres.Fence]{run: readFences(a), most: together, within: patience},
		refusals: joint[postgres.Refusal, postgres.Met]{run: a.RefuseAll, most: together, within: patience},
		sweeps:   joint[[]string, []postgres.Ended]{run: sweep(a, postgres.Accounts(c)), most: together, within: patience},
		prepared: joint[[]string, []postgres.Prepared]{run: readPrepared(a), most: together, within: patience},
		clocks:   joint[struct{}, postgres.Clock]{run: readClock(a), most: together, within: patience},
		evidence: joint[looked, []postgres.Table]{run: o.witness(a, c.Name+"/"+a.Node), most: witnessed, within: crowdedFor + witnessed*lookFor},
	}
	if o.joint == nil {
		o.joint = map[*postgres.Admin]*jointly{}
	}
	o.joint[a] = j
	return j
}

func readFences(a *postgres.Admin) func(context.Context, []string) ([]postgres.Fence, error) {
	return func(ctx context.Context, roles []string) ([]postgres.Fence, error) {
		stored, err := a.StoredOf(ctx, roles...)
		if err != nil {
			return nil, err
		}
		fences := make([]postgres.Fence, len(roles))
		for i, role := range roles {
			fences[i] = stored[role]
		}
		return fences, nil
	}
}

// sweep ends the sessions of several credentials once. Each is told of those that
// concern it.
func sweep(a *postgres.Admin, except []string) func(context.Context, [][]string) ([][]postgres.Ended, error) {
	return func(ctx context.Context, logins [][]string) ([][]postgres.Ended, error) {
		of, all := numbered(logins)
		ended, err := a.Evict(ctx, postgres.Eviction{Logins: all, Members: true, Except: except})
		if err != nil {
			return nil, err
		}
		told := make([][]postgres.Ended, len(logins))
		for _, s := range ended {
			concerned := map[int]bool{}
			for _, login := range append([]string{s.User}, s.ActsAs...) {
				for _, i := range of[login] {
					concerned[i] = true
				}
			}
			for i := range logins {
				if concerned[i] || len(concerned) == 0 { // of a role that is gone: nobody can tell whose it was
					told[i] = append(told[i], s)
				}
			}
		}
		return told, nil
	}
}

func readPrepared(a *postgres.Admin) func(context.Context, [][]string) ([][]postgres.Prepared, error) {
	return func(ctx context.Context, owners [][]string) ([][]postgres.Prepared, error) {
		of, all := numbered(owners)
		prepared, err := a.PreparedBy(ctx, all)
		if err != nil {
			return nil, err
		}
		told := make([][]postgres.Prepared, len(owners))
		for _, p := range prepared {
			for _, i := range of[p.Owner] {
				told[i] = append(told[i], p)
			}
		}
		return told, nil
	}
}

func readClock(a *postgres.Admin) func(context.Context, []struct{}) ([]postgres.Clock, error) {
	return func(ctx context.Context, all []struct{}) ([]postgres.Clock, error) {
		is, err := a.Clock(ctx)
		return slices.Repeat([]postgres.Clock{is}, len(all)), err
	}
}

// witness reads evidence once no emergency contains or issues at the server any more, but
// does not wait for ever.
func (o *Rotator) witness(a *postgres.Admin, server string) func(context.Context, []looked) ([][]postgres.Table, error) {
	return func(ctx context.Context, all []looked) ([][]postgres.Table, error) {
		waiting, stop := context.WithTimeout(ctx, crowdedFor)
		o.crowd.awaitNone(waiting, server)
		stop()
		w := a.Witness()
		defer w.Close()
		told := make([][]postgres.Table, len(all))
		for i, of := range all {
			within, cancel := context.WithTimeoutCause(ctx, lookFor, errors.New("not read within the time for it"))
			told[i] = w.Evidence(within, of.logins, of.database)
			cancel()
		}
		return told, nil
	}
}

// numbered returns which of the lists hold a name, and all names.
func numbered(lists [][]string) (of map[string][]int, all []string) {
	of = map[string][]int{}
	for i, names := range lists {
		for _, name := range names {
			of[name] = append(of[name], i)
		}
		all = append(all, names...)
	}
	return of, all
}

// isSeveral reports whether other emergencies are at the server, too.
func (k *containment) isSeveral(a *postgres.Admin) bool {
	return !k.o.crowd.isOne(serverOf(k.c, a.Node))
}

// refuseTogether is refuse among others. An error that wraps postgres.ErrAlone says that
// it has to be done alone. If no answer comes, what the logins had may be taken, and nobody
// knows what it was.
func (k *containment) refuseTogether(ctx context.Context, s *primary, strip bool) error {
	met, err := k.o.jointlyOn(s.Admin, k.c.Cluster).refusals.ask(ctx, postgres.Refusal{Fence: k.fence, Sibling: k.c.Sibling(), Strip: strip})
	for login, role := range met.Roles {
		k.meets(login, role, nil)
	}
	if err != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.again = true
		return err
	}
	return met.Alone
}

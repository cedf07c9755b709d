package agenda

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pawl.dev/internal/bus"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// take enters a turn among those under way, and reports whether there is room
// for it. Entered twice, it is there once. What has ended is left out on the way:
// nobody has to give anything back, so nothing is lost with whoever dies.
func (a *Agenda) take(ctx context.Context, t turn, now time.Time) (free bool, err error) {
	clusters := a.clusters(t)
	if a.isFull(clusters) {
		return false, nil
	}
	for {
		turns, seq, err := a.world.Turns(ctx)
		if err != nil {
			return false, err
		}
		under, err := a.underWay(ctx, turns, now)
		if err != nil {
			return false, err
		}
		for _, other := range under {
			if other.GetCredential() == t.credential {
				// Or another timer's of the same unit, which may yet begin it.
				return other.GetRotation() == t.rotation, nil
			}
		}
		if full, where := a.noRoom(under, clusters); full {
			a.setFull(where)
			return false, nil
		}
		if a.nearby(under, t.credential) {
			return false, nil
		}
		under = append(under, &pawlv1.Turn{Rotation: t.rotation, Credential: t.credential, Clusters: clusters, Begun: timestamppb.New(now)})
		err = a.world.SetTurns(ctx, &pawlv1.Turns{Turns: under}, seq)
		if errors.Is(err, bus.ErrConflict) {
			continue // another was first: look again
		}
		return err == nil, err
	}
}

// giveBack takes out a turn that will not begin.
func (a *Agenda) giveBack(ctx context.Context, t turn) error {
	for {
		turns, seq, err := a.world.Turns(ctx)
		if err != nil {
			return err
		}
		rest := slices.DeleteFunc(slices.Clone(turns.GetTurns()), func(other *pawlv1.Turn) bool { return other.GetRotation() == t.rotation })
		if len(rest) == len(turns.GetTurns()) {
			return nil
		}
		if err := a.world.SetTurns(ctx, &pawlv1.Turns{Turns: rest}, seq); !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// underWay are the turns that have not ended.
func (a *Agenda) underWay(ctx context.Context, turns *pawlv1.Turns, now time.Time) (under []*pawlv1.Turn, err error) {
	for _, t := range turns.GetTurns() {
		ended, err := a.world.Ended(ctx, t, now)
		if err != nil {
			return nil, err
		}
		if !ended {
			under = append(under, t)
		}
	}
	return under, nil
}

// noRoom reports whether one more would be too many, and where.
func (a *Agenda) noRoom(under []*pawlv1.Turn, clusters []string) (full bool, where string) {
	if len(under) >= a.inv.Schedule.InAll {
		return true, ""
	}
	for _, cluster := range clusters {
		n := 0
		for _, t := range under {
			if slices.Contains(t.GetClusters(), cluster) {
				n++
			}
		}
		if n >= a.inv.Schedule.PerCluster {
			return true, cluster
		}
	}
	return false, ""
}

// nearby reports whether one is turning that the credential is kept apart from.
func (a *Agenda) nearby(under []*pawlv1.Turn, credential string) bool {
	related := a.book.Apart(credential)
	return slices.ContainsFunc(under, func(t *pawlv1.Turn) bool { return slices.Contains(related, t.GetCredential()) })
}

// clusters that the turn is in, by name.
func (a *Agenda) clusters(t turn) []string {
	var names []string
	for name := range t.follows {
		if c := a.inv.Credentials[name].Cluster; c != nil {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// isFull remembers for a moment what was full, so that a long queue asks little.
func (a *Agenda) isFull(clusters []string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	return now.Before(a.full[""]) || slices.ContainsFunc(clusters, func(c string) bool { return now.Before(a.full[c]) })
}

func (a *Agenda) setFull(where string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.full[where] = a.now().Add(a.fullFor)
}

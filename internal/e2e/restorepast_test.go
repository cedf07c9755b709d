package e2e

import (
	"strings"

	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

const (
	lock   = pawlv1.Action_ACTION_LOCK
	unlock = pawlv1.Action_ACTION_UNLOCK
)

// past is what happens to one credential while backups are made: a flow, and what
// follows it, which no backup has that was made before.
type past struct {
	kind
	then pawlv1.Action // unspecified: nothing
	kept string        // keep of the credential: how long until its predecessor is erased
}

func (p past) String() string {
	return strings.ToLower(p.name + strings.ReplaceAll(strings.TrimPrefix(p.then.String(), "ACTION"), "_", "-"))
}

// pasts are every flow, alone and with something after it.
func pasts() (all []past) {
	for _, k := range kinds {
		if k.own || k.cancels { // the same flows, of which the one has a cluster and sessions of its own
			continue
		}
		all = append(all, past{kind: k})
		if k.name != "adopt" {
			all = append(all, past{kind: k, then: contain})
		}
		if k.action != rollback && !k.fails && k.name != "adopt" {
			all = append(all, past{kind: k, then: rotate})
		}
		if k.action == rotate && !k.fails {
			all = append(all, past{kind: k, then: rollback, kept: "1h"}, past{kind: k, then: lock, kept: "1h"})
		}
	}
	locks := kinds[0]
	locks.name, locks.action = "lock", lock
	return append(all, past{kind: locks}, past{kind: locks, then: unlock})
}

// flow is the one that the past begins with.
func (p past) flow() *saga.Flow {
	name := p.strategy
	switch p.action {
	case adopt:
		name = saga.Adopt
	case rollback:
		name = "rollback-" + p.strategy
	case contain:
		name = saga.Emergency
	case lock:
		name = saga.Lock
	}
	flow, _ := saga.FlowByName(saga.Newest(name))
	return flow
}

// subject is a past, and the point at which the backup is made that is restored.
type subject struct {
	past
	point string
}

// subjects are every step of every flow: just before its event is stored, with its
// effects done, and just after.
func subjects() (all []subject) {
	for _, p := range pasts() {
		steps := []string{"begin"}
		flow := p.flow()
		for _, s := range flow.Forward {
			if !p.fails {
				steps = append(steps, s.Name)
			}
		}
		if p.fails {
			for _, s := range flow.Undo {
				steps = append(steps, s.Name)
			}
		}
		if p.keep == "" && p.kept == "" {
			for _, s := range flow.Tail {
				steps = append(steps, s.Name)
			}
		}
		for _, step := range steps {
			all = append(all, subject{p, step + ".append.before"}, subject{p, step + ".append.after"})
		}
	}
	return all
}

// isLocked reports whether the past ends so that nobody may log in.
func (p past) isLocked() bool { return p.then == lock || p.action == lock && p.then != unlock }

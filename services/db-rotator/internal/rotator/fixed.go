package rotator

import (
	"context"
	"sync"

	"pawl.dev/internal/effect"
	"pawl.dev/internal/postgres"
	"pawl.dev/internal/service"
)

// fixed are the settings on one node that Pawl has no right to undo. They are not tried
// again and again, while the others of them are.
type fixed struct {
	rotation string

	mu  sync.Mutex
	why map[place]error
}

// place is where a setting stands, whatever its value.
type place struct{ login, database, name string }

func placeOf(d postgres.Difference) place { return place{d.Login, d.Database(), d.Name()} }

// fixedSettings are those that this process has found on the node in this emergency.
func (o *Rotator) fixedSettings(r *service.Rotation, node string) *fixed {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := serverOf(r.Credential, node) + "/" + r.Credential.Role
	if f := o.fixed[key]; f != nil && f.rotation == r.ID {
		return f
	}
	f := &fixed{rotation: r.ID, why: map[place]error{}}
	o.fixed[key] = f
	return f
}

func (f *fixed) add(d postgres.Difference, why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.why[placeOf(d)] = why
}

// split returns those that may be undone, and those that stay.
func (f *fixed) split(all []postgres.Difference) (may, stay []postgres.Difference) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range all {
		if f.why[placeOf(d)] == nil {
			may = append(may, d)
		} else {
			stay = append(stay, d)
		}
	}
	return may, stay
}

// tell says of those that stay that they do.
func (f *fixed) tell(ctx context.Context, node string, stay []postgres.Difference) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range stay[:min(len(stay), maxNamed)] {
		tellStays(ctx, node, d, f.why[placeOf(d)])
	}
	if more := len(stay) - maxNamed; more > 0 {
		effect.Warn(ctx, "%s: %s could not be undone", node, service.Count(more, "more setting"))
	}
}

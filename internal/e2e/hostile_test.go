package e2e

import (
	"context"
	"testing"
	"time"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

// TestFlowsCallNothingOfAHostileDatabase adopts, plans, rotates, rolls back and
// contains in a database whose owner has shadowed all of PostgreSQL's own names,
// and has set what an owner may set.
func TestFlowsCallNothingOfAHostileDatabase(t *testing.T) {
	var server *pgserver.Server
	names := map[string]string{"walled": "alternating", "walled-in-place": "in-place"}
	w := newWorld(t, 1, func(_ *site.Apps, s *pgserver.Server) (all []site.Credential) {
		server = s
		for name, strategy := range names {
			all = append(all, site.Credential{Name: name, Strategy: strategy, Keep: "1h"})
		}
		return all
	})
	conn, err := w.site.Superuser(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if err := pgserver.Hostile(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	defer func() { // the search for passwords looks at the database, too
		if _, err := conn.Exec(context.WithoutCancel(t.Context()), "ALTER DATABASE postgres RESET ALL"); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for name := range names {
		for _, action := range []pawlv1.Action{adopt, rotate, rollback, rotate, contain} {
			if planned, err := w.client.Ask(ctx, name, plan); err != nil || planned.GetOutcome() == pawlv1.Outcome_OUTCOME_REJECTED && action != adopt {
				t.Fatalf("plan of %s before %s: %v (%v)", name, action, planned, err)
			}
			if _, err := w.client.Do(ctx, name, action); err != nil {
				t.Fatalf("%s of %s: %v", action, name, err)
			}
		}
	}
	calls, err := server.HostileCalls()
	if err != nil || len(calls) > 0 {
		t.Errorf("called with Pawl's rights: %v (%v)", calls, err)
	}
}

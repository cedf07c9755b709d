package e2e

import (
	"testing"

	"pawl.dev/internal/e2e/site"
	"pawl.dev/internal/pgserver"
)

// TestEveryFlowUndisturbed walks each flow once, and is what the crash tests
// compare with.
func TestEveryFlowUndisturbed(t *testing.T) {
	w := newWorld(t, 1, func(apps *site.Apps, _ *pgserver.Server) (all []site.Credential) {
		for _, k := range kinds {
			all = append(all, k.credential("first-"+k.name, apps))
		}
		return all
	})
	crashPoints(w)
}

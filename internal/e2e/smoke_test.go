package e2e

import (
	"testing"

	"pawl.dev/internal/e2e/site"
)

// TestEveryFlowUndisturbed walks each flow once, and is what the crash tests
// compare with.
func TestEveryFlowUndisturbed(t *testing.T) {
	apps := site.NewApps()
	var credentials []site.Credential
	for _, k := range kinds {
		credentials = append(credentials, k.credential("first-"+k.name, apps))
	}
	w := newWorld(t, 1, apps, credentials)
	for name, found := range crashPoints(w) {
		t.Logf("%s:", name)
		for _, p := range found {
			t.Log("  ", p)
		}
	}
}

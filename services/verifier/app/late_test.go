package app

import (
	"slices"
	"strings"
	"testing"

	"pawl.dev/internal/saga"
	"pawl.dev/internal/sealed"
	"pawl.dev/internal/secret"
	pawlv1 "pawl.dev/proto/pawl/v1"
	"pawl.dev/services/verifier/internal/pgtest"
)

// TestApplicationOnANodeThatWasLateIsSeen: an emergency that was too late to contain a
// node reaches it afterwards, and the application may log in to just that one. It counts
// only once the new password works there.
func TestApplicationOnANodeThatWasLateIsSeen(t *testing.T) {
	for name, reached := range map[string]bool{"reached since": true, "not reached yet": false} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, saga.Emergency)
			b.rotation.Events[saga.Contained] = &pawlv1.Event{Detail: &pawlv1.Event_Contained{Contained: &pawlv1.Contained{
				Returns: b.role, Pending: map[string]string{node: "locked"},
			}}}
			b.rotation.Staged().CommittedAt = nil
			b.consumes("api", 1)
			pgtest.Login(t, b.user(), "api application")
			if reached {
				event, err := b.run(t, b.verify)
				if err != nil {
					t.Fatal(err)
				}
				if seen := event.GetProof().GetConsumers(); len(seen) != 1 || !strings.Contains(strings.Join(seen[0].GetSessions(), " "), node) {
					t.Errorf("proof %v", seen)
				}
				return
			}
			b.soon()
			proof, err := b.prove(t.Context(), b.rotation, &sealed.Credential{User: b.role, Password: secret.New("another-c4nary")})
			if err == nil || !strings.Contains(err.Error(), "api: 0 of 1 instances") {
				t.Errorf("a session with the stolen password counts: %v, %v", proof, err)
			}
			if slices.Contains(b.operations("log in"), node) {
				t.Error("the late node was probed")
			}
		})
	}
}

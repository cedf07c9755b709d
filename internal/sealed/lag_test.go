package sealed

import (
	"fmt"
	"testing"

	"pawl.dev/internal/bus/bustest"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/secret"
)

// Any server of a cluster answers a read, also one that is a moment behind. Whoever
// takes back what was staged would find "nothing was sealed", and leave it.
func TestEnvelopeIsNotMissedOnAServerThatIsBehind(t *testing.T) {
	keys := t.TempDir()
	if _, err := CreateKeys(keys); err != nil {
		t.Fatal(err)
	}
	of, err := LoadKeys(keys, saga.DBRotator)
	if err != nil {
		t.Fatal(err)
	}
	var on []*Store
	for _, server := range bustest.StartThree(t) {
		on = append(on, NewStore(server.Connect(t, saga.DBRotator), saga.DBRotator, of))
	}
	for i := range 100 {
		c := &Credential{Credential: "app", Rotation: fmt.Sprintf("r-%d", i), User: "app", Password: secret.New("irrelevant")}
		if _, err := on[0].Seal(t.Context(), saga.DBRotator, c); err != nil {
			t.Fatal(err)
		}
		for server, store := range on {
			if _, err := store.Open(t.Context(), c.Credential, c.Rotation); err != nil {
				t.Fatalf("sealed, and then read on server %d: %v", server+1, err)
			}
		}
	}
}

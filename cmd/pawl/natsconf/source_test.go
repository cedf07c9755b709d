package natsconf

import (
	"fmt"
	"slices"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// TestAlertIsOfWhoseKeyRaisedIt: the requester's key lies where applications run, and a
// rule that names a source believes that source alone.
func TestAlertIsOfWhoseKeyRaisedIt(t *testing.T) {
	i := install(t)
	i.serve()
	i.mustProvision()
	for _, user := range []string{bus.Requester, bus.SourceUser("siem"), bus.SourceUser(inventory.LoginWatch)} {
		for _, source := range []string{"siem", inventory.LoginWatch} {
			b := i.join(user)
			if user == bus.Requester || user == bus.SourceUser(source) {
				if _, err := b.JetStream.Publish(t.Context(), bus.AlertSubject(source), []byte("{}")); err != nil {
					t.Errorf("%s as %s: %v", user, source, err)
				}
			} else if !denied(t, b, bus.AlertSubject(source), func() error { return b.NATS.Publish(bus.AlertSubject(source), []byte("{}")) }) {
				t.Errorf("%s passes for %s", user, source)
			}
		}
	}
	var told []string
	operator := i.join(bus.Operator)
	if _, err := operator.Scan(t.Context(), bus.StreamAlert, ">", bus.Start{}, func(m *jetstream.RawStreamMsg) bool {
		source, claimed := bus.ParseAlert(m.Subject)
		told = append(told, fmt.Sprint(source, "/", claimed))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(told)
	if want := []string{"logins/", "requester/logins", "requester/siem", "siem/"}; !slices.Equal(told, want) {
		t.Errorf("told by %v, want %v", told, want)
	}
}

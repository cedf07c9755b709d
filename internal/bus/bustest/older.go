package bustest

import (
	"fmt"
	"strings"

	"github.com/nats-io/nkeys"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// OlderAccounts is the part of a server's configuration that bus.Accounts is, as
// versions before had it: all users but one in the account of the streams.
func OlderAccounts(inv *inventory.Inventory) (string, error) {
	var inside strings.Builder
	outside := ""
	for _, user := range bus.Users {
		seed, err := bus.LoadSeed(bus.SeedFile(inv, user))
		if err != nil {
			return "", err
		}
		pair, err := nkeys.FromSeed(seed)
		if err != nil {
			return "", err
		}
		public, err := pair.PublicKey()
		if err != nil {
			return "", err
		}
		if text := fmt.Sprintf("      {nkey: %s}\n", public); user == bus.Requester {
			outside = text
		} else {
			inside.WriteString(text)
		}
	}
	return fmt.Sprintf(`accounts {
  %[1]s {
    jetstream: enabled
    exports: [{service: "pawl.request.*", response: stream, accounts: [ASKING]}, {service: "pawl.alert.>", response: stream, accounts: [ASKING]}]
    users: [
%[2]s    ]
  }
  ASKING {
    imports: [{service: {account: %[1]s, subject: "pawl.request.*"}}, {service: {account: %[1]s, subject: "pawl.alert.>"}}]
    users: [
%[3]s    ]
  }
}
`, bus.Account, inside.String(), outside), nil
}

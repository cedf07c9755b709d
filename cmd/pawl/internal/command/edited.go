package command

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/internal/client"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
)

// tellEdited says which services have started with another pawl.yaml than the one
// that is here: what was edited since has no effect yet.
func tellEdited(cmd *cobra.Command, inv *inventory.Inventory, conn *client.Client) {
	var others []string
	for _, name := range saga.Services {
		started, err := service.LastStart(cmd.Context(), conn.Bus, name)
		if err != nil {
			return // the command itself tells of a bus that does not answer
		}
		if started != nil && started.GetConfiguration() != inv.Digest() {
			others = append(others, name)
		}
	}
	if slices.Equal(others, saga.Services) {
		others = []string{"Pawl"}
	}
	if len(others) > 0 {
		say(cmd, "note: %s started with another pawl.yaml than %s is now: what was edited since has an effect after the next start", strings.Join(others, ", "), inv.File)
	}
}

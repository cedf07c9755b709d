package command

import (
	"github.com/spf13/cobra"

	"pawl.dev/cmd/pawl/keyring"
)

func newKeys() *cobra.Command {
	var out string
	owner := -1
	c := &cobra.Command{
		Use: "keys", Short: "Copy to a folder for each user of the bus the keys that it needs, and no other", Args: cobra.NoArgs,
		Long: "Copies the keys that `pawl init` and `pawl nats-config` have made: to DIR/USER those that USER needs, and no other. Such a folder is the keys_dir of that service on another machine or in a container; what operator, requester and the sources of alerts have in clients/ belongs in their data_dir.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			inv, err := load(cmd)
			if err != nil {
				return err
			}
			return listWritten(cmd)(keyring.Deal(inv, out, owner))
		},
	}
	c.Flags().StringVar(&out, "out", "", "the `DIR` to write to; each user has a folder in it")
	c.Flags().IntVar(&owner, "owner", -1, "the `UID` that is to own the files, which only root can give away; default: whoever runs this")
	_ = c.MarkFlagRequired("out") // it is defined above
	return c
}

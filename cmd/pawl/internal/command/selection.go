package command

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"pawl.dev/internal/inventory"
	"pawl.dev/internal/service"
)

// selecting are the flags that select several credentials.
type selecting struct {
	clusters, environments []string
	all                    bool
}

func (s *selecting) flags(c *cobra.Command) {
	c.Flags().StringSliceVar(&s.clusters, "cluster", nil, "every credential of this `CLUSTER`; may be repeated")
	c.Flags().StringSliceVar(&s.environments, "environment", nil, "every credential of this `ENVIRONMENT`; may be repeated")
	c.Flags().BoolVar(&s.all, "all", false, "every credential in pawl.yaml")
}

// given reports whether one of the flags was.
func (s *selecting) given() bool { return s.all || len(s.clusters)+len(s.environments) > 0 }

// with returns what the flags and the arguments select together.
func (s *selecting) with(args []string) inventory.Selection {
	return inventory.Selection{Credentials: slices.Compact(slices.Sorted(slices.Values(args))), Clusters: s.clusters, Environments: s.environments, All: s.all}
}

// selected returns the credentials, and apart from them those with which Pawl itself
// logs in.
func selected(inv *inventory.Inventory, s inventory.Selection) (all, own []*inventory.Credential, err error) {
	found, err := inv.Select(s)
	if err != nil {
		return nil, nil, exit{exitUsage, err}
	}
	for _, c := range found {
		if c.IsOwn() {
			own = append(own, c)
		} else {
			all = append(all, c)
		}
	}
	return all, own, nil
}

func namesOf(credentials []*inventory.Credential) []string {
	var names []string
	for _, c := range credentials {
		names = append(names, c.Name)
	}
	return names
}

// confirmed asks a person once, on the terminal. Without one, yes must say so.
func confirmed(cmd *cobra.Command, credentials []*inventory.Credential, yes bool) error {
	clusters := map[string]bool{}
	for _, c := range credentials {
		clusters[c.Cluster.Name] = true
	}
	names := slices.Sorted(maps.Keys(clusters))
	what := fmt.Sprintf("Emergency of %s on %s (%s): all logins are refused and all sessions end at once. The applications fail until they have read their new passwords.",
		service.Count(len(credentials), "credential"), service.Count(len(names), "cluster"), strings.Join(names, ", "))
	if yes {
		say(cmd, "%s", what)
		return nil
	}
	if in, ok := cmd.InOrStdin().(*os.File); !ok || !term.IsTerminal(int(in.Fd())) {
		return usage("%s Nothing was done. No terminal is here to ask on: confirm with --yes", what)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s Continue? [y/N] ", what)
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); err != nil || answer != "y" && answer != "yes" {
		return exit{exitRejected, fmt.Errorf("not confirmed: nothing was done")}
	}
	return nil
}

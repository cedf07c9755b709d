package inventory

import (
	"fmt"
	"reflect"
	"slices"
)

// MaxTogether is how many credentials may turn together.
const MaxTogether = 64

// Together lists the names of the credentials that turn with c: its group in
// the order of names, or c alone.
func (i *Inventory) Together(c *Credential) []string {
	var names []string
	for _, other := range i.Credentials {
		if other == c || c.Group != "" && other.Group == c.Group {
			names = append(names, other.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Sharing returns which of the members, in their order, have a consumer of that
// name. Members that are not in the file are left out.
func (i *Inventory) Sharing(consumer string, members []string) []string {
	var names []string
	for _, name := range members {
		if c := i.Credentials[name]; c != nil && slices.ContainsFunc(c.Consumers, func(x Consumer) bool { return x.Name == consumer }) {
			names = append(names, name)
		}
	}
	return names
}

// CanTurnTogether returns an error naming the consumer and both members where
// two of them would restart one consumer in different ways. Its
// application_name and instances may differ: a program may open a pool of its
// own for each credential.
func (i *Inventory) CanTurnTogether(members []string) error {
	_, err := i.disagreement(members)
	return err
}

// disagreement also returns the later of the two members.
func (i *Inventory) disagreement(members []string) (member string, err error) {
	type seen struct {
		by string
		Consumer
	}
	first := map[string]seen{}
	for _, name := range members {
		for _, c := range i.Credentials[name].Consumers {
			other, shared := first[c.Name]
			if !shared {
				first[c.Name] = seen{name, c}
			} else if !reflect.DeepEqual(other.Restart, c.Restart) || !reflect.DeepEqual(other.Health, c.Health) {
				return name, fmt.Errorf("consumer %s is restarted once for %s and %s, and they say differently how: give both the same restart and health, or another name where it is another consumer", c.Name, other.by, name)
			}
		}
	}
	return "", nil
}

// checkGroups runs once all credentials are read.
func (d *document) checkGroups(inv *Inventory) {
	checked := map[string]bool{}
	for name, c := range inv.Credentials {
		if c.Group == "" || checked[c.Group] {
			continue
		}
		checked[c.Group] = true
		members := inv.Together(c)
		if len(members) > MaxTogether {
			d.groups[name].group.fault("%s has %d credentials: at most %d turn together", c.Group, len(members), MaxTogether)
		}
		if member, err := inv.disagreement(members); err != nil {
			d.groups[member].consumers.fault("%v", err)
		}
	}
}

// groupPlaces is where a credential's group and consumers stand in the file.
type groupPlaces struct{ group, consumers value }

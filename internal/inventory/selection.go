package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Selection names several credentials: those that are listed, those of clusters and
// of environments, or all.
type Selection struct {
	Credentials, Clusters, Environments []string
	All                                 bool
}

// IsZero reports whether nothing is selected.
func (s Selection) IsZero() bool {
	return !s.All && len(s.Credentials)+len(s.Clusters)+len(s.Environments) == 0
}

// Select returns the selected credentials in the order of names. An error names what
// is unknown, and the nearest known name.
func (i *Inventory) Select(s Selection) ([]*Credential, error) {
	if s.IsZero() {
		return nil, fmt.Errorf("no credential is selected: name credentials, clusters or environments, or all")
	}
	for _, known := range []struct {
		what   string
		wanted []string
		names  []string
	}{
		{"credential", s.Credentials, slices.Sorted(maps.Keys(i.Credentials))},
		{"cluster", s.Clusters, slices.Sorted(maps.Keys(i.Clusters))},
		{"environment", s.Environments, slices.Sorted(maps.Keys(i.Environments))},
	} {
		for _, name := range known.wanted {
			if !slices.Contains(known.names, name) {
				return nil, unknown(known.what, name, known.names)
			}
		}
	}
	var all []*Credential
	for _, name := range slices.Sorted(maps.Keys(i.Credentials)) {
		c := i.Credentials[name]
		if s.All || slices.Contains(s.Credentials, name) || slices.Contains(s.Clusters, c.Cluster.Name) || slices.Contains(s.Environments, c.Cluster.Environment) {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no credential is selected: no credential in pawl.yaml belongs to %s", strings.Join(slices.Concat(s.Clusters, s.Environments), ", "))
	}
	return all, nil
}

// unknown is the error about a name that is not in pawl.yaml.
func unknown(what, name string, known []string) error {
	if len(known) == 0 {
		return fmt.Errorf("unknown %s %q: pawl.yaml has none", what, name)
	}
	return fmt.Errorf("unknown %s %q: did you mean %s?", what, name, nearest(name, known))
}

// Pools returns, for each of the credentials that restarts a consumer which another
// one of them restarts, too, all that are connected by such consumers, itself among
// them, in the order of names: at most MaxTogether. Consumers that are restarted in
// different ways connect nobody.
func (i *Inventory) Pools(credentials []*Credential) map[string][]string {
	pool := map[string]int{} // by credential: which pool it is in
	pools := map[int]map[string]bool{}
	first := map[string]*Credential{}
	for n, c := range credentials {
		pool[c.Name], pools[n] = n, map[string]bool{c.Name: true}
	}
	for _, c := range credentials {
		for _, consumer := range c.Consumers {
			other := first[consumer.Name]
			if other == nil {
				first[consumer.Name] = c
				continue
			}
			into, from := pool[other.Name], pool[c.Name]
			if into == from || len(pools[into])+len(pools[from]) > MaxTogether || !i.alike(pools[into], pools[from]) {
				continue
			}
			for name := range pools[from] {
				pools[into][name], pool[name] = true, into
			}
			delete(pools, from)
		}
	}
	all := map[string][]string{}
	for _, members := range pools {
		names := slices.Sorted(maps.Keys(members))
		for _, name := range names {
			if len(names) > 1 {
				all[name] = names
			}
		}
	}
	return all
}

// alike reports whether the members of both pools say alike how what they share is
// restarted: all of it, since one of them restarts it for all.
func (i *Inventory) alike(a, b map[string]bool) bool {
	_, err := i.disagreement(slices.Concat(slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b))))
	return err == nil
}

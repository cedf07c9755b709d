package compliance

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
)

// User is a user of the bus, and what it may do there that is more than reading
// the state of rotations: by this version's table, from which the server's
// permissions are generated.
type User struct {
	Name    string   `json:"user"`
	Publish []string `json:"publish"` // subjects of Pawl
	Sealed  []string `json:"sealed"`  // what it may do with sealed credentials
}

func users(inv *inventory.Inventory) (all []User) {
	for _, name := range bus.UsersOf(inv) {
		u := User{Name: name, Publish: []string{}, Sealed: []string{}}
		for _, subject := range bus.PermissionsFor(name).Publish {
			switch {
			case subject == "$JS.API.>":
				u.Publish = append(u.Publish, subject)
				u.Sealed = append(u.Sealed, "everything but to open them")
			case strings.HasPrefix(subject, "pawl."):
				u.Publish = append(u.Publish, subject)
			case strings.Contains(subject, ".DIRECT.GET."+bus.StreamSealed):
				u.Sealed = append(u.Sealed, "read "+subject[strings.Index(subject, "pawl."):])
			case strings.Contains(subject, ".SNAPSHOT."+bus.StreamSealed):
				u.Sealed = append(u.Sealed, "copy, and not open")
			case strings.Contains(subject, ".PURGE."+bus.StreamSealed):
				u.Sealed = append(u.Sealed, "erase")
			}
		}
		all = append(all, u)
	}
	return all
}

// noteOpened is the kind of a note of one opening of a sealed credential.
const noteOpened = "opened"

// Access counts the notes of one service that it opened a credential's envelopes,
// within the period: one for each process and rotation.
type Access struct {
	Credential string     `json:"credential"`
	Service    string     `json:"service"` // the recipient
	Times      int        `json:"times"`
	First      time.Time  `json:"first"`
	Last       time.Time  `json:"last"`
	Evidence   []Evidence `json:"evidence"` // of the first and the last
}

func accesses(notes []Record) []Access {
	all := []Access{}
	index := map[[2]string]int{}
	for _, n := range notes {
		if n.GetEvent() != noteOpened {
			continue
		}
		key := [2]string{n.GetCredential(), n.GetService()}
		i, again := index[key]
		if !again {
			index[key] = len(all)
			all = append(all, Access{Credential: key[0], Service: key[1], Times: 1, First: n.at(), Last: n.at(), Evidence: []Evidence{n.evidence()}})
			continue
		}
		all[i].Times, all[i].Last, all[i].Evidence = all[i].Times+1, n.at(), []Evidence{all[i].Evidence[0], n.evidence()}
	}
	slices.SortFunc(all, func(a, b Access) int {
		return cmp.Or(cmp.Compare(a.Credential, b.Credential), cmp.Compare(a.Service, b.Service))
	})
	return all
}

// loaded lists what services said of the configuration that they read.
func loaded(notes []Record) []Loaded {
	all := []Loaded{}
	for _, n := range notes {
		if strings.HasPrefix(n.GetEvent(), "configuration") {
			all = append(all, Loaded{n.at(), n.GetService(), n.GetSummary(), n.evidence()})
		}
	}
	return all
}

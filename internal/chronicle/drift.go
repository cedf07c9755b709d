package chronicle

import (
	"slices"
	"strings"

	"pawl.dev/internal/bus"
)

// Drift returns, by credential, what is noted to be not as it should be, and not
// over: of each place the newest. A service that begins anew compares all anew,
// so that the notes since its beginning are enough; every replica may note the
// same.
func Drift(notes []bus.Entry) map[string][]Note {
	all := map[string][]Note{}
	for _, e := range notes {
		n := NewNote(e)
		switch n.Kind {
		case "configuration":
			for name := range all {
				all[name] = slices.DeleteFunc(all[name], func(d Note) bool { return d.Service == n.Service })
			}
		case "drift", "drift over", "repaired":
			all[e.Credential] = slices.DeleteFunc(all[e.Credential], func(d Note) bool { return d.Service == n.Service && d.Place() == n.Place() })
			if n.Kind == "drift" {
				all[e.Credential] = append(all[e.Credential], n)
			}
		}
	}
	return all
}

// Place is the node or the sink that a note of drift, or of its end, is about: it
// begins with that.
func (n Note) Place() string {
	word, _, _ := strings.Cut(n.Text, " ")
	return strings.TrimSuffix(word, ":")
}

package inventory

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed pawl.yaml.tmpl
var template string

// Template is the commented pawl.yaml of a fresh start. It loads as it is,
// without credentials; taking the first # off its examples makes it load one.
func Template() string { return template }

// AddMissing appends to a configuration the top-level keys that it lacks, with
// their comments, and returns the whole and the keys added. What stands in it
// is kept byte for byte. Where there is nothing to add, existing is returned.
// It is an error where existing is not YAML, or where text after its end would
// change its meaning.
func AddMissing(existing []byte) ([]byte, []string, error) {
	before, err := topLevel(existing)
	if err != nil {
		return nil, nil, err
	}
	newline := "\n"
	if bytes.Contains(existing, []byte("\r\n")) {
		newline = "\r\n"
	}
	out := bytes.Clone(existing)
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\n")) {
		out = append(out, newline...)
	}
	var added []string
	for _, s := range sections() {
		if _, there := before[s.key]; there {
			continue
		}
		if len(out) > 0 {
			out = append(out, newline...)
		}
		out = append(out, strings.ReplaceAll(s.text, "\n", newline)...)
		added = append(added, s.key)
	}
	if len(added) == 0 {
		return existing, nil, nil
	}
	after, err := topLevel(out)
	unchanged := err == nil && len(after) == len(before)+len(added)
	for key, node := range before {
		unchanged = unchanged && same(node, after[key])
	}
	if !unchanged {
		return nil, nil, fmt.Errorf("pawl.yaml: %s cannot be added at its end without changing what it says: add by hand", strings.Join(added, ", "))
	}
	return out, added, nil
}

type section struct{ key, text string }

var topLevelKey = regexp.MustCompile(`(?m)^([a-z_]+):`)

// sections cuts the template at its blank lines; what says nothing of a key is
// left out.
func sections() []section {
	var out []section
	for text := range strings.SplitSeq(strings.TrimSpace(template), "\n\n") {
		if m := topLevelKey.FindStringSubmatch(text); m != nil {
			out = append(out, section{m[1], text + "\n"})
		}
	}
	return out
}

func topLevel(raw []byte) (map[string]*yaml.Node, error) {
	root, err := readYAML("pawl.yaml", raw)
	if err != nil {
		return nil, err
	}
	keys := map[string]*yaml.Node{}
	if root == nil {
		return keys, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, errors.New("pawl.yaml: must be a mapping, that is, lines of key: value")
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i]
		if _, twice := keys[key.Value]; twice {
			return nil, fmt.Errorf("pawl.yaml:%d: %.60q stands twice: keep one", key.Line, key.Value)
		}
		keys[key.Value] = root.Content[i+1]
	}
	return keys, nil
}

// same compares what two nodes say. An alias is compared by its name.
func same(a, b *yaml.Node) bool {
	if a == nil || b == nil || a.Kind != b.Kind || a.Tag != b.Tag || a.Value != b.Value || len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !same(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}

package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is a file being read. Reading goes on after a fault, so that one run
// shows them all.
type document struct {
	name     string // as the caller gave it
	file     string // absolute
	dir      string // what relative paths are relative to
	faults   []remark
	warnings []remark

	published map[place]value         // who writes what
	logins    map[string]string       // which credential owns a login, by where and which
	accounts  map[string][]OwnAccount // who reads a password from this file
	resolved  map[string]string       // paths without their symbolic links
	groups    map[string]groupPlaces  // by credential
	policies  map[string]object       // by credential: all that is said of it
}

// remark is what is to be said of one line.
type remark struct {
	line int
	text string
}

func lines(name string, remarks []remark) []string {
	slices.SortStableFunc(remarks, func(a, b remark) int { return cmp.Compare(a.line, b.line) })
	var out []string
	for _, r := range remarks {
		out = append(out, fmt.Sprintf("%s:%d: %s", name, r.line, r.text))
	}
	return out
}

func (d *document) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines(d.name, d.faults), "\n"))
}

// value is one place of the file, be there something or not.
type value struct {
	doc    *document
	node   *yaml.Node // nil: absent, null, or unreadable
	key    string
	path   string
	line   int
	broken bool // unreadable, and said so
}

func (v value) remark(format string, args ...any) remark {
	text := fmt.Sprintf(format, args...)
	if v.path != "" {
		text = v.path + ": " + text
	}
	return remark{v.line, text}
}

func (v value) fault(format string, args ...any) {
	v.doc.faults = append(v.doc.faults, v.remark(format, args...))
}

func (v value) warn(format string, args ...any) {
	v.doc.warnings = append(v.doc.warnings, v.remark(format, args...))
}

// missing faults a value that must be there and is not.
func (v value) missing(fix string) {
	if !v.broken {
		v.fault("is missing: %s", fix)
	}
}

func (v value) isMapping() bool { return v.node != nil && v.node.Kind == yaml.MappingNode }

// isEmptyList tells [] from what list has already found fault with.
func (v value) isEmptyList() bool {
	return v.node != nil && v.node.Kind == yaml.SequenceNode && len(v.node.Content) == 0
}

func (v value) child(node *yaml.Node, key, path string, line int) value {
	c := value{doc: v.doc, node: node, key: key, path: path, line: line}
	switch {
	case node.Kind == yaml.AliasNode:
		c.fault("YAML aliases are not read here: write the value out")
		c.node, c.broken = nil, true
	case node.Style&yaml.TaggedStyle != 0:
		c.fault("YAML tags (!name) are not read here: write the value alone")
		c.node, c.broken = nil, true
	case node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null":
		c.node = nil
	}
	return c
}

func (v value) field(key string) string {
	if !plainKey.MatchString(key) {
		key = fmt.Sprintf("%.60q", key)
	}
	if v.path == "" {
		return key
	}
	return v.path + "." + key
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)

// entries returns the pairs of a mapping in the order of the file.
func (v value) entries() []value {
	if v.node == nil {
		return nil
	}
	if v.node.Kind != yaml.MappingNode {
		v.fault("must be a mapping, that is, lines of key: value")
		return nil
	}
	var out []value
	first := map[string]int{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key, node := v.node.Content[i], v.node.Content[i+1]
		at := value{doc: v.doc, path: v.field(key.Value), line: key.Line}
		line, seen := first[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			at.path = v.path
			at.fault("has a key that is not plain text")
		case key.ShortTag() == "!!merge":
			at.fault("YAML merge keys are not read here: write the values out")
		case key.Value == "":
			at.fault("a key is empty: name it")
		case seen:
			at.fault("stands twice, first on line %d: keep one", line)
		default:
			first[key.Value] = key.Line
			out = append(out, v.child(node, key.Value, at.path, key.Line))
		}
	}
	return out
}

// object is a mapping whose keys are known.
type object struct {
	value
	fields map[string]value
}

func (v value) object(known ...string) object {
	o := object{v, map[string]value{}}
	for _, e := range v.entries() {
		if slices.Contains(known, e.key) {
			o.fields[e.key] = e
		} else {
			e.unknown(known)
		}
	}
	return o
}

// at returns the field of that name, absent or not.
func (o object) at(key string) value {
	if f, ok := o.fields[key]; ok {
		return f
	}
	return value{doc: o.doc, key: key, path: o.field(key), line: o.line, broken: o.broken}
}

var passwordKeys = []string{"password", "passwd", "pwd", "pass", "pgpassword", "secret"}

func (v value) unknown(known []string) {
	if slices.Contains(passwordKeys, strings.ToLower(v.key)) {
		v.fault("passwords never stand in this file: use password_file or password_env")
		return
	}
	v.fault("unknown key %.60q: the nearest known key is %q (known here: %s)", v.key, nearest(v.key, known), strings.Join(known, ", "))
}

// variant reads a mapping that has one key, which says what kind of thing it
// is. It returns "" where there is none to go on with.
func (v value) variant(what string, known []string) (kind string, body value) {
	all := v.entries()
	if !v.isMapping() {
		if v.node == nil {
			v.missing("name one of " + strings.Join(known, ", "))
		}
		return "", v
	}
	var kinds []value
	for _, e := range all {
		if slices.Contains(known, e.key) {
			kinds = append(kinds, e)
		} else {
			e.unknown(known)
		}
	}
	switch {
	case len(all) == 0:
		v.missing("name one of " + strings.Join(known, ", "))
	case len(kinds) > 1:
		v.fault("has two kinds of %s, %s and %s: keep one", what, kinds[0].key, kinds[1].key)
	case len(kinds) == 1:
		return kinds[0].key, kinds[0]
	}
	return "", v
}

// list returns the items of a list.
func (v value) list() []value {
	if v.node == nil {
		return nil
	}
	if v.node.Kind != yaml.SequenceNode {
		v.fault("must be a list, that is, [a, b] or lines that begin with -")
		return nil
	}
	var out []value
	for i, node := range v.node.Content {
		item := v.child(node, "", v.path+"["+strconv.Itoa(i)+"]", node.Line)
		if item.node == nil {
			item.missing("fill the item in, or delete it")
			continue
		}
		out = append(out, item)
	}
	return out
}

// readable reports whether what the object lacks is worth naming: it is not
// where there is something else in its place.
func (o object) readable() bool { return !o.broken && (o.node == nil || o.isMapping()) }

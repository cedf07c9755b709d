// Package natsconf writes what a stock nats-server needs to be the bus: a
// configuration with Pawl's users and their permissions, and the certificates of
// servers and users.
package natsconf

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	_ "embed"

	"github.com/google/renameio/v2"

	"pawl.dev/internal/bus"
	"pawl.dev/internal/inventory"
	"pawl.dev/internal/newfile"
)

// Node is one nats-server.
type Node struct {
	Name    string // what clients and the other nodes call its host, too
	Host    string // default: Name
	Listen  string // for clients; default 0.0.0.0:4222
	Cluster string // for the other nodes; default 0.0.0.0:6222
	Monitor string // default 127.0.0.1:8222
}

// Options of Write.
type Options struct {
	Out   string // a folder; each node has one of its own in it, by name
	Nodes []Node
	At    string // where each node finds its folder; default: where it is written
	Store string // where each node stores; default: data in its folder
	CAKey string // the authority's private key; default: DefaultCAKey
}

// DefaultCAKey is apart from what services are given.
func DefaultCAKey(inv *inventory.Inventory) string {
	return filepath.Join(inv.KeysDir, "ca", "ca.key")
}

const defaultCluster = "0.0.0.0:6222"

var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?$`)

// ParseNodes reads a list of names, which are host names, too.
func ParseNodes(names []string) (nodes []Node, err error) {
	for i, name := range names {
		switch {
		case !nodeName.MatchString(name):
			return nil, fmt.Errorf("%.80q is no host name: a node's name is 1 to 64 of a-z, 0-9, dot and hyphen", name)
		case net.ParseIP(name) != nil:
			return nil, fmt.Errorf("%s is an address: nodes know each other by name: write a host name", name)
		case slices.Contains(names[:i], name):
			return nil, fmt.Errorf("%s stands twice", name)
		}
		nodes = append(nodes, Node{Name: name})
	}
	if len(nodes) != 1 && len(nodes)%2 == 0 {
		return nil, fmt.Errorf("%d nodes: an even number withstands no more than one less: name 1, 3 or 5", len(nodes))
	}
	return nodes, nil
}

// Write writes what is missing and returns the files that it wrote. Keys are
// never overwritten; a certificate is made again where it is about to end, or
// does not name its node; the configuration always is, and is the same while
// users, table and options are. Idempotent.
func Write(inv *inventory.Inventory, o Options) (written []string, err error) {
	w := &writer{}
	accounts, err := bus.Accounts(inv)
	if err == nil {
		err = errors.Join(o.keepsStreams(), o.keepsEncrypted())
	}
	if err != nil {
		return nil, err
	}
	a, err := openAuthority(w, cmp.Or(o.CAKey, DefaultCAKey(inv)), filepath.Join(inv.TLSDir(), "ca.pem"))
	if err != nil {
		return w.written, err
	}
	for _, user := range bus.UsersOf(inv) {
		if err := a.certify(w, filepath.Join(inv.TLSDir(), user), "pawl "+user, nil); err != nil {
			return w.written, err
		}
	}
	for _, n := range o.Nodes {
		n.Host = cmp.Or(n.Host, n.Name)
		dir := filepath.Join(o.Out, n.Name)
		if err := w.certificatesOf(a, dir, n); err != nil {
			return w.written, err
		}
		text, err := configuration(n, o, accounts)
		if err != nil {
			return w.written, err
		}
		if err := w.put(filepath.Join(dir, "nats.conf"), text, 0o644); err != nil {
			return w.written, err
		}
	}
	return w.written, nil
}

// keepsStreams refuses to make a part of a cluster of a server that was alone, which
// would delete its streams as it starts, and the other way round.
func (o Options) keepsStreams() error {
	for _, n := range o.Nodes {
		path := filepath.Join(o.Out, n.Name, "nats.conf")
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		switch clustered := bytes.Contains(text, []byte("\ncluster ")); {
		case !clustered && len(o.Nodes) > 1:
			return fmt.Errorf("%s is of a server that is alone: in a cluster it would delete its streams: move them as docs/nats.md says, \"From one server to three\"", path)
		case clustered && len(o.Nodes) == 1:
			return fmt.Errorf("%s is of a server of a cluster: name all of its servers in --nodes", path)
		}
	}
	return nil
}

// keepsEncrypted refuses to configure a server without the key that its store is
// encrypted with: it would not find its streams, and delete them as they are made.
func (o Options) keepsEncrypted() error {
	for _, n := range o.Nodes {
		dir := filepath.Join(o.Out, n.Name)
		text, err := os.ReadFile(filepath.Join(dir, "nats.conf"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		_, keyed := os.Stat(filepath.Join(dir, "store-key.conf"))
		if encrypts.Match(text) || keyed == nil {
			return fmt.Errorf("%s configures a server that encrypts its store: without the key it would lose its streams; nothing was written. Fix: move them as docs/nats.md says, \"From an encrypted store to a plain one\"", dir)
		}
	}
	return nil
}

// encrypts finds what has nats-server encrypt its store.
var encrypts = regexp.MustCompile(`(?m)^[^#\n]*\b(cipher|crypto|encryption_key|ek)\s*[:=]`)

//go:embed nats.conf.tmpl
var confText string

var confTemplate = template.Must(template.New("nats.conf").Funcs(template.FuncMap{"quote": quote}).Parse(confText))

// quote is a string of NATS's configuration: its escapes are a part of Go's.
func quote(s string) (string, error) {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", fmt.Errorf("%q: nats-server's configuration takes printable ASCII: name another path", s)
	}
	return fmt.Sprintf("%q", s), nil
}

// reached is where others reach what listens there, by the name in the node's
// certificate.
func (n Node) reached(listens string) (string, error) {
	_, port, err := net.SplitHostPort(listens)
	if err != nil {
		return "", fmt.Errorf("node %s: %w", n.Name, err)
	}
	return net.JoinHostPort(cmp.Or(n.Host, n.Name), port), nil
}

func configuration(n Node, o Options, accounts string) ([]byte, error) {
	at := o.At
	if at == "" {
		absolute, err := filepath.Abs(filepath.Join(o.Out, n.Name))
		if err != nil {
			return nil, err
		}
		at = absolute
	}
	var routes []string
	for _, other := range o.Nodes {
		reached, err := other.reached(cmp.Or(other.Cluster, defaultCluster))
		if err != nil {
			return nil, err
		}
		routes = append(routes, "tls://"+reached)
	}
	listen, cluster := cmp.Or(n.Listen, "0.0.0.0:4222"), cmp.Or(n.Cluster, defaultCluster)
	byClients, wrong := n.reached(listen)
	byServers, err := n.reached(cluster)
	if err := errors.Join(wrong, err); err != nil {
		return nil, err
	}
	var text bytes.Buffer
	err = confTemplate.Execute(&text, map[string]any{
		"Node": n, "Listen": listen, "Monitor": cmp.Or(n.Monitor, "127.0.0.1:8222"), "Cluster": cluster, "ByClients": byClients, "ByServers": byServers,
		"Routes": routes, "Store": cmp.Or(o.Store, filepath.Join(at, "data")), "Accounts": accounts,
		"Certificate": filepath.Join(at, "server.pem"), "Key": filepath.Join(at, "server.key"), "Authority": filepath.Join(at, "ca.pem"),
	})
	return text.Bytes(), err
}

// writer remembers what it wrote.
type writer struct{ written []string }

// put writes a file whole, where it is not so already.
func (w *writer) put(path string, text []byte, mode os.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := renameio.WriteFile(path, text, mode); err != nil {
		return err
	}
	w.written = append(w.written, path)
	return nil
}

// create writes a file that is not there, readable by its owner alone; where
// there is one, it is left alone.
func (w *writer) create(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := newfile.Write(path, text); errors.Is(err, os.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	w.written = append(w.written, path)
	return nil
}
